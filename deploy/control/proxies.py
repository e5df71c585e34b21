"""Which proxy is told what: tokens say who it is, the picture what it stands beside, the compilers say the rest."""

import asyncio
import ipaddress
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from federation.etcd import EtcdClient, EtcdError
from federation.model import (
    Audience,
    ClusterSettings,
    ExportedService,
    Locality,
    Pod,
    PodKey,
    ProxyRole,
    ProxyScope,
    ServiceKey,
)
from federation.names import parse_node, token_key
from federation.peering.exports import offered
from federation.snapshot import Snapshot
from federation.view import InboundPort, inbound_ports, resolve
from federation.xds.ads import Admitted, ProxyNode
from federation.xds.resources import Resource, ResourceSet, TypeUrl
from federation.xds.server import Refused, Unauthenticated, Unavailable
from gateway.eastwest import compile_gateway
from sidecar.inbound import compile_inbound
from sidecar.outbound import compile_outbound, outbound_listeners
from trust.attestation import AttestationRefused, TokenRecord, TokenRole, check, decode_record, digest, identity_of
from trust.spiffe import ClusterName, Identity, gateway_identity

log = logging.getLogger(__name__)

_REMEMBERED_REFUSALS = 256  # strangers may invent names without end
_LONGEST_NODE = 400  # characters: a cluster, a namespace and a pod have 63 + 63 + 253
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Admissions:
    """Knows proxies by their join tokens, whose records stand in etcd. The `Admission` of the ADS server."""

    def __init__(self, settings: ClusterSettings, etcd: EtcdClient) -> None:
        self._settings = settings
        self._etcd = etcd
        # Good tokens by digest: while etcd is away, whoever was known comes back all the same.
        self._known: dict[str, TokenRecord] = {}
        self._refused: dict[str, str] = {}

    async def ended(self, node: ProxyNode, admitted: Admitted) -> None:
        """Waits for ever."""
        await asyncio.get_running_loop().create_future()

    async def admit(self, node: ProxyNode, token: str) -> Admitted:
        """Returns whom the token speaks for; raises Refused, Unauthenticated or Unavailable."""
        try:
            return Admitted(await self._admit(node, token))
        except Refused as error:
            self._tell_once(node, str(error))
            raise

    async def _admit(self, node: ProxyNode, token: str) -> Identity:
        try:
            record = check(await self._record(digest(token)), now=datetime.now(UTC))
        except AttestationRefused as error:
            raise Unauthenticated(f"{error.message}; {error.hint}") from error
        cluster, name = self._parse(node)  # not before: a stranger is told nothing of this cluster
        match record.role, name:
            case (TokenRole.SIDECAR, PodKey(namespace=namespace)) if namespace == record.namespace:
                return identity_of(record, cluster)
            case (TokenRole.GATEWAY, str()):
                return gateway_identity(cluster)
            case _:
                raise Refused(f"the token of {record.role} {record.namespace}/{record.account} is not for {node.id}")

    def scope(self, snapshot: Snapshot, node: ProxyNode, identity: Identity) -> ProxyScope | None:
        """Returns the scope of a proxy; None for a sidecar whose pod the picture does not hold. Raises Refused."""
        try:
            scope = self._scope(snapshot, node, identity)
        except Refused as error:
            self._tell_once(node, str(error))
            raise
        if scope is not None:
            self._refused.pop(node.id, None)
        return scope

    def _scope(self, snapshot: Snapshot, node: ProxyNode, identity: Identity) -> ProxyScope | None:
        cluster, name = self._parse(node)
        match name:
            case PodKey():
                pod = snapshot.pods.get(name)
                if pod is None:
                    return None
                if pod.account != identity.account:
                    raise Refused(f"pod {name} runs as {pod.account}, and the token is of {identity.account}")
                audience = self._audience(ProxyRole.SIDECAR, self._locality(pod), identity)
                return ProxyScope(audience=audience, identity=identity, address=pod.address, pod=pod)
            case str():
                here = Locality(region=self._settings.region, cloud=self._settings.cloud)
                audience = self._audience(ProxyRole.GATEWAY, here, gateway_identity(cluster))
                address = node.metadata.get("address", "")
                if not address:
                    raise Refused(f"gateway {name} does not say its address (node metadata `address`)")
                if not _is_address(address):
                    raise Refused(f"gateway {name} listens on {address[:_LONGEST_NODE]!r}, which is no IP address")
                return ProxyScope(audience=audience, identity=identity, address=address)

    def _parse(self, node: ProxyNode) -> tuple[ClusterName, PodKey | str]:
        parsed = parse_node(node.id) if len(node.id) <= _LONGEST_NODE else None
        if parsed is None:
            raise Refused(f"{_short(node)!r} is no node id: <cluster>/<namespace>/<pod> or <cluster>/<gateway>")
        if parsed[0] != self._settings.name:
            raise Refused(f"{node.id} is a proxy of cluster {parsed[0]}, and this is {self._settings.name}")
        return parsed

    def _tell_once(self, node: ProxyNode, reason: str) -> None:
        """Logs a refusal, and not again at every retry."""
        name = _short(node)
        if self._refused.get(name) != reason:
            if len(self._refused) >= _REMEMBERED_REFUSALS:
                self._refused.clear()
            self._refused[name] = reason
            log.warning("proxy refused", extra={"node": name, "reason": reason})

    async def _record(self, key: str) -> TokenRecord | None:
        try:
            found = await self._etcd.get(token_key(key))
        except EtcdError as error:
            if key in self._known:
                return self._known[key]
            raise Unavailable("etcd does not answer: join tokens cannot be checked") from error
        if found is None:
            self._known.pop(key, None)
            return None
        record = self._known[key] = decode_record(found.value)
        return record

    def _audience(self, role: ProxyRole, locality: Locality, identity: Identity) -> Audience:
        return Audience(
            role=role,
            cluster=self._settings.name,
            network=self._settings.network,
            locality=locality,
            namespace=identity.namespace,
        )

    def _locality(self, pod: Pod) -> Locality:
        return Locality(
            region=pod.locality.region or self._settings.region,
            zone=pod.locality.zone,
            cloud=pod.locality.cloud or self._settings.cloud,
        )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _short(node: ProxyNode) -> str:
    """Returns the name of a node for the log: whoever asks may call himself anything."""
    return node.id if len(node.id) <= _LONGEST_NODE else node.id[:_LONGEST_NODE] + "..."


class Compiler:
    """Compiles the picture for a scope. What several proxies share is compiled once a revision.

    The results are those of pure functions: this only remembers them. Used from one event loop.
    """

    def __init__(self, settings: ClusterSettings, control_addresses: Sequence[str]) -> None:
        self._settings = settings
        self._control_addresses = tuple(control_addresses)
        self._revision = -1
        self._outbound: dict[Audience, ResourceSet] = {}
        self._offered: Mapping[ServiceKey, ExportedService] = {}
        self._inbound: dict[Pod, tuple[ProxyScope, tuple[InboundPort, ...], ResourceSet]] = {}

    def __call__(self, snapshot: Snapshot, scope: ProxyScope) -> ResourceSet:
        """Returns all but the secrets of one proxy."""
        self._turn_to(snapshot)
        match scope.audience.role:
            case ProxyRole.SIDECAR:
                return merged(self._outbound_of(snapshot, scope.audience), self._own_of(snapshot, scope))
            case ProxyRole.GATEWAY:
                return compile_gateway(
                    scope, self._offered, control_addresses=self._control_addresses, domain=self._settings.domain
                )

    def _turn_to(self, snapshot: Snapshot) -> None:
        if snapshot.revision == self._revision:
            return
        self._revision = snapshot.revision
        self._outbound.clear()
        # changed_at has no meaning for a gateway: a constant keeps what did not change equal to itself
        self._offered = offered(snapshot, self._settings, before=self._offered, changed_at=_EPOCH)
        pods = set(snapshot.pods.values())
        self._inbound = {pod: known for pod, known in self._inbound.items() if pod in pods}

    def _outbound_of(self, snapshot: Snapshot, audience: Audience) -> ResourceSet:
        if audience not in self._outbound:
            self._outbound[audience] = compile_outbound(resolve(snapshot, self._settings, audience))
        return self._outbound[audience]

    def _own_of(self, snapshot: Snapshot, scope: ProxyScope) -> ResourceSet:
        if scope.pod is None:
            raise ValueError(f"the sidecar {scope} has no pod")
        ports = inbound_ports(snapshot, scope.pod)
        known = self._inbound.get(scope.pod)
        if known is not None and known[:2] == (scope, ports):
            return known[2]
        made = merged(outbound_listeners(scope), compile_inbound(scope, ports, self._settings.domain))
        self._inbound[scope.pod] = (scope, ports, made)
        return made


def merged(*sets: ResourceSet) -> ResourceSet:
    """Returns the union of resource sets; a name that stands in two of them is a bug."""
    union: dict[TypeUrl, dict[str, Resource]] = {}
    for one in sets:
        for type_url, resources in one.items():
            into = union.setdefault(type_url, {})
            twice = into.keys() & resources.keys()
            if twice:
                raise ValueError(f"compiled twice: {type_url} {sorted(twice)}")
            into.update(resources)
    return union
