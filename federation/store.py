"""The one place where the picture lives in a process: swaps snapshots and wakes those who wait for a newer one."""

import asyncio
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from federation import snapshot as picture
from federation.snapshot import Change, Replace, Section, Snapshot

_REMEMBERED_CHANGES = 1024  # only a stream that lags more revisions than this measures its convergence too short
_REMOTE_SECTIONS = frozenset({Section.IMPORTS})
_SECTIONS_OF_THE_CLOCK = frozenset({Section.SILENCES, Section.VOUCHED})
"""What changes without anybody having changed anything: it is no part of how fast changes travel."""


class _Moment(NamedTuple):
    revision: int
    at: datetime
    is_remote: bool


class MeshStore:
    """Holds the current Snapshot. Used from one event loop; `apply` never waits."""

    def __init__(self, origins: frozenset[str]) -> None:
        """Waits for a listing of each of `origins` before the picture counts as ready: an empty one is never pushed."""
        self._snapshot = picture.EMPTY
        self._missing = set(origins)
        self._moments: deque[_Moment] = deque(maxlen=_REMEMBERED_CHANGES)
        self._news = asyncio.Event()

    @property
    def snapshot(self) -> Snapshot:
        """The current picture."""
        return self._snapshot

    @property
    def is_ready(self) -> bool:
        """Says whether every origin has been listed once."""
        return not self._missing

    @property
    def missing(self) -> frozenset[str]:
        """The origins that have not been listed yet."""
        return frozenset(self._missing)

    def apply(self, changes: Sequence[Change | Replace], *, at: datetime | None = None) -> bool:
        """Applies changes in order and says whether anything changed.

        `at` is when the change was first seen anywhere in the mesh (UTC); now, when not given.
        """
        following = picture.apply(self._snapshot, changes)
        if following is self._snapshot:
            return False
        if following.revision == self._snapshot.revision:
            self._snapshot = following  # nothing that anybody waits for
            return True
        sections = {change.section for change in changes}
        if not sections <= _SECTIONS_OF_THE_CLOCK:
            is_remote = not sections.isdisjoint(_REMOTE_SECTIONS)
            self._moments.append(_Moment(following.revision, at or datetime.now(UTC), is_remote))
        self._snapshot = following
        self._wake()
        return True

    def mark_listed(self, origin: str) -> None:
        """Notes that `origin` has told all it has."""
        if origin in self._missing:
            self._missing.discard(origin)
            self._wake()

    async def wait_ready(self) -> Snapshot:
        """Returns the picture once every origin has been listed."""
        while not self.is_ready:
            await self._news.wait()
        return self._snapshot

    async def wait_newer(self, revision: int) -> Snapshot:
        """Returns the picture once it is newer than `revision`."""
        while self._snapshot.revision <= revision:
            await self._news.wait()
        return self._snapshot

    def changed_since(self, revision: int) -> tuple[datetime, bool] | None:
        """Returns when the oldest change after `revision` was first seen, and whether a peer made it.

        None when there was none, or when only time has passed.
        """
        for moment in self._moments:
            if moment.revision > revision:
                return moment.at, moment.is_remote
        return None

    def _wake(self) -> None:
        # The event of the past is set once and dropped: every waiter sees it, none can miss the next.
        past, self._news = self._news, asyncio.Event()
        past.set()
