"""One picture of the mesh: a frozen value, and how a change makes the next one. Pure.

Sources and the etcd copy describe the world in sections; each section has one writer. What follows from several
sections (which ready pods stand behind a service) is derived here, once, and only where a change can have mattered.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from federation.model import (
    Departure,
    Drain,
    Endpoint,
    ExportedService,
    Finding,
    Freshness,
    MemberCluster,
    Pod,
    PodKey,
    Service,
    ServiceExport,
    ServiceKey,
    ServicePolicy,
    Severance,
    Trust,
)
from trust.bundle import Revocation
from trust.spiffe import ClusterName, Namespace

_K = TypeVar("_K")


class Section(StrEnum):
    """The parts of the picture, named as the fields of Snapshot that hold them."""

    SERVICES = "services"
    EXPORTS = "exports"
    PODS = "pods"
    FINDINGS = "findings"
    MEMBERS = "members"
    IMPORTS = "imports"
    FRESHNESS = "freshness"
    TRUST = "trust"
    REVOCATIONS = "revocations"
    POLICIES = "policies"
    DRAINS = "drains"
    SEVERANCES = "severances"
    DEPARTURES = "departures"
    SILENCES = "silences"
    VOUCHED = "vouched"
    PUBLISHED = "published"


class Change(msgspec.Struct, frozen=True):
    """Replaces the value of a key; None deletes it. Applying a change twice is applying it once."""

    section: Section
    key: Hashable
    value: object | None


class Replace(msgspec.Struct, frozen=True):
    """A new listing of a whole section: the only thing that deletes what it does not name."""

    section: Section
    values: Mapping[Any, Any]


TRUST_KEY = ""
"""The one key of Section.TRUST."""
VOUCHED_KEY = ""
"""The one key of Section.VOUCHED."""

_NOTHING: Mapping[Any, Any] = MappingProxyType({})


class Snapshot(msgspec.Struct, frozen=True):
    """The picture at one revision. The mappings are never changed.

    `trust` has at most one value, under TRUST_KEY; `revocations` and `drains` are those of this cluster's own admin, by
    subject, and by member and service; `severances` say by the same when what was open to this cluster was made to end.
    `silences` says of members that are silent which of the spans that matter to some policy has passed, the longest;
    `vouched` counts, under VOUCHED_KEY, how often this control plane has confirmed endpoints that must not outlive its
    word. `published` says since when this cluster exports what, as it tells others.
    `endpoints` follows from services and pods, `revoked` (who is believed no longer,
    sorted by subject, never the own cluster as a whole) from trust and revocations.
    """

    revision: int = 0
    services: Mapping[ServiceKey, Service] = _NOTHING
    exports: Mapping[ServiceKey, ServiceExport] = _NOTHING
    pods: Mapping[PodKey, Pod] = _NOTHING
    findings: Mapping[str, tuple[Finding, ...]] = _NOTHING
    endpoints: Mapping[ServiceKey, tuple[Endpoint, ...]] = _NOTHING
    members: Mapping[ClusterName, MemberCluster] = _NOTHING
    imports: Mapping[tuple[ClusterName, ServiceKey], ExportedService] = _NOTHING
    freshness: Mapping[ClusterName, Freshness] = _NOTHING
    trust: Mapping[str, Trust] = _NOTHING
    revocations: Mapping[str, Revocation] = _NOTHING
    policies: Mapping[ServiceKey, ServicePolicy] = _NOTHING
    drains: Mapping[tuple[ClusterName, ServiceKey | None], Drain] = _NOTHING
    severances: Mapping[tuple[ClusterName, ServiceKey | None], Severance] = _NOTHING
    departures: Mapping[ClusterName, Departure] = _NOTHING
    silences: Mapping[ClusterName, timedelta] = _NOTHING
    vouched: Mapping[str, int] = _NOTHING
    published: Mapping[ServiceKey, datetime] = _NOTHING
    revoked: tuple[Revocation, ...] = ()


EMPTY = Snapshot()


def apply(snapshot: Snapshot, changes: Sequence[Change | Replace]) -> Snapshot:
    """Returns the next picture, or the very same object when nothing changed.

    That members were heard again, who were heard before, does not make a new revision: nothing follows from it, and it
    is said of each of them every few seconds.
    """
    sections: dict[Section, dict[Any, Any]] = {}
    touched: dict[Section, set[Any]] = {}
    for change in changes:
        before = _section(snapshot, change.section)
        match change:
            case Change(section=section, key=key, value=value):
                if section not in sections:
                    if before.get(key) == value:
                        continue
                    sections[section], touched[section] = dict(before), set()
                touched[section].add(key)
                if value is None:
                    sections[section].pop(key, None)
                else:
                    sections[section][key] = value
            case Replace(section=section, values=values):
                sections[section], touched[section] = dict(values), {*before, *values}
    changed = {
        section.value: values
        for section, values in sections.items()
        if _keep_equal(_section(snapshot, section), values, touched[section])
    }
    if not changed:
        return snapshot
    if changed.keys() == {Section.FRESHNESS.value} and not _is_news(
        snapshot.freshness, changed[Section.FRESHNESS.value]
    ):
        return msgspec.structs.replace(snapshot, **changed)
    following = msgspec.structs.replace(snapshot, revision=snapshot.revision + 1, **changed)
    endpoints, revoked = _derive_endpoints(snapshot, following), _derive_revoked(snapshot, following)
    if endpoints == snapshot.endpoints and revoked == snapshot.revoked:
        return following
    return msgspec.structs.replace(following, endpoints=endpoints, revoked=revoked)


def differing(before: Mapping[_K, Any], after: Mapping[_K, Any]) -> list[_K]:
    """Returns the keys whose values are not the same object; of two pictures in a row, equal values are."""
    if before is after:
        return []
    found = [key for key, value in after.items() if before.get(key) is not value]
    if found or len(before) != len(after):
        found += [key for key in before if key not in after]
    return found


def selects(service: Service, pod: Pod) -> bool:
    """Says whether the service's selector matches the pod; an empty selector matches nothing (Kubernetes)."""
    return (
        bool(service.selector)
        and service.key.namespace == pod.key.namespace
        and set(service.selector) <= set(pod.labels)
    )


def resolve_target(target: int | str, number: int, pod: Pod) -> int | None:
    """Returns the pod's own port for a service port; None when the pod has no port of that name."""
    match target:
        case int():
            return target or number
        case str():
            return dict(pod.ports).get(target)


def _is_news(before: Mapping[ClusterName, Freshness], after: Mapping[ClusterName, Freshness]) -> bool:
    """Says whether more has changed than when members were last heard."""
    if before.keys() != after.keys():
        return True
    return any(
        one is not before[name]
        and msgspec.structs.replace(one, heard=None) != msgspec.structs.replace(before[name], heard=None)
        for name, one in after.items()
    )


def _section(snapshot: Snapshot, section: Section) -> Mapping[Any, Any]:
    values: Mapping[Any, Any] = getattr(snapshot, section.value)
    return values


def _keep_equal(before: Mapping[Any, Any], after: dict[Any, Any], touched: Iterable[Any]) -> bool:
    """Puts the object from before in the place of each equal one, and says whether anything else was touched.

    So whoever compares by identity sees only what changed, and one change among thousands of values is no comparison
    of them all.
    """
    is_changed = False
    for key in touched:
        if key in after and key in before and before[key] == after[key]:
            after[key] = before[key]
        elif key in after or key in before:
            is_changed = True
    return is_changed


def _derive_endpoints(before: Snapshot, after: Snapshot) -> Mapping[ServiceKey, tuple[Endpoint, ...]]:
    if before.services is after.services and before.pods is after.pods:
        return after.endpoints
    touched = set(differing(before.services, after.services))
    for pod_key in differing(before.pods, after.pods):
        pods = [snapshot.pods[pod_key] for snapshot in (before, after) if pod_key in snapshot.pods]
        touched.update(key for key, service in after.services.items() if any(selects(service, pod) for pod in pods))
    endpoints = {key: value for key, value in before.endpoints.items() if key not in touched}
    by_namespace = _pods_by_namespace(after.pods.values(), {key.namespace for key in touched})
    for key in touched & after.services.keys():
        service = after.services[key]
        endpoints[key] = tuple(
            sorted(
                _endpoint(pod)
                for pod in by_namespace.get(key.namespace, ())
                if pod.ready and pod.address and selects(service, pod)
            )
        )
    return endpoints


def _derive_revoked(before: Snapshot, after: Snapshot) -> tuple[Revocation, ...]:
    if before.trust is after.trust and before.revocations is after.revocations:
        return after.revoked
    by_subject = dict(after.revocations)
    trust = after.trust.get(TRUST_KEY)
    for one in trust.bundle.revoked if trust else ():
        own = by_subject.get(one.subject)
        # What the root said stands: a cluster may only be stricter.
        by_subject[one.subject] = one if own is None or one.sever or not own.sever else own
    if trust:
        # That a cluster as a whole is not to be believed is for the others: it goes on alone.
        by_subject.pop(trust.cluster, None)
    return tuple(by_subject[subject] for subject in sorted(by_subject))


def _pods_by_namespace(pods: Iterable[Pod], wanted: set[Namespace]) -> dict[Namespace, list[Pod]]:
    grouped: dict[Namespace, list[Pod]] = {}
    for pod in pods:
        if pod.key.namespace in wanted:
            grouped.setdefault(pod.key.namespace, []).append(pod)
    return grouped


def _endpoint(pod: Pod) -> Endpoint:
    return Endpoint(
        address=pod.address, pod=pod.key.name, account=pod.account, locality=pod.locality, labels=pod.labels
    )
