"""A process of the simulation: runs some members and does what is asked of it, line by line on standard input."""

import asyncio
import random
import resource
import sys
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import msgspec
import uvloop

from tests.benchmarks.commands import (
    AddSidecar,
    AwaitTaken,
    AwaitWhole,
    ChangeOne,
    Churn,
    Command,
    Converged,
    Digest,
    Done,
    Failed,
    Held,
    Introduce,
    Measure,
    Reply,
    Start,
    Took,
)
from tests.benchmarks.measures import usage
from tests.benchmarks.members import SimulatedMember, run_member
from tests.benchmarks.plan import name_of

_START_LIMIT = 120.0  # seconds for members to be ready
_TICK = 0.005  # seconds: changes that are due within it are made together


class Worker:
    """The members of this process, by number."""

    def __init__(self, stack: AsyncExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self._members: dict[int, SimulatedMember] = {}

    async def do(self, command: Command) -> Reply:
        """Does one thing."""
        match command:
            case Start(plan=plan, specs=specs):
                async with asyncio.timeout(_START_LIMIT):
                    for spec in specs:
                        running = run_member(plan, spec, self._folder)
                        self._members[spec.index] = await self._stack.enter_async_context(running)
                return Done(time.time())
            case Introduce(index=index, to=member):
                await self._members[index].control.introduce(member)
                return Done(time.time())
            case AddSidecar(index=index):
                self._members[index].add_sidecar()
                return Done(time.time())
            case AwaitWhole(members=members, imports=imports, seconds=seconds):
                return await self._await_whole(members, imports, seconds)
            case ChangeOne(index=index):
                return Done(self._members[index].change(), 1)
            case AwaitTaken(origin=origin, change=change, seconds=seconds):
                return await self._await_taken(origin, change, seconds)
            case Churn(rate=rate, seconds=seconds, seed=seed):
                return Done(time.time(), await self._churn(rate, seconds, random.Random(seed)))
            case Measure():
                return usage()
            case Converged():
                return self._converged()
            case Digest():
                return Held({name_of(index): member.digests() for index, member in self._members.items()})

    async def _await_whole(self, members: int, imports: int, seconds: float) -> Reply:
        try:
            async with asyncio.timeout(seconds):
                waiting = [member.await_whole(members, imports) for member in self._members.values()]
                return Done(max(await asyncio.gather(*waiting)))
        except TimeoutError:
            pictures = [one.control.picture for one in self._members.values()]
            least = min((len(one.members), len(one.imports), len(one.freshness)) for one in pictures)
            return Failed(f"no whole picture within {seconds:g} s; least members, imports, heard: {least}")

    async def _await_taken(self, origin: int, change: float, seconds: float) -> Reply:
        others = {index: member for index, member in self._members.items() if index != origin}
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(member.await_taken(change) for member in others.values()))
        except TimeoutError:
            late = [name_of(index) for index, one in others.items() if change not in {moment for moment, _ in one.took}]
            return Failed(f"not in the picture of {', '.join(late)} within {seconds:g} s")
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(one.sidecar.await_ack() for one in others.values() if one.sidecar is not None))
        return self._converged()

    async def _churn(self, rate: float, seconds: float, drawn: random.Random) -> int:
        loop = asyncio.get_running_loop()
        ends, made = loop.time() + seconds, 0
        members = list(self._members.values())
        due = loop.time() + drawn.expovariate(rate)
        while due < ends:
            await asyncio.sleep(max(_TICK, due - loop.time()))
            while due < min(ends, loop.time()):
                drawn.choice(members).change()
                made, due = made + 1, due + drawn.expovariate(rate)
        await asyncio.sleep(max(0.0, ends - loop.time()))
        return made

    def _converged(self) -> Took:
        picture = [took for member in self._members.values() for took in member.took]
        sidecars = [member.sidecar for member in self._members.values() if member.sidecar is not None]
        sidecar = [took for each in sidecars for took in each.took]
        for member in self._members.values():
            member.took.clear()
        for each in sidecars:
            each.took.clear()
        return Took(tuple(picture), tuple(sidecar))


async def _main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    reader = asyncio.StreamReader(limit=64 * 1024 * 1024)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with AsyncExitStack() as stack:
        worker = Worker(stack, Path(tempfile.gettempdir()))
        while line := await reader.readline():  # ends, too, when who asked is gone
            reply = await worker.do(msgspec.json.decode(line, type=Command))
            sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main())
