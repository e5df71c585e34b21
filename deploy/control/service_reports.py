"""What a control plane says about services: who exports them, who sees them, and what their exports lack. Pure.

The conditions of a ServiceExport have the types and reasons of the MCS API, v1beta1 (KEP-1645).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from federation.conflicts import PortConflict, conflicts
from federation.model import (
    EPOCH,
    ClusterSettings,
    Endpoint,
    ExportedService,
    Liveness,
    ServiceKey,
    ServicePolicy,
    ServicePort,
    WhenStale,
)
from federation.offers import exported_since
from federation.peering.visibility import seen_by
from federation.reports import ConditionReport, ExporterReport, PlaceReport, ServiceReport
from federation.snapshot import Snapshot
from federation.spans import print_span
from trust.spiffe import ClusterName

_YES, _NO = "True", "False"


def service_reports(
    snapshot: Snapshot, settings: ClusterSettings, unoffered: Mapping[ServiceKey, str]
) -> tuple[ServiceReport, ...]:
    """Returns all services that this cluster knows, by namespace and name.

    `unoffered` says of own exports that cannot be offered as they are why not.
    """
    imports: dict[ServiceKey, list[ExportedService]] = {}
    for _, exported in sorted(snapshot.imports.items()):
        imports.setdefault(exported.key, []).append(exported)
    keys = snapshot.services.keys() | snapshot.exports.keys() | imports.keys()
    return tuple(_report(snapshot, settings, key, imports.get(key, ()), unoffered.get(key, "")) for key in sorted(keys))


def _report(
    snapshot: Snapshot, settings: ClusterSettings, key: ServiceKey, imports: Sequence[ExportedService], why_not: str
) -> ServiceReport:
    local = snapshot.services.get(key)
    is_exported = local is not None and key in snapshot.exports
    ports: dict[int, ServicePort] = {port.number: port for port in local.ports} if local else {}
    places = _places(settings.name, snapshot.endpoints.get(key, ()), settings.region)
    for exported in imports:
        member = snapshot.members.get(exported.cluster)
        ports = {port.number: port for port in exported.ports} | ports
        places += _places(exported.cluster, exported.endpoints, member.region if member else "")
    others = frozenset(snapshot.members) - {settings.name}
    seers = seen_by(snapshot, settings, key) if is_exported else frozenset()
    return ServiceReport(
        namespace=key.namespace,
        name=key.name,
        ports=_ports(ports.values()),
        is_local=local is not None,
        is_exported=is_exported,
        places=tuple(places),
        exporters=_exporters(snapshot, settings, key, imports),
        visible_to=tuple(sorted(others if seers is None else seers)),
        conditions=_conditions(snapshot, settings, key, why_not),
        policy=_policy(snapshot.policies.get(key, ServicePolicy())),
    )


def _exporters(
    snapshot: Snapshot, settings: ClusterSettings, key: ServiceKey, imports: Sequence[ExportedService]
) -> tuple[ExporterReport, ...]:
    found = []
    if key in snapshot.exports and key in snapshot.services:
        since = exported_since(snapshot, key)
        found.append(
            ExporterReport(
                cluster=settings.name,
                since=None if since == EPOCH else since,
                ports=_ports(snapshot.services[key].ports),
                endpoints=len(snapshot.endpoints.get(key, ())),
                state=Liveness.LIVE,
            )
        )
    for exported in imports:
        freshness = snapshot.freshness.get(exported.cluster)
        found.append(
            ExporterReport(
                cluster=exported.cluster,
                since=None if exported.exported_at == EPOCH else exported.exported_at,
                ports=_ports(exported.ports),
                endpoints=len(exported.endpoints),
                state=freshness.state if freshness else Liveness.UNKNOWN,
            )
        )
    return tuple(sorted(found, key=lambda one: one.cluster))


def _conditions(
    snapshot: Snapshot, settings: ClusterSettings, key: ServiceKey, why_not: str
) -> tuple[ConditionReport, ...]:
    if key not in snapshot.exports:
        return ()
    if key not in snapshot.services:
        missing = f"there is no Service {key}"
        return (
            ConditionReport("Valid", _NO, "NoService", missing),
            ConditionReport("Ready", _NO, "Pending", missing),
        )
    found = conflicts(snapshot, settings, key)
    return (
        ConditionReport("Valid", _YES, "Valid"),
        ConditionReport("Ready", _NO, "Failed", why_not) if why_not else ConditionReport("Ready", _YES, "Exported"),
        ConditionReport("Conflict", _YES, "PortConflict", "; ".join(map(_told, found)))
        if found
        else ConditionReport("Conflict", _NO, "NoConflicts"),
    )


def _told(conflict: PortConflict) -> str:
    losers = ", ".join(f"{cluster} ({_port(port)})" for cluster, port in conflict.losers)
    return (
        f"port {conflict.port.number} is {_port(conflict.port)}, as {conflict.winner}, the oldest export, says; "
        f"it does not lead to {losers}"
    )


def _port(port: ServicePort) -> str:
    return f"{port.protocol} {port.name!r}" if port.name else f"{port.protocol} without a name"


def _policy(policy: ServicePolicy) -> tuple[str, ...]:
    """Returns what is not as it is by default."""
    words = []
    match policy.when_stale:
        case WhenStale.KEEP:
            pass
        case WhenStale.DROP:
            words.append(f"drop after {print_span(policy.drop_after)}")
        case WhenStale.PREFER_LOCAL:
            words.append("prefer local when stale")
    if policy.weights:
        words.append(", ".join(f"{cluster}={weight}" for cluster, weight in policy.weights))
    return tuple(words)


def _ports(ports: Iterable[ServicePort]) -> tuple[str, ...]:
    return tuple(f"{port.number}/{port.protocol}" for port in sorted(ports, key=lambda port: port.number))


def _places(cluster: ClusterName, endpoints: Sequence[Endpoint], default_region: str) -> list[PlaceReport]:
    counts = Counter((one.locality.region or default_region, one.locality.zone) for one in endpoints)
    return [PlaceReport(cluster, region, zone, count) for (region, zone), count in sorted(counts.items())]
