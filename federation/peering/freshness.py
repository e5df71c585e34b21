"""How fresh is what we know of a peer: a verdict from silence, and when it is worth telling. Pure.

    UNKNOWN --heard--> LIVE --silent for `stale_after`--> STALE --for `gone_after`--> GONE
                         ^------------------- heard -------'-----------------------------'

A peer that was never heard stays UNKNOWN: nothing of it could have become stale. Silence is what somebody who could
have heard the peer did not hear, by a clock that nobody sets. Time in which this cluster had no leader, or its leader
stood still, is nobody's silence: a restart, or a clock that was set, makes nobody stale or gone.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from federation.model import Freshness, Liveness, Thresholds

BEAT_PERIOD = timedelta(seconds=1)
"""How often a cluster tells its peers that it lives, at most; as often as they ask for (see `beat_period`)."""
_BEATS = 4  # in the time after which a peer counts as stale
LONGEST_SILENCE = timedelta(seconds=3)
"""Of a stream, at least, before it is made anew, through another gateway: two lost beats, and not yet a stale peer."""
SHORTEST_STALE = 2 * BEAT_PERIOD
"""Least of `stale_after`: with less, one beat that is late would count as silence."""
TELL_EVERY = timedelta(seconds=5)
"""While a peer lives, its record in etcd is renewed this often at most (see `tell_period`)."""
SHORTEST_ANSWER = timedelta(seconds=5)
_LONGEST_ANSWER = timedelta(seconds=15)
LOOK_EVERY = timedelta(milliseconds=500)
"""How often silence is measured."""
_LONGEST_LOOK = 2 * LOOK_EVERY
"""More than that between two looks: the process stood still, and cannot have heard anybody."""
_TELL_SHARE = 10  # silence is told when it has grown by this part of itself: a day in some hundred writes


def beat_period(thresholds: Thresholds) -> timedelta:
    """Returns how often a cluster with these thresholds asks its peers to beat: what stands more silence needs less."""
    return max(BEAT_PERIOD, thresholds.stale_after / _BEATS)


def longest_silence(thresholds: Thresholds) -> timedelta:
    """Returns the silence of a stream after which it is made anew, through another gateway."""
    return max(LONGEST_SILENCE, (_BEATS - 1) * beat_period(thresholds))


def tell_period(thresholds: Thresholds) -> timedelta:
    """Returns how often the record of a peer that lives is renewed in etcd: so long a new leader may be wrong about it.

    Of such a record, all replicas read the state, and people the moment; no silence is reckoned from it. So it need not
    be more exact than what counts as live, and a mesh that stands silence need not write for each peer every 5 s.
    """
    return max(TELL_EVERY, thresholds.stale_after / 2)


def answer_limit(thresholds: Thresholds) -> timedelta:
    """Returns how long a peer may take to let us connect, or to answer a ping, before it is given up.

    It grows with the patience for silence: where machines are so busy that the one takes long, so does the other. It
    ends at 15 s: so long a gateway that swallows everything is tried before the next one.
    """
    return min(max(SHORTEST_ANSWER, beat_period(thresholds)), _LONGEST_ANSWER)


class Silence:
    """How long one peer has been silent while it was listened to. `at` is the time by a clock that nobody sets."""

    def __init__(self, at: timedelta) -> None:
        self._looked = at
        self._lasts = timedelta()

    def end(self, at: timedelta) -> None:
        """Notes that the peer was heard."""
        self._looked, self._lasts = at, timedelta()

    def look(self, at: timedelta) -> timedelta:
        """Returns how long it has lasted; to be called every LOOK_EVERY."""
        self._lasts += min(max(at - self._looked, timedelta()), _LONGEST_LOOK)
        self._looked = at
        return self._lasts


def judge(
    before: Freshness | None,
    *,
    heard: datetime | None,
    silence: timedelta,
    thresholds: Thresholds,
    now: datetime,
    known: timedelta = timedelta(),
) -> Freshness:
    """Returns the verdict on a peer.

    `heard` is when it was last heard by this process, None if not yet; `silence` is how long it has been silent since
    then, or since listening began. `known` is the silence that others had measured before this process began to listen.
    `before` is the last verdict of anybody; `now` only says since when a new one holds.
    """
    last = heard or (before.heard if before else None)
    lasts = silence if heard else known + silence
    is_gone = thresholds.gone_after is not None and lasts >= thresholds.gone_after
    if last is None:
        state = Liveness.UNKNOWN
    elif silence < thresholds.stale_after and heard is not None:
        state = Liveness.LIVE
    elif silence < thresholds.stale_after:
        # A new leader lets the old verdict stand until it has listened long enough to know better.
        state = before.state if before else Liveness.UNKNOWN
        if state is Liveness.GONE and not is_gone:
            state = Liveness.STALE  # the threshold is another now
    else:
        state = Liveness.GONE if is_gone else Liveness.STALE
    is_silent = state in (Liveness.STALE, Liveness.GONE)
    since = before.since if before is not None and before.state is state else now
    return Freshness(state=state, since=since, heard=last, silent=lasts if is_silent else timedelta())


def is_worth_telling(
    told: Freshness | None,
    verdict: Freshness,
    *,
    spans: Iterable[timedelta] = (),
    renew_after: timedelta = TELL_EVERY,
) -> bool:
    """Says whether etcd should learn of the verdict: a change of state, or news of it that are old enough.

    `spans` are those whose passing matters to somebody: each is told when it passes. `renew_after` is the age of news
    of a peer that lives (see `tell_period`).
    """
    if told is None or told.state is not verdict.state:
        return True
    if verdict.silent or told.silent:
        grown = verdict.silent - told.silent
        has_passed = any(told.silent < span <= verdict.silent for span in spans)
        return has_passed or grown >= max(TELL_EVERY, told.silent / _TELL_SHARE)
    return verdict.heard is not None and (told.heard is None or verdict.heard - told.heard >= renew_after)
