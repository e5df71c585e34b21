"""What a control plane says about itself, made from its picture and its proxies. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

from federation.model import (
    ClusterSettings,
    Endpoint,
    GatewayAddress,
    Liveness,
    MemberCluster,
    NetworkName,
    ServicePort,
)
from federation.names import host_port
from federation.peering.peers import PeerStatus
from federation.reports import (
    ClusterReport,
    PlaceReport,
    ProxyReport,
    RejectionReport,
    ServiceReport,
    TypeReport,
)
from federation.snapshot import Snapshot
from federation.telemetry import Gauges
from federation.xds.ads import ProxyStatus
from federation.xds.resources import TypeUrl
from trust import joining
from trust.spiffe import ClusterName, spiffe_id

INTRODUCED_BY_ROOT = "root"
"""Stands in `MemberCluster.introduced_by` for a member that was named in this cluster's grant."""


def introduction(settings: ClusterSettings) -> joining.Introduction:
    """Returns how this cluster introduces itself to the operator of the root and to members."""
    return joining.Introduction(
        name=settings.name,
        network=settings.network,
        region=settings.region,
        cloud=settings.cloud,
        zones=settings.zones,
        gateways=tuple(joining.GatewayAddress(gateway.address, gateway.port) for gateway in settings.gateways),
    )


def introduced_member(introduced: joining.Introduction) -> MemberCluster:
    """Returns a member as the root introduced it: hearsay until it speaks for itself."""
    return MemberCluster(
        name=introduced.name,
        network=NetworkName(introduced.network),
        region=introduced.region,
        gateways=tuple(GatewayAddress(gateway.address, gateway.port) for gateway in introduced.gateways),
        cloud=introduced.cloud,
        zones=introduced.zones,
        introduced_by=INTRODUCED_BY_ROOT,
    )


def cluster_reports(
    snapshot: Snapshot, settings: ClusterSettings, peers: Sequence[PeerStatus]
) -> tuple[ClusterReport, ...]:
    """Returns all members by name. `peers` is what this replica hears by itself: nothing unless it leads."""
    own = ClusterReport(
        name=settings.name,
        is_self=True,
        network=settings.network,
        region=settings.region,
        cloud=settings.cloud,
        zones=settings.zones,
        gateways=_gateways(settings.gateways),
        state=Liveness.LIVE,
        since=None,
        heard=None,
        exports=len(snapshot.exports.keys() & snapshot.services.keys()),
    )
    heard = {peer.peer: peer for peer in peers}
    counts = Counter(cluster for cluster, _ in snapshot.imports)
    others = [
        _cluster_report(member, snapshot, counts[name], settings, heard.get(name))
        for name, member in snapshot.members.items()
        if name != settings.name
    ]
    return tuple(sorted([own, *others], key=lambda report: report.name))


def service_reports(snapshot: Snapshot, settings: ClusterSettings) -> tuple[ServiceReport, ...]:
    """Returns all services that this cluster knows, by namespace and name."""
    keys = snapshot.services.keys() | {key for _, key in snapshot.imports}
    reports = []
    for key in sorted(keys):
        local = snapshot.services.get(key)
        ports: dict[int, ServicePort] = {port.number: port for port in local.ports} if local else {}
        places = _places(settings.name, snapshot.endpoints.get(key, ()), settings.region)
        for (cluster, imported), exported in sorted(snapshot.imports.items()):
            if imported == key:
                member = snapshot.members.get(cluster)
                ports = {port.number: port for port in exported.ports} | ports
                places += _places(cluster, exported.endpoints, member.region if member else "")
        reports.append(
            ServiceReport(
                namespace=key.namespace,
                name=key.name,
                ports=tuple(f"{number}/{port.protocol}" for number, port in sorted(ports.items())),
                is_local=local is not None,
                is_exported=local is not None and key in snapshot.exports,
                places=tuple(places),
            )
        )
    return tuple(reports)


def proxy_report(proxy: ProxyStatus, settings: ClusterSettings, replica: str) -> ProxyReport:
    """Returns what one proxy on a stream has and has not."""
    return ProxyReport(
        node=proxy.node,
        role=proxy.scope.audience.role,
        identity=spiffe_id(proxy.scope.identity, settings.domain),
        replica=replica,
        connected_since=proxy.connected_since,
        offered_revision=proxy.offered_revision,
        acknowledged_revision=proxy.acknowledged_revision,
        acknowledged_at=proxy.acknowledged_at,
        is_in_step=is_in_step(proxy),
        types=tuple(
            TypeReport(
                type=short_type(one.type_url),
                acknowledged=one.acknowledged,
                pushes=one.pushes,
                stalled_since=one.stalled_since,
            )
            for one in proxy.types
        ),
        rejections=tuple(
            RejectionReport(type=short_type(one.type_url), name=bad.name, message=bad.message, since=bad.since)
            for one in proxy.types
            for bad in one.rejected
        ),
    )


def is_in_step(proxy: ProxyStatus) -> bool:
    """Says whether a proxy has taken the newest picture that it was offered, all of it."""
    is_taken = 0 < proxy.offered_revision <= proxy.acknowledged_revision
    return is_taken and not any(one.rejected or one.stalled_since for one in proxy.types)


def gauges(
    snapshot: Snapshot,
    proxies: Sequence[ProxyStatus],
    *,
    settings: ClusterSettings,
    is_leading: bool,
    certificate_expires: datetime | None,
    now: datetime,
) -> Gauges:
    """Returns what is measured at a scrape."""
    return Gauges(
        revision=snapshot.revision,
        is_leading=is_leading,
        certificate_left=(certificate_expires - now).total_seconds() if certificate_expires else 0.0,
        proxies=Counter(proxy.scope.audience.role.value for proxy in proxies),
        proxies_in_step=Counter(proxy.scope.audience.role.value for proxy in proxies if is_in_step(proxy)),
        rejections=Counter(short_type(one.type_url) for proxy in proxies for one in proxy.types for _ in one.rejected),
        peers=_peers_by_state(snapshot, settings.name),
        findings=Counter(finding.severity.value for found in snapshot.findings.values() for finding in found),
        objects={
            "service": len(snapshot.services),
            "export": len(snapshot.exports),
            "pod": len(snapshot.pods),
            "import": len(snapshot.imports),
            "member": len(snapshot.members),
        },
    )


def short_type(type_url: TypeUrl) -> str:
    """Returns the last part of a type's name: `ClusterLoadAssignment`."""
    return type_url.value.rpartition(".")[2]


def _cluster_report(
    member: MemberCluster, snapshot: Snapshot, exports: int, settings: ClusterSettings, heard: PeerStatus | None
) -> ClusterReport:
    freshness = snapshot.freshness.get(member.name)
    return ClusterReport(
        name=member.name,
        is_self=False,
        network=member.network,
        region=member.region,
        cloud=member.cloud,
        zones=member.zones,
        gateways=_gateways(settings.peer_gateways.get(member.name, member.gateways)),
        state=freshness.state if freshness else Liveness.UNKNOWN,
        since=freshness.since if freshness else None,
        heard=_later(heard.heard if heard else None, freshness.heard if freshness else None),
        exports=exports,
        introduced_by=member.introduced_by,
        via=heard.via if heard else "",
        problem=heard.problem if heard else "",
        rejected=tuple(f"{bad.resource}: {bad.message}" for bad in heard.rejections) if heard else (),
    )


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max(one, other) if one and other else one or other


def _gateways(addresses: Sequence[GatewayAddress]) -> tuple[str, ...]:
    return tuple(host_port(gateway.address, gateway.port) for gateway in addresses)


def _places(cluster: ClusterName, endpoints: Sequence[Endpoint], default_region: str) -> list[PlaceReport]:
    counts = Counter((one.locality.region or default_region, one.locality.zone) for one in endpoints)
    return [PlaceReport(cluster, region, zone, count) for (region, zone), count in sorted(counts.items())]


def _peers_by_state(snapshot: Snapshot, own: ClusterName) -> Mapping[str, int]:
    counts = dict.fromkeys(Liveness, 0)
    for name in snapshot.members.keys() - {own}:
        freshness = snapshot.freshness.get(name)
        counts[freshness.state if freshness else Liveness.UNKNOWN] += 1
    return {state.value: count for state, count in counts.items()}
