"""What is measured while something is broken, and how one waits for what a mesh does of itself."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from deploy.lab.load import Attempt
from tests.faults.standstill import counted
from tests.faults.table import Outcome

PATIENCE = 60.0  # seconds; deadline of every wait
_POLL = 0.1  # seconds between two looks
_STANDSTILL = 0.1  # seconds that a request is sent late: this machine ran nothing for so long
_AFTERMATH = 3.0  # seconds after it in which connections break
_SHORT = 100  # characters of a note
_TIME_TO_NOTICE = 1.0  # seconds until a proxy knows that a frozen gateway is one: what it sent there is under way

_Answer = TypeVar("_Answer")


class NotYet(Exception):
    """What is waited for does not hold; the message says what is seen instead."""


class Row:
    """What is measured while something is broken. Moments are of the event loop's clock."""

    def __init__(self) -> None:
        self.struck = 0.0
        self.mended = 0.0
        self.shown = ""
        self.detected: float | None = None
        self.recovered: float | None = None
        self.notes: list[str] = []

    def strikes(self) -> None:
        """Notes that the fault has just happened."""
        self.struck = _now()

    async def detects(self, shown: str, check: Callable[[], Awaitable[None]]) -> None:
        """Waits until the mesh shows the fault, and notes how long that took."""
        self.shown = shown
        self.detected = await since(self.struck, check)

    async def notices(self, what: str, check: Callable[[], Awaitable[None]]) -> None:
        """Waits until something else holds, and notes how long after the fault that was."""
        self.notes.append(f"{what} {await since(self.struck, check):.1f} s")

    async def lasts(self, seconds: float) -> None:
        """Lets the fault last until it is so old."""
        await asyncio.sleep(max(0.0, self.struck + seconds - _now()))

    def mends(self) -> None:
        """Notes that the fault has just been repaired."""
        self.mended = _now()

    async def recovers(self, check: Callable[[], Awaitable[None]]) -> None:
        """Waits until all is as it was, and notes what was the last thing that was not."""
        last = ""

        async def remember() -> None:
            nonlocal last
            try:
                await check()
            except NotYet as error:
                last = str(error)
                raise

        self.recovered = await since(self.mended, remember)
        if last:
            self.notes.append(f"last to recover: {' '.join(last.split())[:_SHORT]}")

    def counted(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Returns the requests that say something of the mesh. How many do not is noted."""
        found = counted(attempts)
        if left := len(attempts) - len(found):
            failed = sum(bool(each.failure) for each in attempts) - sum(bool(each.failure) for each in found)
            self.notes.append(f"{left} requests ({failed} failed) not counted: the machine stood still")
        return found

    def starved(self, lost: Sequence[Attempt], attempts: Sequence[Attempt]) -> list[Attempt]:
        """Returns those POSTs among `lost` that failed when, as is seen from all `attempts`, this machine stood still.

        That breaks connections, and what is under way on them may not be repeated. How many those are is noted.
        """
        still = [(each.due, each.sent) for each in attempts if each.sent - each.due > _STANDSTILL]
        starved = [
            each
            for each in lost
            if each.method == "POST" and any(due <= each.ended and each.sent <= at + _AFTERMATH for due, at in still)
        ]
        if starved:
            longest = max(at - due for due, at in still)
            self.notes.append(f"ALLOWED: {len(starved)} failed POSTs, the machine stood still for {longest:.1f} s")
        return starved

    def failures(self, attempts: Sequence[Attempt], *, posts_may_fail: bool) -> list[Attempt]:
        """Returns the requests that should not have failed."""
        return [each for each in attempts if each.failure and not (posts_may_fail and self._was_in_flight(each))]

    def _was_in_flight(self, attempt: Attempt) -> bool:
        """Says whether a POST was under way when the fault happened: sent before, and not answered before."""
        is_under_way = attempt.sent <= self.struck + _TIME_TO_NOTICE and attempt.ended >= self.struck
        return attempt.method == "POST" and is_under_way

    def outcome(self, fault: str, attempts: Sequence[Attempt], *, held: bool) -> Outcome:
        """Returns the row of the table."""
        gets = [each for each in attempts if each.method == "GET"]
        posts = [each for each in attempts if each.method == "POST"]
        lost = [each for each in posts if each.failure]
        in_flight = [each for each in lost if self._was_in_flight(each)]
        return Outcome(
            fault=fault,
            gets=len(gets),
            gets_failed=sum(bool(each.failure) for each in gets),
            posts=len(posts),
            posts_failed=len(lost) - len(in_flight),
            in_flight=len(in_flight),
            shown=self.shown,
            detected=self.detected,
            recovered=self.recovered,
            notes="; ".join(self.notes),
            held=held,
        )


async def since(moment: float, check: Callable[[], Awaitable[None]]) -> float:
    """Waits until `check` raises NotYet no more; returns the seconds since a moment. Fails after PATIENCE."""
    await answer(check)
    return _now() - moment


async def answer(ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """Waits until `ask` raises NotYet no more; returns what it does. Fails after PATIENCE."""
    deadline = _now() + PATIENCE
    while True:
        try:
            return await ask()
        except NotYet as error:
            wrong = str(error)
        assert _now() < deadline, f"not within {PATIENCE:.0f} s: {wrong}"
        await asyncio.sleep(_POLL)


def _now() -> float:
    return asyncio.get_running_loop().time()
