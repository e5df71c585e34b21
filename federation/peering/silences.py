"""What the clock adds to the picture, in every replica: which silences have passed, and that we still vouch.

freshness (etcd), policies (source)  --staleness.silences-->  Section.SILENCES
time, while somebody needs it        --vouching_period---->   Section.VOUCHED, one more
"""

import asyncio

from federation import staleness
from federation.snapshot import VOUCHED_KEY, Change, Replace, Section
from federation.store import MeshStore


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
        snapshot, last = self._store.snapshot, loop.time()
        while True:
            period = staleness.vouching_period(snapshot)
            if period is not None and loop.time() >= last + period.total_seconds():
                last = loop.time()
                count = self._store.snapshot.vouched.get(VOUCHED_KEY, 0)
                self._store.apply([Change(Section.VOUCHED, VOUCHED_KEY, count + 1)])
            snapshot = self._store.snapshot
            await self._wait(snapshot.revision, until=last + period.total_seconds() if period else None)
            snapshot = self._store.snapshot

    async def _wait(self, revision: int, *, until: float | None) -> None:
        try:
            async with asyncio.timeout_at(until):
                await self._store.wait_newer(revision)
        except TimeoutError:
            return
