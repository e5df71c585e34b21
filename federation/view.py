"""What the mesh looks like from one place: which services have names here, and how far each endpoint is. Pure.

The walk: who offers what (`offers`), which ports they agree on (`conflicts`), what is drained (`drains`), and where
each endpoint stands (`placement`). `isthmus simulate` and `isthmus explain` are to ask the same functions that the
proxies are configured by.
"""

from collections.abc import Iterator, Sequence
from datetime import timedelta

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
from federation.snapshot import VOUCHED_KEY, Snapshot, resolve_target, selects
from trust.spiffe import ClusterName, MeshDomain

_NO_POLICY = ServicePolicy()


class ResolvedService(msgspec.Struct, frozen=True):
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


def resolve(snapshot: Snapshot, settings: ClusterSettings, audience: Audience) -> MeshView:
    """Places all services of the picture for one audience.

    A service of this cluster has its local name; a service that any member exports, this one too, has the mesh-wide
    name and the endpoints of those who export it (KEP-1645). Local names lead to this cluster, whatever is drained.
    """
    offers, drains = Offers(snapshot, settings, audience.network), Drains(snapshot, settings)
    services = [_local(offers.local(key), key, audience) for key in snapshot.services]
    tunnels: set[ClusterName] = set()
    for key, of_members in offers.all().items():
        services.extend(_mesh_wide(snapshot, key, of_members, audience, drains=drains))
        tunnels.update(offer.cluster for offer in of_members if offer.reach.path is Path.TUNNEL)
    return MeshView(
        domain=settings.domain,
        audience=audience,
        services=tuple(sorted(services, key=lambda service: (service.host, service.ports))),
        peers=tuple(ResolvedPeer(name, offers.reached[name].gateways) for name in sorted(tunnels)),
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
