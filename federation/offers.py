"""Who offers a service, as far as it is believed here, and how each of them is reached. Pure.

Left out are members that are revoked, that left the mesh, or that have been silent until they count as gone. One that
cannot be reached (another network and no gateway, or none that is believed) offers nothing either, but its word counts
where exports contradict each other: all members must come to the same result, wherever they are.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from enum import StrEnum

import msgspec

from federation.model import (
    EPOCH,
    ClusterSettings,
    Endpoint,
    GatewayAddress,
    Liveness,
    MemberCluster,
    NetworkName,
    ServiceKey,
    ServicePort,
)
from federation.revoked import Revoked
from federation.snapshot import Snapshot
from trust.spiffe import ClusterName, gateway_identity


class Path(StrEnum):
    """How an endpoint is reached: its own address, or a tunnel through its cluster's gateways."""

    DIRECT = "direct"
    TUNNEL = "tunnel"


class Reach(msgspec.Struct, frozen=True):
    """A member that is believed; `path` is None when it cannot be reached. `gateways` are where its are reached."""

    member: MemberCluster
    path: Path | None
    gateways: tuple[GatewayAddress, ...] = ()
    is_stale: bool = False
    is_own: bool = False


class Offer(msgspec.Struct, frozen=True):
    """What one member offers under a service name, since `exported_at`. No endpoint is revoked."""

    reach: Reach
    ports: tuple[ServicePort, ...]
    endpoints: tuple[Endpoint, ...]
    exported_at: datetime = EPOCH

    @property
    def cluster(self) -> ClusterName:
        return self.reach.member.name


class Offers:
    """The offers of one picture, as they are seen from `network`."""

    def __init__(self, snapshot: Snapshot, settings: ClusterSettings, network: NetworkName) -> None:
        self._snapshot = snapshot
        self._revoked = Revoked(snapshot.revoked)
        self._own = Reach(_own_record(settings), Path.DIRECT, is_own=True)
        self.reached: Mapping[ClusterName, Reach] = {
            reach.member.name: reach for reach in _believed(snapshot, settings, network, self._revoked)
        }
        """The other members that are believed, by name."""

    def local(self, key: ServiceKey) -> Offer:
        """Returns what this cluster has under a service name; raises KeyError when it has no such service."""
        snapshot = self._snapshot
        ports = tuple(sorted(_visible(port) for port in snapshot.services[key].ports))
        endpoints = self._revoked.spare(snapshot.endpoints.get(key, ()), cluster=self._own.member.name, key=key)
        return Offer(self._own, ports, endpoints, exported_since(snapshot, key))

    def of(self, key: ServiceKey) -> list[Offer]:
        """Returns who exports a service, this cluster too, by name."""
        snapshot = self._snapshot
        found = [self.local(key)] if key in snapshot.exports and key in snapshot.services else []
        found += [offer for reach in self.reached.values() if (offer := self._imported(reach, key))]
        return sorted(found, key=lambda offer: offer.cluster)

    def all(self) -> Mapping[ServiceKey, list[Offer]]:
        """Returns who exports what, this cluster too; each service's by name."""
        snapshot = self._snapshot
        found = {key: [self.local(key)] for key in snapshot.exports.keys() & snapshot.services.keys()}
        for cluster, key in snapshot.imports:
            reach = self.reached.get(cluster)
            if reach is not None and (offer := self._imported(reach, key)):
                found.setdefault(key, []).append(offer)
        for offers in found.values():
            offers.sort(key=lambda offer: offer.cluster)
        return found

    def _imported(self, reach: Reach, key: ServiceKey) -> Offer | None:
        exported = self._snapshot.imports.get((reach.member.name, key))
        if exported is None:
            return None
        endpoints = self._revoked.spare(exported.endpoints, cluster=exported.cluster, key=key) if reach.path else ()
        return Offer(reach, exported.ports, endpoints, exported.exported_at)


def exported_since(snapshot: Snapshot, key: ServiceKey) -> datetime:
    """Returns since when this cluster exports a service, as it tells the others; EPOCH when it has told nobody yet."""
    export = snapshot.exports.get(key)
    created = export.created if export is not None else None
    return created or snapshot.published.get(key, EPOCH)


def _believed(snapshot: Snapshot, settings: ClusterSettings, network: NetworkName, revoked: Revoked) -> Iterator[Reach]:
    if settings.name in snapshot.departures:
        return  # this cluster has left: it sees itself alone
    for name, member in snapshot.members.items():
        if name == settings.name or name in revoked.clusters or _has_left(snapshot, member):
            continue
        freshness = snapshot.freshness.get(name)
        state = freshness.state if freshness is not None else Liveness.UNKNOWN
        if state is Liveness.GONE:
            continue
        gateways = settings.peer_gateways.get(name, member.gateways)
        path = None
        if member.network == network:
            path = Path.DIRECT
        elif gateways and not revoked.covers(gateway_identity(name)):
            path = Path.TUNNEL
        yield Reach(member, path, gateways, state is Liveness.STALE)


def _has_left(snapshot: Snapshot, member: MemberCluster) -> bool:
    # Only a member itself may say that it left.
    return member.name in snapshot.departures or (member.has_left and not member.introduced_by)


def _own_record(settings: ClusterSettings) -> MemberCluster:
    return MemberCluster(
        name=settings.name,
        network=settings.network,
        region=settings.region,
        gateways=settings.gateways,
        cloud=settings.cloud,
        zones=settings.zones,
    )


def _visible(port: ServicePort) -> ServicePort:
    # What a caller may depend on: the pod's own port is the business of the sidecar beside it.
    return ServicePort(port.number, port.protocol, port.name)
