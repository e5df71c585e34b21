"""What does not work now, and since when: said by `isthmus status` and counted by the metrics. Pure.

Each part knows what is wrong with itself; here it is put into words, and remembered since when it is so.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from federation.etcd.health import EtcdProblem
from federation.model import Liveness, ServiceKey, Severity
from federation.reports import ProblemReport
from federation.snapshot import Snapshot
from federation.xds.session import ProxyStatus
from trust.spiffe import ClusterName

LINGER = timedelta(seconds=3)
"""A problem is over when it was not found for so long: one that is tried again every second comes and goes."""
_BETWEEN_LEADERS = timedelta(seconds=10)
"""Nobody leads for so long when a leader was killed: its lease has to expire. Longer is a problem."""
_UNANSWERED = timedelta(seconds=5)
"""After an answer is given up, which takes another 10 s: 15 in all. One that is only slow answers by then."""
_MOST = 20  # of one kind that are shown each by itself
_LONGEST = 300  # characters of a message

KINDS = ("etcd", "leader", "records", "peer", "imports", "export", "refused", "proxy", "file")
"""What a problem may be with: the labels of the metric."""


class Found(msgspec.Struct, frozen=True):
    """Something that is wrong at one look. `since` is None when whoever found it does not know."""

    kind: str
    subject: str
    message: str
    since: datetime | None = None


class Known(msgspec.Struct, frozen=True):
    """A problem as it was found when it last was, at `seen`, and since when it lasts."""

    found: Found
    since: datetime
    seen: datetime

    @property
    def name(self) -> tuple[str, str, str]:
        """Tells it from all other problems, as long as it lasts."""
        return _key(self.found)


def continued(before: Sequence[Known], found: Iterable[Found], now: datetime) -> tuple[Known, ...]:
    """Returns the problems at this look: one that lasts keeps the moment when it began, though its message changes."""
    known = {_key(one.found): one for one in before}
    lasting = {key: one for key, one in known.items() if now - one.seen < LINGER}
    for one in found:
        earlier = known.get(_key(one))
        since = one.since or (earlier.since if earlier else now)
        lasting[_key(one)] = Known(one, min(since, earlier.since) if earlier else since, now)
    return tuple(lasting[key] for key in sorted(lasting))


def reports(known: Iterable[Known]) -> tuple[ProblemReport, ...]:
    """Returns what is shown of problems."""
    return tuple(ProblemReport(one.found.subject, one.found.message, one.since) for one in known)


def counts(known: Iterable[Known]) -> Mapping[str, int]:
    """Returns how many problems there are of each kind."""
    return dict.fromkeys(KINDS, 0) | Counter(one.found.kind for one in known)


def of_etcd(problems: Iterable[EtcdProblem]) -> list[Found]:
    """Returns what is wrong with etcd: each ailment is a problem of its own."""
    return [Found("etcd", "etcd", f"{one.ailment}: {one.message}", one.since) for one in problems]


def of_handover(since: datetime | None) -> list[Found]:
    """Returns that proxies and peers are left to other replicas, which follow etcd."""
    told = "handed over: other replicas, which follow etcd, serve the proxies and peers of this one"
    return [] if since is None else [Found("etcd", "etcd", told, since)]


def of_leader(leader: str, vacant_since: datetime | None, now: datetime, *, campaign: str) -> list[Found]:
    """Returns that nobody leads, once that lasts longer than a change of leaders takes.

    `campaign` is why this replica does not, empty when there is no reason.
    """
    if leader or vacant_since is None or now - vacant_since < _BETWEEN_LEADERS:
        return []
    told = "nobody leads: nothing is published, and what other members say is not kept"
    return [Found("leader", "leader", told + (f" ({campaign})" if campaign else ""), vacant_since)]


def of_records(problem: str, since: datetime) -> list[Found]:
    """Returns that own records are not written, in the words of the publisher."""
    return [Found("records", "own records", f"not written: {problem}", since)]


def of_peers(
    snapshot: Snapshot, own: ClusterName, hearing: Mapping[ClusterName, str], *, started: datetime
) -> list[Found]:
    """Returns which members are silent, and of which not all is kept.

    `hearing` says of each peer what is wrong with listening to it, empty for nothing: only the leader knows.
    """
    found = []
    for name in sorted(snapshot.members.keys() - {own} - snapshot.departures.keys()):
        freshness, problem = snapshot.freshness.get(name), hearing.get(name, "")
        why = f": {problem}" if problem else ""
        since = freshness.since if freshness else None
        match freshness.state if freshness else Liveness.UNKNOWN:
            case Liveness.UNKNOWN:
                found.append(Found("peer", f"peer {name}", _short(f"never heard{why}"), since or started))
            case Liveness.STALE:
                found.append(Found("peer", f"peer {name}", _short(f"silent, its endpoints stay{why}"), since))
            case Liveness.GONE:
                said = f"silent for too long, its endpoints are not used{why}"
                found.append(Found("peer", f"peer {name}", _short(said), since))
            case Liveness.LIVE if problem:
                found.append(Found("imports", f"peer {name}", _short(f"not all that it says is kept: {problem}")))
            case Liveness.LIVE:
                pass
    return found


def of_exports(unoffered: Iterable[tuple[ServiceKey, str, datetime]]) -> list[Found]:
    """Returns which own exports cannot be offered, why and since when."""
    return _bounded(
        [Found("export", f"export {key}", _short(f"cannot be offered: {why}"), since) for key, why, since in unoffered]
    )


def of_refusals(refusals: Iterable[tuple[ClusterName, str, str]]) -> list[Found]:
    """Returns what peers refuse of ours: (peer, resource, why)."""
    told = {(f"peer {peer}", f"refuses {what}: {why}") for peer, what, why in refusals}
    return _bounded([Found("refused", subject, _short(message)) for subject, message in sorted(told)])


def of_proxies(proxies: Iterable[ProxyStatus], now: datetime) -> list[Found]:
    """Returns which proxies do not answer: they are frozen, or warm something that never gets ready."""
    found = []
    for proxy in sorted(proxies, key=lambda one: one.node):
        late = {one.type_url: one.stalled_since for one in proxy.types if one.stalled_since is not None}
        since = min(late.values(), default=now)
        if now - since >= _UNANSWERED:
            what = ", ".join(type_url.rpartition(".")[2] for type_url in sorted(late))
            found.append(Found("proxy", f"proxy {proxy.node}", f"does not answer about {what}", since))
    return _bounded(found)


def of_files(snapshot: Snapshot) -> list[Found]:
    """Returns what cannot be read at all: files, documents in them, records of etcd."""
    unread = {
        (one.where, one.message)
        for found in snapshot.findings.values()
        for one in found
        if one.severity is Severity.ERROR and not one.object
    }
    return _bounded([Found("file", where, _short(message)) for where, message in sorted(unread)])


def _bounded(found: list[Found]) -> list[Found]:
    if len(found) <= _MOST:
        return found
    kind = found[0].kind
    others = "other proxies" if kind == "proxy" else f"other {kind}s"
    return [*found[:_MOST], Found(kind, others, f"{len(found) - _MOST} more")]


def _key(found: Found) -> tuple[str, str, str]:
    # Two ailments of etcd, and two refusals of one peer, are two problems; else a message may change while it lasts.
    what = found.message.partition(":")[0] if found.kind in ("etcd", "refused") else ""
    return found.kind, found.subject, what


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
