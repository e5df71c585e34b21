"""What the admin API answers about drains: which members calls are to leave, asked for here.

Asked of the drained member itself, a drain is for the whole mesh: its record tells it to everybody. Asked of another
one, whose admin can do no more, it is for the calls of that cluster alone.
"""

import difflib
import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import msgspec

from federation.admin import AdminRefused, DrainOrder
from federation.drains import kept_services
from federation.etcd import EtcdClient, EtcdError, Operation, Put
from federation.model import ClusterSettings, Drain, ServiceKey, Severance
from federation.names import drain_key, severance_key
from federation.peering.checks import MOST_DRAINS, Malformed
from federation.peering.decisions import decide, take_back
from federation.peering.exports import decode_drain, encode
from federation.reports import DrainReport
from federation.snapshot import Change, Section, Snapshot, apply
from federation.store import MeshStore
from trust.audit import AuditEvent, AuditKind
from trust.spiffe import ClusterName, Namespace

log = logging.getLogger(__name__)

_WEIGHTS = range(100)


class DrainBackend:
    """Keeps the drains that this cluster's admin asks for in etcd; the picture gets them from there."""

    def __init__(
        self, settings: ClusterSettings, *, store: MeshStore, etcd: EtcdClient, on_event: Callable[[AuditEvent], None]
    ) -> None:
        self._settings = settings
        self._store = store
        self._etcd = etcd
        self._on_event = on_event

    def drains(self) -> tuple[DrainReport, ...]:
        """Returns the drains in force here: asked of this cluster, or said by the drained members themselves."""
        return drain_reports(self._store.snapshot, self._settings)

    async def drain(self, order: DrainOrder, *, asked_by: str) -> tuple[DrainReport, ...]:
        """Begins a drain, or changes one; returns those in force then. Raises AdminRefused.

        With `sever`, what is open to this cluster is made to end when it gets nothing any more: once for each drain.
        """
        snapshot = self._store.snapshot
        if order.weight not in _WEIGHTS:
            raise AdminRefused(
                f"a drained member keeps 0 to 99 percent of its calls, not {order.weight}",
                "`isthmus undrain` gives it all of them back",
                status=400,
            )
        cluster = _known_cluster(order.cluster, snapshot, self._settings)
        service = _known_service(order.service, cluster, snapshot, self._settings) if order.service else None
        held = await self._held(cluster, service)
        if held is None and sum(of == cluster for of, _ in snapshot.drains) >= MOST_DRAINS:
            raise AdminRefused(
                f"{MOST_DRAINS} services of {cluster} are drained already, and no more may be",
                f"drain all of it: `isthmus drain {cluster}`",
                status=409,
            )
        now = datetime.now(UTC)
        since = held.since if held else now
        made = Drain(cluster, order.weight, since, service=service, clients=order.clients, sever=order.sever)
        if made == held == snapshot.drains.get((cluster, service)):
            return self.drains()
        key = drain_key(cluster, service)
        writes: list[Operation] = [Put(key, encode(made))]
        if _ends_what_is_open(made) and not (held and _ends_what_is_open(held)) and cluster == self._settings.name:
            severance = Severance(cluster, now, service=service, sidecars=self._reaches_sidecars(made))
            writes.append(Put(severance_key(cluster, service), encode(severance)))
        try:
            await decide(self._etcd, key, *writes)
        except EtcdError as error:
            raise _etcd_away("take the drain", error) from error
        if made != held:
            self._tell(AuditKind.DRAINED, made, asked_by=asked_by, reason=_in_words(made))
        return drain_reports(apply(snapshot, [Change(Section.DRAINS, (cluster, service), made)]), self._settings)

    async def undrain(self, cluster: str, service: str, *, asked_by: str) -> tuple[DrainReport, ...]:
        """Ends a drain that was asked of this cluster; returns those still in force. Raises AdminRefused."""
        snapshot = self._store.snapshot
        name = ClusterName(cluster)
        key = _parse_service(service) if service else None
        held = await self._held(name, key)
        if held is None:
            raise _not_asked_here(name, key, snapshot, self._settings)
        try:
            await take_back(self._etcd, drain_key(name, key))
        except EtcdError as error:
            raise _etcd_away("end the drain", error) from error
        self._tell(AuditKind.UNDRAINED, held, asked_by=asked_by, reason="it gets all of its calls again")
        return drain_reports(apply(snapshot, [Change(Section.DRAINS, (name, key), None)]), self._settings)

    async def _held(self, cluster: ClusterName, service: ServiceKey | None) -> Drain | None:
        """Returns the drain that etcd holds: newer than the picture, when replicas are asked one after another."""
        try:
            found = await self._etcd.get(drain_key(cluster, service))
        except EtcdError as error:
            raise _etcd_away("say what is drained", error) from error
        if found is None:
            return self._store.snapshot.drains.get((cluster, service))
        try:
            return decode_drain(found.value)
        except Malformed:
            return None  # what nobody can read is replaced by anything that can be read

    def _reaches_sidecars(self, drain: Drain) -> bool:
        """Says whether what is open ends at the sidecars: no gateway is on the way, or it knows no services."""
        others = (member for member in self._store.snapshot.members.values() if member.name != self._settings.name)
        is_reached_directly = any(member.network == self._settings.network for member in others)
        return drain.clients or drain.service is not None or is_reached_directly

    def _tell(self, kind: AuditKind, drain: Drain, *, asked_by: str, reason: str) -> None:
        subject = f"{drain.service} of cluster {drain.cluster}" if drain.service else f"cluster {drain.cluster}"
        log.warning("drain changed", extra={"what": kind, "subject": subject, "reason": reason, "by": asked_by})
        self._on_event(AuditEvent(kind=kind, at=datetime.now(UTC), subject=subject, asked_by=asked_by, reason=reason))


def drain_reports(snapshot: Snapshot, settings: ClusterSettings) -> tuple[DrainReport, ...]:
    """Returns the drains in force in a cluster, by member and service: its own admin's, then what members say. Pure."""
    asked_here = [(settings.name, drain) for drain in snapshot.drains.values()]
    told = [
        (member.name, drain)
        for member in snapshot.members.values()
        if member.name != settings.name and not member.introduced_by  # hearsay drains nobody
        for drain in member.drains
    ]
    kept: dict[ClusterName, frozenset[ServiceKey]] = {}
    reports = []
    for asked_of, drain in sorted(
        (*asked_here, *told), key=lambda one: (one[1].cluster, _text(one[1].service), one[0])
    ):
        if drain.cluster not in kept:
            kept[drain.cluster] = _kept(snapshot, settings, drain.cluster)
        of_drain = kept[drain.cluster] if drain.service is None else kept[drain.cluster] & {drain.service}
        reports.append(
            DrainReport(
                cluster=drain.cluster,
                service=_text(drain.service),
                weight=drain.weight,
                clients=drain.clients,
                sever=drain.sever,
                since=drain.since,
                asked_of=asked_of,
                kept=tuple(sorted(map(str, of_drain))),
            )
        )
    return tuple(reports)


def _kept(snapshot: Snapshot, settings: ClusterSettings, cluster: ClusterName) -> frozenset[ServiceKey]:
    """Returns the services of a drained member that nobody else offers here: its calls stay."""
    if cluster == settings.name:
        # The own callers may stay; what is asked is what becomes of everybody else's, and they see what is seen here.
        own = [
            Change(Section.DRAINS, where, msgspec.structs.replace(drain, clients=True))
            for where, drain in snapshot.drains.items()
            if drain.cluster == cluster and not drain.clients
        ]
        snapshot = apply(snapshot, own)
    return frozenset(kept_services(snapshot, settings, cluster))


def _ends_what_is_open(drain: Drain) -> bool:
    return drain.sever and drain.weight == 0


def _known_cluster(name: str, snapshot: Snapshot, settings: ClusterSettings) -> ClusterName:
    known = (snapshot.members.keys() | {settings.name}) - snapshot.departures.keys()
    for cluster in known:
        if cluster == name:
            return cluster
    raise AdminRefused(f"{settings.name} knows no member {name!r}", _nearest(name, known), status=404)


def _known_service(text: str, cluster: ClusterName, snapshot: Snapshot, settings: ClusterSettings) -> ServiceKey:
    key = _parse_service(text)
    if cluster == settings.name:
        known = snapshot.exports.keys() & snapshot.services.keys()
        if key in snapshot.services and key not in known:
            raise AdminRefused(
                f"{key} is not exported: only {cluster} calls it, and nobody else offers it",
                _nearest(text, map(str, known)),
                status=409,
            )
    else:
        known = {of_service for member, of_service in snapshot.imports if member == cluster}
    if key not in known:
        raise AdminRefused(
            f"{settings.name} knows no service {key} of {cluster}", _nearest(text, map(str, known)), status=404
        )
    return key


def _parse_service(text: str) -> ServiceKey:
    match text.split("/"):
        case [namespace, name] if namespace and name:
            return ServiceKey(Namespace(namespace), name)
        case _:
            raise AdminRefused(f"{text!r} is no service", "write it as NAMESPACE/NAME", status=400)


def _nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint: the names that are most like the one that was meant, or all when they are few."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:5]
    return (
        f"did you mean {', '.join(near)}?" if near else "`isthmus services` and `isthmus clusters` show what there is"
    )


def _not_asked_here(
    cluster: ClusterName, service: ServiceKey | None, snapshot: Snapshot, settings: ClusterSettings
) -> AdminRefused:
    what = f"{service} of {cluster}" if service else cluster
    said = snapshot.members[cluster].drains if cluster != settings.name and cluster in snapshot.members else ()
    if any(drain.service == service for drain in said):
        return AdminRefused(
            f"{cluster} itself drains {what}",
            f"ask it to end that: `isthmus undrain {cluster}` at {cluster}",
            status=409,
        )
    here = sorted(_text(other) or "all of it" for of, other in snapshot.drains if of == cluster)
    hint = f"drained of {cluster} is: {', '.join(here)}" if here else "`isthmus clusters` shows who is drained"
    return AdminRefused(f"{settings.name} was not asked to drain {what}", hint, status=404)


def _in_words(drain: Drain) -> str:
    more = [word for word, is_so in (("its own callers too", drain.clients), ("severed", drain.sever)) if is_so]
    return ", ".join([f"it gets {drain.weight} percent of its calls", *more])


def _text(service: ServiceKey | None) -> str:
    return str(service) if service else ""


def _etcd_away(what: str, error: EtcdError) -> AdminRefused:
    return AdminRefused(f"etcd did not {what}: {error}", "is the cluster's etcd running?", status=503)
