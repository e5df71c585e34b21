"""When a peer is dialled again, and how many are dialled at once: a mesh that breaks must not be kept broken by that.

A dial costs both sides tens of milliseconds of CPU (handshake, versions, first answer). When a machine is late and many
streams break, all of them at once would make it later still, and more streams would break.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from random import uniform

FEW = 8
"""Peers that may be dialled at once, and missed at once without dialling any of them less often. A small mesh has no
more; and even at 50 ms of CPU for each it is half a second until all eight have answered."""

_FIRST = timedelta(milliseconds=100)
_USUAL = timedelta(seconds=2)
_LONGEST = timedelta(seconds=30)


def back_off(failures: int, missed: int) -> tuple[timedelta, timedelta]:
    """Returns the shortest and the longest wait before a peer is dialled again, to draw one between them. Pure.

    `failures` is how often in a row it was dialled in vain, `missed` is how many peers are not heard now. While those
    are FEW it is half of `longest` to all of it: 1 to 2 s in the end. With more, `longest` grows with them (2 s for
    each FEW, to 30 s), so that all together are dialled FEW times a second, however many they are.
    """
    usual: timedelta = min(_USUAL, _FIRST * 2 ** min(max(failures, 0), 10))
    longest: timedelta = min(max(usual, usual * missed / FEW), _LONGEST)
    return usual / 2, longest


def draw(failures: int, missed: int) -> float:
    """Returns how many seconds to wait (see `back_off`): the members of a mesh do not come back in step."""
    shortest, longest = back_off(failures, missed)
    return uniform(shortest.total_seconds(), longest.total_seconds())  # noqa: S311 - no secret


class Turns:
    """Lets FEW dials be under way at once; who comes first is served first."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(FEW)

    @asynccontextmanager
    async def take(self, longest: timedelta) -> AsyncIterator[Callable[[], None]]:
        """Waits for a turn and gives what ends it: to be called when the dial has succeeded, and as often as one likes.

        It ends with the context at the latest, and after `longest`: peers that answer nothing hold up nobody else.
        """
        await self._free.acquire()
        with ExitStack() as turn:
            turn.callback(self._free.release)
            timer = asyncio.get_running_loop().call_later(longest.total_seconds(), turn.close)
            turn.callback(timer.cancel)
            yield turn.close
