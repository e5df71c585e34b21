"""Wakes everybody who waits for something newer than what they have seen."""

import asyncio


class News:
    """Counts what has happened. Used from one event loop; telling never waits, and a waiter misses nothing."""

    def __init__(self) -> None:
        self._count = 0
        self._told = asyncio.Event()

    @property
    def count(self) -> int:
        """How often something has happened."""
        return self._count

    def tell(self) -> None:
        """Something has happened."""
        self._count += 1
        # The event of the past is set once and dropped: every waiter sees it, none can miss the next.
        past, self._told = self._told, asyncio.Event()
        past.set()

    async def wait_newer(self, seen: int) -> int:
        """Returns the count once it is more than `seen`."""
        while self._count <= seen:
            await self._told.wait()
        return self._count


async def pass_on(source: News, target: News) -> None:
    """Tells `target` whenever something happens that `source` is told. For ever."""
    seen = source.count
    while True:
        seen = await source.wait_newer(seen)
        target.tell()
