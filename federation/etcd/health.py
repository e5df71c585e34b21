"""What the exchanges with etcd say of its health. Pure: it is told of every exchange, and asks nothing by itself.

unreachable   one kind of exchange fails, and has for some seconds
read-only     etcd has used up its quota (NOSPACE): it takes no writes until somebody makes room
slow          again and again, and not in one stall of a machine only, an answer took longer than it should
lost data     etcd came back with less than it had acknowledged
"""

from collections import deque
from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

SLOW = timedelta(milliseconds=500)
"""An answer that took longer is a slow one. A healthy etcd takes some milliseconds, on a slow disk tens of them."""
_NOTICE = timedelta(seconds=3)
"""Failures that began later are not told yet: one member of three that is lost, a restart, an election."""
_MEMORY = timedelta(seconds=15)
"""A failure that was not repeated for so long, while other exchanges succeed, was nobody's but its own. Whatever fails
is tried again within 10 s: 5 s of waiting for an answer and a pause of 5 s at most."""
_FRESH = timedelta(seconds=2)
"""Who follows etcd hears from it each second, whether anything changes or not."""
_SECOND = timedelta(seconds=1)
"""Answers are judged by the second: many that wait for one stall are one sign, and few are asked more often than that.
Who only follows etcd hears from it once a second on each watch, and reads next to never."""
_WINDOW = timedelta(seconds=15)
"""What was longer ago says nothing of now."""
_SLOW_LEAST, _SLOW_SHARE = 3, 5
"""etcd becomes slow by so many slow seconds in the window, of which the last is _NOTICE after the first, and which are
one in five of those that had an answer. When three answers in ten take too long, and there is one in each second, the
half of all cases is told within 10 s and 99 % within 35 s; with four in each second 99 % within 8 s."""
_QUICK_LEAST = 5
"""It is slow no more after so many quick seconds, or when no slow one is left in the window."""


class Exchange(StrEnum):
    """The kinds of exchange, each of which may fail alone. RENEWAL also stands for deletes: a full etcd may do them."""

    READ = "reads"
    WRITE = "writes"
    RENEWAL = "renewals"
    WATCH = "watches"


class Ailment(StrEnum):
    """What may be wrong with etcd."""

    UNREACHABLE = "unreachable"
    READ_ONLY = "read-only"
    SLOW = "slow"
    LOST_DATA = "lost data"


class EtcdProblem(msgspec.Struct, frozen=True, order=True):
    """Something that is wrong with etcd now, and since when."""

    ailment: Ailment
    message: str
    since: datetime


class _Failing(msgspec.Struct):
    """A row of failures of one kind, without a success between them.

    It is this kind alone that fails when etcd answered others in between. Else etcd was away, and the next answer to
    anybody ends that: who led then may have nothing to renew, for ever.
    """

    since: datetime
    last: datetime
    reason: str
    is_alone: bool = False


class _Answers(msgspec.Struct):
    """The answers of one kind within a second, and how long the slowest of them took."""

    first: datetime
    last: datetime
    took: timedelta


class _Pace:
    """How fast answers of one kind come, and since when they come slowly."""

    def __init__(self) -> None:
        self._seconds: deque[_Answers] = deque(maxlen=int(_WINDOW / _SECOND) + 1)
        self._slow_since: datetime | None = None

    def note(self, took: timedelta, now: datetime) -> None:
        """Notes an answer."""
        if self._seconds and abs(now - self._seconds[-1].first) < _SECOND:
            latest = self._seconds[-1]
            latest.last, latest.took = now, max(latest.took, took)
        else:
            self._seconds.append(_Answers(now, now, took))
        seconds = self._latest(now)
        slow = [each for each in seconds if each.took > SLOW]
        if self._slow_since is None:
            lasts = slow[-1].last - slow[0].last if slow else timedelta()
            if len(slow) >= _SLOW_LEAST and _SLOW_SHARE * len(slow) >= len(seconds) and lasts >= _NOTICE:
                self._slow_since = slow[0].last
        elif not any(each.took > SLOW for each in seconds[-_QUICK_LEAST:]):
            self._slow_since = None
            while any(each.took > SLOW for each in self._seconds):  # what is over does not count for the next time
                self._seconds.popleft()

    def slow(self, now: datetime) -> tuple[datetime, timedelta] | None:
        """Returns since when answers come slowly, and how long the slowest of late took; None when they do not."""
        took = max((each.took for each in self._latest(now)), default=timedelta())
        return (self._slow_since, took) if self._slow_since is not None and took > SLOW else None

    def _latest(self, now: datetime) -> list[_Answers]:
        # Neither what is long ago, nor what is still to come since the clock was set back.
        return [each for each in self._seconds if abs(now - each.last) <= _WINDOW]


class Health:
    """What is known of one etcd by talking with it. `now` is aware UTC."""

    def __init__(self) -> None:
        self._failing: dict[Exchange, _Failing] = {}
        self._full: _Failing | None = None
        self._answered: datetime | None = None
        self._pace: dict[Exchange, _Pace] = {}
        self._lost: datetime | None = None
        self._watched: tuple[datetime, datetime] | None = None  # without a failure since, and the latest answer

    def answered(self, kind: Exchange, took: timedelta | None, *, now: datetime) -> None:
        """Notes that etcd answered, and how long that took; None when nobody was waiting for it."""
        self._answered = now
        self._failing.pop(kind, None)
        if kind is Exchange.WRITE:
            self._full = None
        if kind is Exchange.WATCH:
            self._watched = (self._watched[0] if self._watched else now, now)
        if took is not None:
            self._pace.setdefault(kind, _Pace()).note(took, now)

    def failed(self, kind: Exchange, reason: str, took: timedelta, *, now: datetime) -> None:
        """Notes an exchange that failed after it had waited for `took`: etcd could not be reached, or kept silent."""
        failing = self._failing.setdefault(kind, _Failing(now - took, now, reason))
        failing.last, failing.reason = now, reason
        failing.is_alone |= self._answered is not None and self._answered > failing.since
        if kind is Exchange.WATCH:
            self._watched = None

    def refused_for_space(self, reason: str, *, now: datetime) -> None:
        """Notes a write that etcd has no room for: it answers, and is not unreachable."""
        self._answered = now
        self._failing.pop(Exchange.WRITE, None)
        if self._full is None or now - self._full.last > _MEMORY:
            self._full = _Failing(now, now, reason)
        self._full.last = now

    def lost(self, *, now: datetime) -> None:
        """Notes that etcd certainly lost writes that it had acknowledged."""
        if self._lost is None:
            self._lost = now

    def cut_off_for(self, now: datetime) -> timedelta:
        """Returns for how long changes have not been heard of; zero while they are, as far as is known."""
        failing = self._failing.get(Exchange.WATCH)
        return max(now - failing.since, timedelta()) if failing else timedelta()

    def followed_for(self, now: datetime) -> timedelta:
        """Returns for how long changes have been heard of without a break; zero when etcd has not just answered."""
        if self._watched is None or now - self._watched[1] > _FRESH:
            return timedelta()
        return max(now - self._watched[0], timedelta())

    def problems(self, now: datetime, *, missing: int) -> tuple[EtcdProblem, ...]:
        """Returns what is wrong now. `missing` counts the records that etcd lost and that are not written again yet."""
        return (*self._unreachable(now), *self._read_only(now), *self._slowness(now), *self._loss(now, missing))

    def _unreachable(self, now: datetime) -> list[EtcdProblem]:
        failing = [(kind, one) for kind, one in self._failing.items() if self._is_lasting(one, now)]
        if not failing:
            return []
        since, reason = min(one.since for _, one in failing), max(failing, key=lambda each: each[1].last)[1].reason
        is_partly = self._answered is not None and self._answered > max(one.last for _, one in failing)
        what = f"{' and '.join(sorted(kind for kind, _ in failing))} fail: " if is_partly else ""
        return [EtcdProblem(Ailment.UNREACHABLE, what + reason, since)]

    def _is_lasting(self, failing: _Failing, now: datetime) -> bool:
        if now - failing.since < _NOTICE:
            return False
        is_answered_since = self._answered is not None and self._answered > failing.last
        return not is_answered_since or (failing.is_alone and now - failing.last < _MEMORY)

    def _read_only(self, now: datetime) -> list[EtcdProblem]:
        if self._full is None or now - self._full.last > _MEMORY:
            return []
        message = f"it takes no writes ({self._full.reason}): compact, defragment and `etcdctl alarm disarm`"
        return [EtcdProblem(Ailment.READ_ONLY, message, self._full.since)]

    def _slowness(self, now: datetime) -> list[EtcdProblem]:
        slow = {kind: found for kind, pace in self._pace.items() if (found := pace.slow(now))}
        if not slow:
            return []
        took = max(longest for _, longest in slow.values())
        message = f"{' and '.join(sorted(slow))} take up to {took.total_seconds():.1f} s"
        return [EtcdProblem(Ailment.SLOW, message, min(since for since, _ in slow.values()))]

    def _loss(self, now: datetime, missing: int) -> list[EtcdProblem]:
        if self._lost is None:
            return []
        if not missing:
            self._lost = None
            return []
        message = f"it came back with less than it had acknowledged; {missing} records are still to be written again"
        return [EtcdProblem(Ailment.LOST_DATA, message, self._lost)]
