"""What the mesh looks like from one place: which services have names here, and how far each endpoint is. Pure.

The walk: who offers what (`offers`), which ports they agree on (`conflicts`), what is drained (`drains`), and where
each endpoint stands (`placement`). `isthmus simulate` and `isthmus explain` are to ask the same functions that the
proxies are configured by.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import msgspec

from federation.conflicts import port_groups
from federation.drains import Drains
from federation.model import (
    Audience,
    ClusterSettings,
    GatewayAddress,
    Pod,
    Protocol,
    ServiceKey,
    ServicePolicy,
    ServicePort,
    WhenStale,
)
from federation.names import clusterset_host, local_host
from federation.offers import Offer, Offers, Path
from federation.placement import PlacedEndpoint, place
from federation.snapshot import EMPTY, VOUCHED_KEY, Snapshot, differing, resolve_target, selects
from trust.spiffe import ClusterName, MeshDomain

_NO_POLICY = ServicePolicy()
_REMEMBERED = 16  # pictures: proxies of different audiences may wake at different ones


class ResolvedService(msgspec.Struct, frozen=True, cache_hash=True):
    """Ports of a service under one host name, and the endpoints that serve all of them, sorted by priority.

    Members may offer different ports under one mesh-wide name: then a host comes several times, with other ports.

    The endpoints are not to be used for longer than `expires_after` once the control plane is silent; None: for ever.
    `vouched` counts how often it has confirmed such endpoints, 0 for others. `overprovisioning` as in Placement.
    """

    key: ServiceKey
    host: str
    ports: tuple[ServicePort, ...]
    endpoints: tuple[PlacedEndpoint, ...]
    expires_after: timedelta | None = None
    vouched: int = 0
    overprovisioning: int = 0


class ResolvedPeer(msgspec.Struct, frozen=True):
    """A member that is reached through its gateways."""

    name: ClusterName
    gateways: tuple[GatewayAddress, ...]


class MeshView(msgspec.Struct, frozen=True):
    """All that one audience is told about others. Services are sorted by host and port."""

    domain: MeshDomain
    audience: Audience
    services: tuple[ResolvedService, ...]
    peers: tuple[ResolvedPeer, ...]


class InboundPort(msgspec.Struct, frozen=True, order=True):
    """One port of one service that a pod serves: `target` is the port of the app."""

    key: ServiceKey
    port: int
    protocol: Protocol
    target: int
    is_exported: bool


_Standings = Mapping[ClusterName, tuple[object, ...]]
"""By member, all that the placing of whatever it offers depends on beside the offer itself."""


class _Made(NamedTuple):
    """A view of a picture; `turn` is that of its last use. `tunnels` are the members whose gateways lead to a service,
    `standings` what else the view was made of."""

    snapshot: Snapshot
    turn: int
    view: MeshView
    tunnels: Mapping[ServiceKey, tuple[ClusterName, ...]]
    standings: _Standings


def resolve(snapshot: Snapshot, settings: ClusterSettings, audience: Audience) -> MeshView:
    """Places all services of the picture for one audience.

    A service of this cluster has its local name; a service that any member exports, this one too, has the mesh-wide
    name and the endpoints of those who export it (KEP-1645). Local names lead to this cluster, whatever is drained.
    """
    return Views(settings).resolve(snapshot, audience)


class Views:
    """What `resolve` returns, made from what it returned for an earlier picture: only services that changed are placed,
    and those of members that are seen otherwise. So a member that comes costs what it offers, however many there are.

    Used from one event loop. Audiences of which the last pictures were not asked for are forgotten.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._snapshot = EMPTY
        self._turn = 0
        self._made: dict[Audience, _Made] = {}
        self._changed: list[tuple[Snapshot, frozenset[ServiceKey]]] = []

    def resolve(self, snapshot: Snapshot, audience: Audience) -> MeshView:
        """Places all services of the picture for one audience; see `resolve`."""
        if snapshot is not self._snapshot:
            self._snapshot, self._turn, self._changed = snapshot, self._turn + 1, []
            self._made = {of: made for of, made in self._made.items() if self._turn - made.turn <= _REMEMBERED}
        made = self._made.get(audience)
        if made is None or made.snapshot is not snapshot:
            made = self._made[audience] = self._make(audience, made)
        return made.view

    def _changed_since(self, before: Snapshot) -> frozenset[ServiceKey]:
        for earlier, changed in self._changed:
            if earlier is before:
                return changed
        changed = _changed(before, self._snapshot)
        self._changed.append((before, changed))
        return changed

    def _make(self, audience: Audience, before: "_Made | None") -> "_Made":
        snapshot = self._snapshot
        offers, drains = Offers(snapshot, self._settings, audience.network), Drains(snapshot, self._settings)
        standings = self._standings(offers, drains)
        services: list[ResolvedService] = []
        tunnels: dict[ServiceKey, tuple[ClusterName, ...]] = {}
        if before is not None and before.snapshot.revoked == snapshot.revoked:
            changed = self._changed_since(before.snapshot) | self._offered_by(_moved(before.standings, standings))
            if not changed:
                return before._replace(snapshot=snapshot, turn=self._turn, standings=standings)
            services += (service for service in before.view.services if service.key not in changed)
            tunnels.update((key, to) for key, to in before.tunnels.items() if key not in changed)
            # To ask all members about a few services is cheaper than to look at all offers; about many, dearer.
            are_many = len(changed) * len(offers.reached) > len(snapshot.imports)
            exporters = offers.all() if are_many else {key: offers.of(key) for key in changed}
        else:
            exporters = offers.all()
            changed = frozenset(exporters.keys() | snapshot.services.keys())
        for key in changed:
            exporting = exporters.get(key, ())
            if key in snapshot.services:
                services.append(_local(offers.local(key), key, audience))
            services.extend(_mesh_wide(snapshot, key, exporting, audience, drains=drains))
            if through := tuple(offer.cluster for offer in exporting if offer.reach.path is Path.TUNNEL):
                tunnels[key] = through
        peers = sorted(set[ClusterName]().union(*tunnels.values()))
        view = MeshView(
            domain=self._settings.domain,
            audience=audience,
            services=tuple(sorted(services, key=lambda service: (service.host, service.ports))),
            peers=tuple(ResolvedPeer(name, offers.reached[name].gateways) for name in peers),
        )
        return _Made(snapshot, self._turn, view, tunnels, standings)

    def _standings(self, offers: Offers, drains: Drains) -> _Standings:
        names, silences = (self._settings.name, *offers.reached), self._snapshot.silences
        return {name: (offers.reached.get(name), silences.get(name), drains.of_member(name)) for name in names}

    def _offered_by(self, members: Collection[ClusterName]) -> frozenset[ServiceKey]:
        """Returns the services that any of these members offers: of one that has just come, none."""
        if not members:
            return frozenset()
        own = self._snapshot.exports.keys() if self._settings.name in members else ()
        return frozenset(own).union(key for cluster, key in self._snapshot.imports if cluster in members)


def inbound_ports(snapshot: Snapshot, pod: Pod) -> tuple[InboundPort, ...]:
    """Returns every service port that `pod` serves, sorted. A port whose target the pod does not have is left out."""
    found = []
    for service in snapshot.services.values():
        if selects(service, pod):
            for port in service.ports:
                target = resolve_target(port.target, port.number, pod)
                if target is not None:
                    is_exported = service.key in snapshot.exports
                    found.append(InboundPort(service.key, port.number, port.protocol, target, is_exported))
    return tuple(sorted(found))


def _moved(before: _Standings, after: _Standings) -> frozenset[ClusterName]:
    return frozenset(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _changed(before: Snapshot, after: Snapshot) -> frozenset[ServiceKey]:
    """Returns the services of which something changed that is theirs alone."""
    sections: tuple[tuple[Mapping[ServiceKey, Any], Mapping[ServiceKey, Any]], ...] = (
        (before.services, after.services),
        (before.endpoints, after.endpoints),
        (before.exports, after.exports),
        (before.published, after.published),
        (before.policies, after.policies),
    )
    found = {key for one, other in sections for key in differing(one, other)}
    found.update(key for _, key in differing(before.imports, after.imports))
    if before.vouched != after.vouched:
        found.update(key for key, policy in after.policies.items() if policy.when_stale is WhenStale.DROP)
    return frozenset(found)


def _local(offer: Offer, key: ServiceKey, audience: Audience) -> ResolvedService:
    return ResolvedService(key, local_host(key), offer.ports, place([offer], audience).endpoints)


def _mesh_wide(
    snapshot: Snapshot, key: ServiceKey, offers: Sequence[Offer], audience: Audience, *, drains: Drains
) -> Iterator[ResolvedService]:
    policy = snapshot.policies.get(key, _NO_POLICY)
    weights = drains.weights(key)
    for ports, of_group in port_groups(offers):
        placement = place(of_group, audience, policy=policy, silences=snapshot.silences, drains=weights)
        # Our own endpoints must never go because our control plane is dead.
        expires = policy.when_stale is WhenStale.DROP and _are_all_foreign(placement.endpoints, audience)
        yield ResolvedService(
            key=key,
            host=clusterset_host(key),
            ports=ports,
            endpoints=placement.endpoints,
            expires_after=policy.drop_after if expires else None,
            vouched=snapshot.vouched.get(VOUCHED_KEY, 0) if expires else 0,
            overprovisioning=placement.overprovisioning,
        )


def _are_all_foreign(endpoints: Sequence[PlacedEndpoint], audience: Audience) -> bool:
    return bool(endpoints) and all(placed.member != audience.cluster for placed in endpoints)
