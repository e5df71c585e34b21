"""What the clock adds to the picture, in every replica: which silences have passed, and that we still vouch.

freshness (etcd), policies (source)  --staleness.silences-->  Section.SILENCES
time, while somebody needs it        --vouching_period---->   Section.VOUCHED, one more
"""

import asyncio
import secrets

from federation import staleness
from federation.snapshot import VOUCHED_KEY, Change, Replace, Section
from federation.store import MeshStore

_FIRST_COUNTS = 1 << 31


class Silences:
    """Writes SILENCES and VOUCHED into the store: nobody else does."""

    def __init__(self, store: MeshStore) -> None:
        self._store = store

    async def run(self) -> None:
        """Keeps both sections in step, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_silences())
            tasks.create_task(self._vouch())

    async def _follow_silences(self) -> None:
        snapshot = self._store.snapshot
        while True:
            found = staleness.silences(snapshot)
            if found != snapshot.silences:
                self._store.apply([Replace(Section.SILENCES, found)])
            snapshot = await self._store.wait_newer(snapshot.revision)

    async def _vouch(self) -> None:
        """Counts up once a period, by a clock that nobody sets; waits for the picture alone while nobody needs it."""
        loop = asyncio.get_running_loop()
        # A proxy that comes here from another replica, or from the life before, must be told again at once: what it
        # holds may have expired by then, so no count may be one that it has seen.
        count = secrets.randbelow(_FIRST_COUNTS)
        last: float | None = None
        while True:
            snapshot = self._store.snapshot
            period = staleness.vouching_period(snapshot)
            if period is None:
                await self._store.wait_newer(snapshot.revision)
                continue
            due = last + period.total_seconds() if last is not None else loop.time()
            if loop.time() < due:
                await self._wait(snapshot.revision, until=due)
                continue
            last, count = loop.time(), count + 1
            self._store.apply([Change(Section.VOUCHED, VOUCHED_KEY, count)])

    async def _wait(self, revision: int, *, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                await self._store.wait_newer(revision)
        except TimeoutError:
            return
