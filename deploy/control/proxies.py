"""What each proxy is told: the compilers say it, and what several proxies share is compiled once."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from operator import is_
from typing import NamedTuple

from federation.model import (
    Audience,
    ClusterSettings,
    ExportedService,
    Pod,
    ProxyRole,
    ProxyScope,
    ServiceKey,
)
from federation.peering.exports import offered
from federation.peering.visibility import audiences
from federation.revoked import tunnel_callers
from federation.severing import Epochs, epochs
from federation.snapshot import Snapshot
from federation.view import InboundPort, MeshView, Views, inbound_ports
from federation.xds.resources import Resource, ResourceSet, TypeUrl
from gateway.eastwest import compile_gateway
from sidecar.inbound import compile_inbound, compile_rules
from sidecar.outbound import compile_outbound, outbound_listeners
from trust.bundle import Revocation, is_revoked
from trust.spiffe import ClusterName

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_REMEMBERED = 16
"""Pictures for which an audience, or a proxy, that nobody asked for is remembered: it may only have left some out."""


class _Shared(NamedTuple):
    """What the sidecars of an audience share, and what it was compiled from; `turn` is that of the last use."""

    turn: int
    view: MeshView
    resources: ResourceSet


class _Whole(NamedTuple):
    """All that a sidecar is told, and the parts that it was put together from; `turn` is that of the last use."""

    turn: int
    parts: tuple[ResourceSet, ...]
    resources: ResourceSet


class _Gateway(NamedTuple):
    """All that a gateway is told, and what it was compiled from; `turn` is that of the last use."""

    turn: int
    origin: tuple[object, ...]
    resources: ResourceSet


class Compiler:
    """Compiles the picture for a scope. What several proxies share is compiled once a revision.

    The results are those of pure functions: this only remembers them. What did not change is the very same object, down
    to the mapping of each type: a stream then knows, without a look at thousands of names, that nothing is to be sent.
    Used from one event loop.
    """

    def __init__(self, settings: ClusterSettings, control_addresses: Sequence[str]) -> None:
        self._settings = settings
        self._control_addresses = tuple(control_addresses)
        self._revision = -1
        self._turn = 0
        self._views = Views(settings)
        self._outbound: dict[Audience, _Shared] = {}
        self._gateways: dict[ProxyScope, _Gateway] = {}
        self._whole: dict[ProxyScope, _Whole] = {}
        self._offered: Mapping[ServiceKey, ExportedService] = {}
        self._origin: tuple[object, ...] = ()
        self._inbound: dict[Pod, tuple[ProxyScope, tuple[InboundPort, ...], ResourceSet]] = {}
        self._epochs = Epochs()
        self._revoked: tuple[Revocation, ...] = ()
        self._audiences: Mapping[ServiceKey, frozenset[ClusterName]] = {}
        self._rules: dict[tuple[InboundPort, ...], ResourceSet] = {}

    def __call__(self, snapshot: Snapshot, scope: ProxyScope) -> ResourceSet:
        """Returns all but the secrets of one proxy; nothing at all for a proxy that is revoked.

        Its Envoy then drops its listeners and clusters, and what was established through them ends.
        """
        self._turn_to(snapshot)
        if is_revoked(snapshot.revoked, scope.identity):
            return {}
        match scope.audience.role:
            case ProxyRole.SIDECAR:
                return self._whole_of(
                    scope, self._outbound_of(snapshot, scope.audience), *self._own_of(snapshot, scope)
                )
            case ProxyRole.GATEWAY:
                return self._gateway_of(snapshot, scope)

    def _turn_to(self, snapshot: Snapshot) -> None:
        if snapshot.revision == self._revision:
            return
        self._revision, self._turn = snapshot.revision, self._turn + 1
        oldest = self._turn - _REMEMBERED
        self._outbound = {of: shared for of, shared in self._outbound.items() if shared.turn >= oldest}
        self._gateways = {of: gateway for of, gateway in self._gateways.items() if gateway.turn >= oldest}
        self._whole = {of: whole for of, whole in self._whole.items() if whole.turn >= oldest}
        origin = (snapshot.services, snapshot.exports, snapshot.endpoints, snapshot.revoked)
        if not (self._origin and all(map(is_, origin, self._origin))):  # what peers say changes nothing here
            self._origin = origin
            # changed_at has no meaning for a gateway: a constant keeps what did not change equal to itself
            self._offered = offered(snapshot, self._settings, before=self._offered, changed_at=_EPOCH)
        chosen = audiences(snapshot, self._settings)
        if snapshot.revoked != self._revoked or chosen != self._audiences:
            self._revoked, self._audiences = snapshot.revoked, chosen
            self._rules.clear()
        now = epochs(snapshot, self._settings)
        if now != self._epochs:
            self._epochs = now
            self._inbound.clear()
        pods = set(snapshot.pods.values())
        self._inbound = {pod: known for pod, known in self._inbound.items() if pod in pods}
        served = {ports for _, ports, _ in self._inbound.values()}
        self._rules = {ports: rules for ports, rules in self._rules.items() if ports in served}

    def _outbound_of(self, snapshot: Snapshot, audience: Audience) -> ResourceSet:
        view, known = self._views.resolve(snapshot, audience), self._outbound.get(audience)
        if known is None or (known.view is not view and known.view != view):
            made = compile_outbound(view)
            resources = _keep_equal(known.resources, made) if known else made
        else:
            resources = known.resources
        self._outbound[audience] = _Shared(self._turn, view, resources)
        return resources

    def _gateway_of(self, snapshot: Snapshot, scope: ProxyScope) -> ResourceSet:
        callers, known = tunnel_callers(snapshot, self._settings), self._gateways.get(scope)
        # Little of what happens in the mesh concerns a gateway: what this cluster offers, who may call, who is revoked.
        origin = (self._offered, callers, self._audiences, self._revoked, self._epochs)
        if known is None or known.origin != origin:
            made = compile_gateway(
                scope,
                self._offered,
                control_addresses=self._control_addresses,
                domain=self._settings.domain,
                callers=callers,
                audiences=self._audiences,
                revoked=self._revoked,
                epochs=self._epochs,
            )
            resources = _keep_equal(known.resources, made) if known else made
        else:
            resources = known.resources
        self._gateways[scope] = _Gateway(self._turn, origin, resources)
        return resources

    def _whole_of(self, scope: ProxyScope, *parts: ResourceSet) -> ResourceSet:
        known = self._whole.get(scope)
        if known is None or not all(map(is_, known.parts, parts)):
            made = merged(*parts)
            resources = _keep_equal(known.resources, made) if known else made
        else:
            resources = known.resources
        self._whole[scope] = _Whole(self._turn, parts, resources)
        return resources

    def _own_of(self, snapshot: Snapshot, scope: ProxyScope) -> tuple[ResourceSet, ResourceSet]:
        """Returns what a sidecar is told about its own workload, and who may come in to it."""
        if scope.pod is None:
            raise ValueError(f"the sidecar {scope} has no pod")
        ports = inbound_ports(snapshot, scope.pod)
        known = self._inbound.get(scope.pod)
        if known is not None and known[:2] == (scope, ports):
            return known[2], self._rules_of(known[1])
        made = merged(
            outbound_listeners(scope, epoch=self._epochs.sidecars),
            compile_inbound(scope, ports, self._settings.domain, epochs=self._epochs),
        )
        self._inbound[scope.pod] = (scope, ports, made)
        return made, self._rules_of(ports)

    def _rules_of(self, ports: tuple[InboundPort, ...]) -> ResourceSet:
        if ports not in self._rules:
            self._rules[ports] = compile_rules(
                self._settings.name, ports, self._settings.domain, audiences=self._audiences, revoked=self._revoked
            )
        return self._rules[ports]


def merged(*sets: ResourceSet) -> ResourceSet:
    """Returns the union of resource sets; a name that stands in two of them is a bug. Mappings that need no union are
    the very same."""
    union: dict[TypeUrl, Mapping[str, Resource]] = {}
    for one in sets:
        for type_url, resources in one.items():
            into = union.get(type_url)
            if into is None or not resources:
                union[type_url] = resources if into is None else into
                continue
            twice = into.keys() & resources.keys()
            if twice:
                raise ValueError(f"compiled twice: {type_url} {sorted(twice)}")
            union[type_url] = {**into, **resources}
    return union


def _keep_equal(before: ResourceSet, after: ResourceSet) -> ResourceSet:
    """Returns `after` with the mappings from before in the place of equal ones."""
    return {
        type_url: before[type_url] if before.get(type_url) == resources else resources
        for type_url, resources in after.items()
    }
