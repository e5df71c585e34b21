"""What the exchanges with etcd say of its health. Pure: it is told of every exchange, and asks nothing by itself.

unreachable   one kind of exchange fails, and has for some seconds
read-only     etcd has used up its quota (NOSPACE): it takes no writes until somebody makes room
slow          half of the latest answers took longer than they should
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
_MEMORY = timedelta(seconds=30)
"""A failure that was not repeated for so long, while other exchanges succeed, was nobody's but its own."""
_FRESH = timedelta(seconds=2)
"""Who follows etcd hears from it each second, whether anything changes or not."""
_LATEST = 8
_LEAST = 3  # answers before they are judged


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
    """A row of failures of one kind, without a success between them."""

    since: datetime
    last: datetime
    reason: str


class Health:
    """What is known of one etcd by talking with it. `now` is aware UTC."""

    def __init__(self) -> None:
        self._failing: dict[Exchange, _Failing] = {}
        self._full: _Failing | None = None
        self._answered: datetime | None = None
        self._took: dict[Exchange, deque[tuple[datetime, timedelta]]] = {}
        self._slow: dict[Exchange, datetime] = {}
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
            latest = self._took.setdefault(kind, deque(maxlen=_LATEST))
            latest.append((now, took))
            slow = [at for at, each in latest if each > SLOW]
            if len(latest) >= _LEAST and 2 * len(slow) >= len(latest):
                self._slow.setdefault(kind, slow[0])
            elif 4 * len(slow) <= len(latest):
                self._slow.pop(kind, None)

    def failed(self, kind: Exchange, reason: str, took: timedelta, *, now: datetime) -> None:
        """Notes an exchange that failed after it had waited for `took`: etcd could not be reached, or kept silent."""
        failing = self._failing.setdefault(kind, _Failing(now - took, now, reason))
        failing.last, failing.reason = now, reason
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
        return not is_answered_since or now - failing.last < _MEMORY

    def _read_only(self, now: datetime) -> list[EtcdProblem]:
        if self._full is None or now - self._full.last > _MEMORY:
            return []
        message = f"it takes no writes ({self._full.reason}): compact, defragment and `etcdctl alarm disarm`"
        return [EtcdProblem(Ailment.READ_ONLY, message, self._full.since)]

    def _slowness(self, now: datetime) -> list[EtcdProblem]:
        slow = {
            kind: since
            for kind, since in self._slow.items()
            if now - since >= _NOTICE and now - self._took[kind][-1][0] < _MEMORY
        }
        if not slow:
            return []
        took = max(each for kind in slow for _, each in self._took[kind])
        message = f"{' and '.join(sorted(slow))} take up to {took.total_seconds():.1f} s"
        return [EtcdProblem(Ailment.SLOW, message, min(slow.values()))]

    def _loss(self, now: datetime, missing: int) -> list[EtcdProblem]:
        if self._lost is None:
            return []
        if not missing:
            self._lost = None
            return []
        message = f"it came back with less than it had acknowledged; {missing} records are still to be written again"
        return [EtcdProblem(Ailment.LOST_DATA, message, self._lost)]
