"""How fresh is what we know of a peer: a verdict from silence, and when it is worth telling. Pure.

    UNKNOWN --heard--> LIVE --4 s of silence--> STALE --heard--> LIVE

A peer that was never heard stays UNKNOWN: nothing of it could have become stale.
"""

from datetime import datetime, timedelta

from federation.model import Freshness, Liveness

BEAT_PERIOD = timedelta(seconds=1)
"""How often a cluster tells its peers that it lives."""
STALE_AFTER = timedelta(seconds=4)
"""Silence after which a peer counts as stale: three lost beats and a second of delay."""
TELL_EVERY = timedelta(seconds=5)
"""While a peer lives, its record in etcd is renewed this often: the time a new leader may be wrong about it."""


def judge(before: Freshness | None, *, heard: datetime | None, silence: timedelta, now: datetime) -> Freshness:
    """Returns the verdict on a peer.

    `heard` is when it was last heard by this process, None if not yet; `silence` is the time since then, or since
    listening began, by a clock that nobody sets. `before` is the last verdict of anybody.
    """
    last = heard or (before.heard if before else None)
    if last is None:
        state = Liveness.UNKNOWN
    elif silence >= STALE_AFTER:
        state = Liveness.STALE
    elif heard is None:
        # A new leader lets the old verdict stand until it has listened long enough to know better.
        state = before.state if before else Liveness.UNKNOWN
    else:
        state = Liveness.LIVE
    since = before.since if before is not None and before.state is state else now
    return Freshness(state=state, since=since, heard=last)


def is_worth_telling(told: Freshness | None, verdict: Freshness) -> bool:
    """Says whether etcd should learn of the verdict: a change of state, or news of a live peer that are old enough."""
    if told is None or told.state is not verdict.state:
        return True
    return verdict.heard is not None and (told.heard is None or verdict.heard - told.heard >= TELL_EVERY)
