"""The processes of a simulation, as seen by the one that asks them, and how long that one was kept waiting itself."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from tests.benchmarks.commands import Command, Failed, Reply

_HOUSE = Path(__file__).parents[2]
_LONGEST_LINE = 256 * 1024 * 1024  # bytes
_NAP = 0.02  # seconds
_R = TypeVar("_R", bound=Reply)


class SimulationFailed(Exception):
    """The members did not do what they should have; the message says what."""


class WorkerProcess:
    """A process with members. `members` are their numbers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.members: list[int] = []
        self._process = process

    async def ask(self, command: Command, kind: type[_R]) -> _R:
        """Returns the answer; raises SimulationFailed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(command) + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise SimulationFailed("a worker ended, see above")
        reply = msgspec.json.decode(line, type=Reply)
        if isinstance(reply, Failed):
            raise SimulationFailed(reply.reason)
        assert isinstance(reply, kind)
        return reply


@asynccontextmanager
async def start_worker(folder: Path) -> AsyncIterator[WorkerProcess]:
    """Runs a process without members, whose files are in `folder`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.worker"),
        cwd=_HOUSE,
        env={**os.environ, "TMPDIR": str(folder)},  # what its sockets leave goes with the folder
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LONGEST_LINE,
    )
    try:
        yield WorkerProcess(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Stall:
    """The longest time, in seconds, for which this process was not let run when it wanted to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def watch(self) -> None:
        """Naps, and notes how much longer that took, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(_NAP)
            self.seconds = max(self.seconds, loop.time() - began - _NAP)


@asynccontextmanager
async def longest_stall() -> AsyncIterator[Stall]:
    """Watches for stalls: of a machine that stands still, or has others to serve first, no span of that while says
    anything about the mesh."""
    stall = Stall()
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(stall.watch())
        yield stall
        watching.cancel()
