"""What the mesh looks like from one place: which services have names here, and how far each endpoint is. Pure.

`isthmus simulate` and `isthmus explain` are to ask the same functions that the proxies are configured by.
"""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from enum import StrEnum

import msgspec

from federation.model import (
    Audience,
    ClusterSettings,
    Endpoint,
    GatewayAddress,
    Liveness,
    Locality,
    MemberCluster,
    Pod,
    Protocol,
    ServiceKey,
    ServicePort,
)
from federation.names import clusterset_host, local_host
from federation.revoked import Revoked
from federation.snapshot import Snapshot, resolve_target, selects
from trust.spiffe import ClusterName, MeshDomain, gateway_identity

# Distance, nearest first. Gaps close when priorities are made: Envoy wants them without holes.
_SAME_ZONE, _SAME_REGION, _SAME_CLUSTER = 0, 1, 2
_PEER_SAME_ZONE, _PEER_SAME_REGION, _PEER_SAME_CLOUD, _PEER_ELSEWHERE = 3, 4, 5, 6
_Ranked = tuple[int, ClusterName, Endpoint, "Path"]
"""An endpoint by its distance, with its member and how it is reached."""
_STALE = 10
"""Added for a member that has been silent too long: kept, but after everybody who is heard."""


class Path(StrEnum):
    """How an endpoint is reached: its own address, or a tunnel through its cluster's gateways."""

    DIRECT = "direct"
    TUNNEL = "tunnel"


class PlacedEndpoint(msgspec.Struct, frozen=True):
    """An endpoint as seen from here. `priority` counts from 0, the nearest, without gaps within its service.

    Of one priority, endpoints are called in proportion to `weight`, which is 1 or more. What `is_draining` gets no new
    call, and is in a priority of its own after all others: Envoy counts what is still open only at hosts it knows.
    """

    member: ClusterName
    endpoint: Endpoint
    priority: int
    path: Path
    weight: int = 1
    is_draining: bool = False


class ResolvedService(msgspec.Struct, frozen=True):
    """Ports of a service under one host name, and the endpoints that serve all of them, sorted by priority.

    Members may offer different ports under one mesh-wide name: then a host comes several times, with other ports.

    The endpoints are not to be used for longer than `expires_after` once the control plane is silent; None: for ever.
    `vouched` counts how often it has confirmed such endpoints, 0 for others.
    """

    key: ServiceKey
    host: str
    ports: tuple[ServicePort, ...]
    endpoints: tuple[PlacedEndpoint, ...]
    expires_after: timedelta | None = None
    vouched: int = 0


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


class _Offer(msgspec.Struct, frozen=True):
    """What one member offers under a service name."""

    member: MemberCluster
    ports: tuple[ServicePort, ...]
    endpoints: tuple[Endpoint, ...]
    is_stale: bool
    path: Path


def resolve(snapshot: Snapshot, settings: ClusterSettings, audience: Audience) -> MeshView:
    """Places all services of the picture for one audience.

    A service of this cluster has its local name; a service that any member exports, this one too, has the mesh-wide
    name and the endpoints of those who export it (KEP-1645). Members that cannot be reached (another network and no
    gateway, or none that is believed) are left out, as is everybody who is revoked.
    """
    revoked = Revoked(snapshot.revoked)
    own = _own_record(settings)
    local = {key: _local_offer(snapshot, own, key, revoked) for key in snapshot.services}
    services = [_place(key, local_host(key), (offer,), audience) for key, offer in local.items()]
    offers: dict[ServiceKey, list[_Offer]] = {}
    for key in snapshot.exports.keys() & local.keys():
        offers.setdefault(key, []).append(local[key])
    peers: dict[ClusterName, ResolvedPeer] = {}
    for (cluster, key), exported in sorted(snapshot.imports.items()):
        member = snapshot.members.get(cluster)
        if member is None or cluster == settings.name or cluster in revoked.clusters:
            continue
        gateways = settings.peer_gateways.get(cluster, member.gateways)
        path = Path.DIRECT if member.network == audience.network else Path.TUNNEL
        if path is Path.TUNNEL:
            if not gateways or revoked.covers(gateway_identity(cluster)):
                continue
            peers[cluster] = ResolvedPeer(cluster, gateways)
        freshness = snapshot.freshness.get(cluster)
        is_stale = freshness is not None and freshness.state is Liveness.STALE
        endpoints = revoked.spare(exported.endpoints, cluster=cluster, key=key)
        offers.setdefault(key, []).append(_Offer(member, exported.ports, endpoints, is_stale, path))
    for key, of_members in offers.items():
        services.extend(_group(key, clusterset_host(key), of_members, audience))
    return MeshView(
        domain=settings.domain,
        audience=audience,
        services=tuple(sorted(services, key=lambda service: (service.host, service.ports))),
        peers=tuple(peers[name] for name in sorted(peers)),
    )


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


def _own_record(settings: ClusterSettings) -> MemberCluster:
    return MemberCluster(
        name=settings.name,
        network=settings.network,
        region=settings.region,
        gateways=settings.gateways,
        cloud=settings.cloud,
        zones=settings.zones,
    )


def _local_offer(snapshot: Snapshot, own: MemberCluster, key: ServiceKey, revoked: Revoked) -> _Offer:
    ports = tuple(sorted(_visible(port) for port in snapshot.services[key].ports))
    endpoints = revoked.spare(snapshot.endpoints.get(key, ()), cluster=own.name, key=key)
    return _Offer(own, ports, endpoints, False, Path.DIRECT)


def _visible(port: ServicePort) -> ServicePort:
    # What a caller may depend on: the pod's own port is the business of the sidecar beside it.
    return ServicePort(port.number, port.protocol, port.name)


def _group(key: ServiceKey, host: str, offers: list[_Offer], audience: Audience) -> Iterable[ResolvedService]:
    """Splits a mesh-wide service into groups of ports that the same members offer. The first to name a port wins."""
    offers = sorted(offers, key=lambda offer: (offer.member.name != audience.cluster, offer.member.name))
    ports: dict[int, ServicePort] = {}
    providers: dict[int, list[_Offer]] = {}
    for offer in offers:
        for port in offer.ports:
            ports.setdefault(port.number, _visible(port))
            providers.setdefault(port.number, []).append(offer)
    groups: dict[tuple[ClusterName, ...], list[ServicePort]] = {}
    for number, port in sorted(ports.items()):
        groups.setdefault(tuple(offer.member.name for offer in providers[number]), []).append(port)
    for members, of_group in groups.items():
        offering = tuple(offer for offer in offers if offer.member.name in members)
        placed = _place(key, host, offering, audience)
        yield msgspec.structs.replace(placed, ports=tuple(of_group))


def _place(key: ServiceKey, host: str, offers: tuple[_Offer, ...], audience: Audience) -> ResolvedService:
    ranked = _once_by_address(
        sorted(
            (_distance(audience, offer, endpoint), offer.member.name, endpoint, offer.path)
            for offer in offers
            for endpoint in offer.endpoints
        )
    )
    priority: Mapping[int, int] = {rank: n for n, rank in enumerate(sorted({rank for rank, *_ in ranked}))}
    return ResolvedService(
        key=key,
        host=host,
        ports=offers[0].ports,
        endpoints=tuple(PlacedEndpoint(name, endpoint, priority[rank], path) for rank, name, endpoint, path in ranked),
    )


def _once_by_address(ranked: Iterable[_Ranked]) -> list[_Ranked]:
    """Leaves out what another, nearer one has the address of: Envoy knows an address once in a cluster.

    A member that says to be on this network and names pods of ours would otherwise take their place.
    """
    taken: set[str] = set()
    kept = []
    for one in ranked:
        _, _, endpoint, path = one
        if path is Path.TUNNEL or endpoint.address not in taken:
            kept.append(one)
        if path is Path.DIRECT:
            taken.add(endpoint.address)
    return kept


def _distance(audience: Audience, offer: _Offer, endpoint: Endpoint) -> int:
    here, there = audience.locality, endpoint.locality
    is_same_region = _region(here.region, "") == _region(there.region, offer.member.region)
    is_same_zone = is_same_region and here.zone == there.zone
    if offer.member.name == audience.cluster:
        return _SAME_ZONE if is_same_zone else _SAME_REGION if is_same_region else _SAME_CLUSTER
    rank = (
        _PEER_SAME_ZONE
        if is_same_zone and here.zone
        else _PEER_SAME_REGION
        if is_same_region
        else _PEER_SAME_CLOUD
        if _is_same_cloud(here, there, offer.member)
        else _PEER_ELSEWHERE
    )
    return rank + (_STALE if offer.is_stale else 0)


def _region(of_endpoint: str, of_member: str) -> str:
    return of_endpoint or of_member


def _is_same_cloud(here: Locality, there: Locality, member: MemberCluster) -> bool:
    cloud = there.cloud or member.cloud
    return bool(cloud) and here.cloud == cloud
