"""Whether this replica serves proxies and peers, or leaves them to replicas that see more. Pure.

A replica that is cut from etcd hears of no change any more, and neither would its proxies. While another replica
follows etcd, they are better off there; while none does, etcd is down, and they stay where they are.

    serves ── cut off, and another one follows etcd ──> handed over
    serves <── follows etcd again, or no other does ─── handed over
"""

from datetime import timedelta

import msgspec

CUT_OFF = timedelta(seconds=4)
"""Without etcd for so long: not when it restarts, or elects a leader. What is frozen is not noticed sooner either."""
STEADY = timedelta(seconds=5)
"""Who has followed etcd for so long without a break may serve in the place of others: longer than replicas are apart
in coming back after etcd was away, so that nobody moves then, and an etcd that comes and goes moves nobody twice."""
_SURE = timedelta(seconds=1)
"""What others say counts when it did not change for so long."""


class Sight(msgspec.Struct, frozen=True):
    """What is seen at one look: for how long etcd has been out of reach, and followed (zero: it is not), and whether
    another replica says that it serves and is steady."""

    cut_off: timedelta
    following: timedelta
    is_vouched: bool


class Handover:
    """The state of one replica. `now` is the time of a clock that does not jump, in seconds."""

    def __init__(self) -> None:
        self._is_over = False
        self._is_vouched = False
        self._changed_at: float | None = None  # None: nobody has been asked for this time

    @property
    def is_over(self) -> bool:
        """Says whether proxies and peers are left to others."""
        return self._is_over

    def needs_others(self, cut_off: timedelta) -> bool:
        """Says whether it has to be known what the other replicas say."""
        return self._is_over or cut_off > timedelta()

    def look(self, sight: Sight, now: float) -> bool:
        """Takes what is seen now; returns whether proxies and peers are left to others from here on."""
        if not self.needs_others(sight.cut_off):
            self._changed_at = None
            return False
        if self._changed_at is None or sight.is_vouched is not self._is_vouched:
            self._is_vouched, self._changed_at = sight.is_vouched, now
        is_sure = now - self._changed_at >= _SURE.total_seconds()
        if self._is_over:
            self._is_over = sight.following < STEADY and (self._is_vouched or not is_sure)
        else:
            self._is_over = sight.cut_off >= CUT_OFF and self._is_vouched and is_sure
        return self._is_over
