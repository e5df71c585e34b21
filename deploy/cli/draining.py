"""What a drain decides: the steps of its ramp, what the counters of all callers add up to, when to give up, and when a
member carries nothing. Pure.

Counters are those of the callers' proxies (`LoadReport`): cumulative since their replica started, so only differences
count, and a replica that restarts begins again at 0.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from federation.reports import DrainReport, LoadReport, ServiceReport

MOST_STEPS = 10
SHORTEST_STEP = timedelta(seconds=1)  # proxies report once a second while a drain is in force
FULL = 100  # percent: what a member gets that is not drained
WINDOW = 10.0  # seconds over which errors are counted
MOMENT = 2.0  # seconds over which calls a second are counted
MIN_REQUESTS = 5  # in the window, before their errors say anything; who fails is ejected, and gets hardly more
MIN_FAILED = 3  # likewise: one bad answer ends no drain, however few there are
FRESH_REPORTS = 2  # without a call, of every replica, until a member counts as carrying nothing

_RULE = re.compile(r"error-rate\s*>\s*(\d{1,3}(?:\.\d{1,6})?)\s*%", re.ASCII)


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls leave: those to `cluster`, of `service` (`namespace/name`) or of all; its own with `clients`."""

    cluster: str
    service: str = ""
    clients: bool = False

    def covers(self, lane: "Lane") -> bool:
        """Says whether calls on this lane are to leave."""
        return lane.member == self.cluster and self.service in ("", lane.service) and self.calls(lane.caller)

    def calls(self, caller: str) -> bool:
        """Says whether the callers of that member are to leave."""
        return self.clients or caller != self.cluster

    def __str__(self) -> str:
        return f"{self.service} in {self.cluster}" if self.service else self.cluster


class Step(msgspec.Struct, frozen=True):
    """A weight in percent, and how long it is held before the next."""

    weight: int
    span: timedelta


def ramp(over: timedelta, *, since: int = FULL) -> tuple[Step, ...]:
    """Returns the steps that lead from the weight `since` down to 0; none when it is 0.

    The whole way takes `over`, whatever is left of it less; a span of 0 s is one step.
    """
    weights, span = _steps(over)
    return tuple(Step(FULL - weight, span) for weight in weights if FULL - weight < since)


def climb(over: timedelta, *, since: int = 0) -> tuple[Step, ...]:
    """Returns the steps that lead from the weight `since` back up to FULL, which is held for no time."""
    weights, span = _steps(over)
    return tuple(Step(weight, span if weight < FULL else timedelta()) for weight in weights if weight > since)


def _steps(over: timedelta) -> tuple[Sequence[int], timedelta]:
    count = max(1, min(MOST_STEPS, over // SHORTEST_STEP))
    return [round(FULL * step / count) for step in range(1, count + 1)], over / count


class Errors(msgspec.Struct, frozen=True):
    """How many of the calls that were `issued` have `failed`: 5xx answers and attempts that broke off."""

    issued: int = 0
    failed: int = 0

    @property
    def share(self) -> float:
        """Failed of issued, 0 to 1."""
        return min(1.0, self.failed / self.issued) if self.issued else 0.0

    def __str__(self) -> str:
        return f"{self.share:.2%} ({self.failed} of {self.issued})"


class AbortRule(msgspec.Struct, frozen=True):
    """A drain ends, and is undone, when more than this share of calls fails (`above`: 0 to 1)."""

    above: float

    def is_broken_by(self, errors: Errors) -> bool:
        """Says whether so many calls failed, of enough, that it is no accident."""
        return errors.issued >= MIN_REQUESTS and errors.failed >= MIN_FAILED and errors.share > self.above

    def __str__(self) -> str:
        return f"error-rate>{self.above * 100:g}%"


def parse_abort_rule(text: str) -> AbortRule:
    """Parses `error-rate>1%`; raises ValueError, which says what is wrong."""
    if text.strip() in ("error-rate", "error-rate=", "error-rate>"):
        raise ValueError("above which rate? write it in quotes, or the shell takes > for itself: 'error-rate>1%'")
    found = _RULE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no rule: 'error-rate>PERCENT%', such as 'error-rate>1%' or 'error-rate>0.5%'")
    percent = float(found.group(1))
    if percent >= FULL:
        raise ValueError(f"{text!r} never holds: no more than 100% of all calls can fail")
    return AbortRule(percent / 100)


class Lane(msgspec.Struct, frozen=True, order=True):
    """The calls of one member's workloads to one service in one member."""

    caller: str
    service: str
    member: str


_Replica = tuple[str, str]  # of a caller: cluster, replica


class Tally(msgspec.Struct, frozen=True):
    """What has been counted since the first look. `last` holds the newest report of each replica, `open` what is under
    way now by those that answered at the last look."""

    last: Mapping[_Replica, LoadReport] = {}
    open: Mapping[Lane, int] = {}
    issued: Mapping[Lane, int] = {}
    failed: Mapping[Lane, int] = {}

    def errors(self, lanes: Collection[Lane]) -> Errors:
        """Returns the sums of some lanes."""
        return Errors(sum(self.issued.get(lane, 0) for lane in lanes), sum(self.failed.get(lane, 0) for lane in lanes))


def count(before: Tally, reports: Iterable[LoadReport]) -> Tally:
    """Adds what was counted since `before`.

    The first report of a replica is where its counting begins, unless it is known to have restarted: then all that it
    says is new.
    """
    last, issued, failed = dict(before.last), dict(before.issued), dict(before.failed)
    opened: dict[Lane, int] = {}
    for report in reports:
        held = last.get((report.cluster, report.replica))
        last[report.cluster, report.replica] = report
        is_same = held is not None and held.started == report.started
        known = {(one.service, one.port, one.member): one for one in held.loads} if held and is_same else {}
        for load in report.loads:
            lane = Lane(report.cluster, load.service, load.member)
            opened[lane] = opened.get(lane, 0) + load.open
            was = known.get((load.service, load.port, load.member))
            of_issued, of_failed = (was.issued, was.failed) if was else (0, 0)
            if held is None:  # where its counting begins
                of_issued, of_failed = load.issued, load.failed
            issued[lane] = issued.get(lane, 0) + _grown(of_issued, load.issued)
            failed[lane] = failed.get(lane, 0) + _grown(of_failed, load.failed)
    return Tally(last, opened, issued, failed)


def _grown(before: int, now: int) -> int:
    return now - before if now >= before else now


class Mark(msgspec.Struct, frozen=True):
    """A tally at a moment, in seconds of a clock that only grows."""

    moment: float
    tally: Tally


def recent(marks: Sequence[Mark], now: float, window: float = WINDOW) -> tuple[Mark, ...]:
    """Returns the marks that a window that ends `now` needs, oldest first: the last before it, and all in it."""
    inside = next((at for at, mark in enumerate(marks) if mark.moment > now - window), len(marks))
    return tuple(marks[max(0, inside - 1) :])


def errors_since(marks: Sequence[Mark], lanes: Collection[Lane]) -> Errors:
    """Returns what was issued and failed between the first of the marks and the last."""
    if not marks:
        return Errors()
    first, last = marks[0].tally.errors(lanes), marks[-1].tally.errors(lanes)
    return Errors(last.issued - first.issued, last.failed - first.failed)


def rate(marks: Sequence[Mark], lanes: Collection[Lane]) -> float | None:
    """Returns calls a second at the end of the marks; None before there are two."""
    marks = recent(marks, marks[-1].moment, MOMENT) if marks else ()
    seconds = marks[-1].moment - marks[0].moment if marks else 0.0
    return errors_since(marks, lanes).issued / seconds if seconds > 0 else None


def leaving(scope: Scope, tally: Tally, *, kept: Collection[str] = ()) -> frozenset[Lane]:
    """Returns the lanes that are to become empty, without those of services that are kept."""
    return frozenset(lane for lane in tally.issued if scope.covers(lane) and lane.service not in kept)


def diverted(scope: Scope, tally: Tally, services: Collection[str]) -> frozenset[Lane]:
    """Returns the lanes on which the calls go instead: those of the same callers to the other members."""
    return frozenset(
        lane
        for lane in tally.issued
        if lane.member != scope.cluster and lane.service in services and scope.calls(lane.caller)
    )


class Quiet(msgspec.Struct, frozen=True):
    """How many fresh reports of one replica in a row showed no call. `at` and `issued` are those of the last."""

    started: datetime
    at: datetime | None
    issued: int
    reports: int = 0

    @property
    def is_proven(self) -> bool:
        """Says whether they are enough."""
        return self.reports >= FRESH_REPORTS


def settle(
    before: Mapping[_Replica, Quiet], reports: Iterable[LoadReport], scope: Scope, *, kept: Collection[str] = ()
) -> Mapping[_Replica, Quiet]:
    """Goes on counting, for every replica that answered, the reports that show nothing open and nothing new.

    A report is fresh when the oldest word in it is an interval younger than that of the one before: each of the proxies
    has spoken since. A replica without proxies has nobody who could call.
    """
    settled = {}
    for report in reports:
        key = (report.cluster, report.replica)
        loads = [
            load
            for load in report.loads
            if scope.covers(Lane(report.cluster, load.service, load.member)) and load.service not in kept
        ]
        issued, held = sum(load.issued for load in loads), before.get(key)
        now = Quiet(report.started, report.at, issued)
        is_empty = not any(load.open for load in loads)
        if held is None or not is_empty or (held.started, held.issued) != (now.started, now.issued):
            settled[key] = now
        elif _is_fresh(held.at, report):
            settled[key] = msgspec.structs.replace(now, reports=held.reports + 1)
        else:
            settled[key] = held
    return settled


def _is_fresh(before: datetime | None, report: LoadReport) -> bool:
    if report.at is None:
        return report.reporting == 0
    return before is None or report.at >= before + timedelta(seconds=report.interval)


def unheard(reports: Collection[LoadReport]) -> tuple[str, ...]:
    """Returns the proxies of one member that no replica hears, though they are connected to one."""
    return tuple(
        sorted({one for each in reports for one in each.silent} - {one for each in reports for one in each.visitors})
    )


def weight_at(caller: str, drains: Iterable[DrainReport], scope: Scope) -> int:
    """Returns the weight that the drained member has for `caller`, by the drains that this one reports."""
    weights = [
        one.weight
        for one in drains
        if one.cluster == scope.cluster
        and one.service in ("", scope.service)
        and (one.clients or caller != scope.cluster)
    ]
    return min(weights, default=FULL)


def offered(cluster: str, services: Iterable[ServiceReport]) -> frozenset[str]:
    """Returns the services that have ready endpoints in a member."""
    return frozenset(_name(one) for one in services if any(place.cluster == cluster for place in one.places))


def only_there(scope: Scope, services: Iterable[ServiceReport]) -> frozenset[str]:
    """Returns the services that a caller finds in the drained member alone: they would stay."""
    return frozenset(
        _name(one)
        for one in services
        if scope.service in ("", _name(one))
        and {place.cluster for place in one.places if place.endpoints} == {scope.cluster}
    )


def names(services: Iterable[ServiceReport]) -> frozenset[str]:
    """Returns the names of services: `namespace/name`."""
    return frozenset(map(_name, services))


def _name(service: ServiceReport) -> str:
    return f"{service.namespace}/{service.name}"
