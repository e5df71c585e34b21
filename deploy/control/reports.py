"""What a control plane says about itself, made from its picture and its proxies. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from deploy.control.identity import REVOKED
from deploy.control.trust_warnings import Standing, certificates_left, trust_warnings
from federation.model import (
    ClusterSettings,
    GatewayAddress,
    Liveness,
    MemberCluster,
    NetworkName,
)
from federation.names import host_port
from federation.peering.exports import own_member
from federation.peering.offer import ListenerStatus
from federation.peering.peers import PeerStatus
from federation.peering.visibility import labels_of
from federation.reports import (
    ClusterReport,
    DrainReport,
    ProxyReport,
    RejectionReport,
    RevocationOrigin,
    ServiceLoad,
    TypeReport,
)
from federation.snapshot import Snapshot
from federation.telemetry import Gauges
from federation.xds.ads import ProxyStatus
from federation.xds.resources import TypeUrl
from trust import joining
from trust.audit import AuditEvent
from trust.bundle import Revocation
from trust.spiffe import CONTROL_ACCOUNT, GATEWAY_ACCOUNT, SYSTEM_NAMESPACE, ClusterName, spiffe_id
from trust.statements import TrustStatement

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
    snapshot: Snapshot,
    settings: ClusterSettings,
    *,
    peers: Sequence[PeerStatus],
    listeners: Sequence[ListenerStatus],
    drains: Sequence[DrainReport],
) -> tuple[ClusterReport, ...]:
    """Returns all members by name.

    `peers` is what this replica hears by itself: nothing unless it leads; `listeners` are the peers that listen to it;
    `drains` are all that are in force here.
    """
    drained: dict[str, list[DrainReport]] = {}
    for drain in drains:
        drained.setdefault(drain.cluster, []).append(drain)
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
        revoked=_why_revoked(snapshot, settings.name),
        labels=labels_of(own_member(settings)),
        drains=tuple(drained.get(settings.name, ())),
        left=_left(snapshot, settings.name),
    )
    heard = {peer.peer: peer for peer in peers}
    listening: dict[ClusterName, list[ListenerStatus]] = {}
    for listener in listeners:
        listening.setdefault(listener.peer, []).append(listener)
    counts = Counter(cluster for cluster, _ in snapshot.imports)
    others = [
        msgspec.structs.replace(
            _cluster_report(member, snapshot, counts[name], settings, heard.get(name)),
            drains=tuple(drained.get(name, ())),
            refuses=_refuses(listening.get(name, ())),
            listens_since=min((one.since for one in listening.get(name, ())), default=None),
        )
        for name, member in snapshot.members.items()
        if name != settings.name
    ]
    return tuple(sorted([own, *others], key=lambda report: report.name))


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
    standing: Standing | None,
    problems: Mapping[str, int],
    drains: Iterable[DrainReport],
    loads: Iterable[ServiceLoad],
    now: datetime,
) -> Gauges:
    """Returns what is measured at a scrape; `standing` is None before the cluster has joined."""
    revocations = Counter(revoked_by(snapshot, one.subject).value for one in all_revoked(snapshot))
    return Gauges(
        revision=snapshot.revision,
        is_leading=is_leading,
        certificate_left=certificates_left(standing, now) if standing else {},
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
        trust_sequence=standing.bundle.sequence if standing else 0,
        trust_warnings=len(trust_warnings(standing, now)) if standing else 0,
        trust_proxies=trust_proxies(standing.statement) if standing else {},
        revocations={origin.value: revocations[origin.value] for origin in RevocationOrigin},
        problems=problems,
        drains={"cluster": 0, "service": 0} | Counter("service" if drain.service else "cluster" for drain in drains),
        open=_open_by_member(loads),
    )


def all_revoked(snapshot: Snapshot) -> tuple[Revocation, ...]:
    """Returns who is revoked, by subject: also the own cluster, which is not revoked for itself."""
    signed = {one.subject: one for trust in snapshot.trust.values() for one in trust.bundle.revoked}
    found = signed | {one.subject: one for one in snapshot.revoked}
    return tuple(found[subject] for subject in sorted(found))


def revoked_by(snapshot: Snapshot, subject: str) -> RevocationOrigin:
    """Returns by whose word a subject of `snapshot.revoked` is revoked; the root's counts before our own."""
    signed = (one.subject for trust in snapshot.trust.values() for one in trust.bundle.revoked)
    return RevocationOrigin.ROOT if subject in signed else RevocationOrigin.CLUSTER


def trust_proxies(statement: TrustStatement) -> Mapping[str, int]:
    """Returns how many proxies have taken what of the mesh's trust, by metric label; "waiting" lack some of it."""
    least = min(statement.trusting, statement.renewed, statement.enforcing)
    return {
        "trusting": statement.trusting,
        "renewed": statement.renewed,
        "enforcing": statement.enforcing,
        "waiting": statement.proxies - least,
    }


def issued_to(subject: str) -> str:
    """Returns for whom a certificate is, by its SPIFFE id, as metric label."""
    for account in (CONTROL_ACCOUNT, GATEWAY_ACCOUNT):
        if subject.endswith(f"/ns/{SYSTEM_NAMESPACE}/sa/{account}"):
            return account
    return "sidecar"


def refused_because(event: AuditEvent) -> str:
    """Returns why a certificate was not made, as metric label: one of four words."""
    if event.reason == REVOKED:
        return "revoked"
    if event.authority:
        return "authority"
    return "proof" if event.proof else "stranger"


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
        revoked=_why_revoked(snapshot, member.name),
        labels=labels_of(member),
        left=_left(snapshot, member.name),
    )


def _refuses(listeners: Sequence[ListenerStatus]) -> tuple[str, ...]:
    said = {f"{resource}: {message}" for one in listeners for resource, message in one.rejections}
    return tuple(sorted(said))


def _left(snapshot: Snapshot, cluster: ClusterName) -> datetime | None:
    departure = snapshot.departures.get(cluster)
    return departure.at if departure else None


def _why_revoked(snapshot: Snapshot, cluster: ClusterName) -> str:
    """Returns who revoked a whole cluster and why; empty when nobody did."""
    for one in all_revoked(snapshot):
        if one.cluster == cluster and not one.account:
            return f"by the {revoked_by(snapshot, one.subject)}" + (f": {one.reason}" if one.reason else "")
    return ""


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max(one, other) if one and other else one or other


def _gateways(addresses: Sequence[GatewayAddress]) -> tuple[str, ...]:
    return tuple(host_port(gateway.address, gateway.port) for gateway in addresses)


def _open_by_member(loads: Iterable[ServiceLoad]) -> Mapping[str, int]:
    counts: Counter[str] = Counter()
    for load in loads:
        counts[load.member] += load.open
    return counts


def _peers_by_state(snapshot: Snapshot, own: ClusterName) -> Mapping[str, int]:
    counts = dict.fromkeys(Liveness, 0)
    for name in snapshot.members.keys() - {own}:
        freshness = snapshot.freshness.get(name)
        counts[freshness.state if freshness else Liveness.UNKNOWN] += 1
    return {state.value: count for state, count in counts.items()}
