"""Many members on this machine: they join, idle and change, while the kernel and etcd count what that costs.

1, 2            run in the first workers     ── idle ──► the third joins, in a process of its own
4 to N - 1      are added to the first workers ─ idle ─► the Nth joins, in a process of its own, with a sidecar
one by one      changes in those of the first workers, then in the third: each when the one before is everywhere
churn           at each rate, in all members, one after another
"""

import asyncio
import os
import platform
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import randbelow

import msgspec
import psutil
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from federation.peering import exports
from tests.benchmarks import commands
from tests.benchmarks.commands import Done, Held, Took, Usage
from tests.benchmarks.figures import (
    Churned,
    Counted,
    Figures,
    Idle,
    Join,
    OneByOne,
    by_change,
    count,
    is_consistent,
    quantiles,
)
from tests.benchmarks.measures import EtcdUsage, etcd_usage
from tests.benchmarks.plan import Plan, Spec, name_of, settings_of
from tests.benchmarks.processes import WorkerProcess, longest_stall, start_worker
from tests.support.etcd import Etcd, start_etcd
from tests.support.trust import DOMAIN
from tests.support.trust_keepers import RootUnderTest
from trust.certificates import make_intermediate, make_root, new_key

_WORKERS = 8  # for all members but the two that are watched joining: with more in one, each waits longer for the others
_ETCDS_AT_ONCE = 4
_LIMIT = 180.0  # seconds for a mesh to become whole
_CHANGE_LIMIT = 60.0  # seconds for one change to come to all
_THIRD = 3  # the member that is watched joining a small mesh, and has a process to itself since
_LOOKS = 20  # at most, each some seconds after the other, until all pictures are equal to what is offered
_ETCD_ARGUMENTS = ("--heartbeat-interval", "100", "--election-timeout", "1000")  # etcd's own, not the hasty ones


class _Look(msgspec.Struct, frozen=True):
    """What all processes have used, at one moment; `load` is what the whole machine did, in seconds of CPU."""

    workers: tuple[Usage, ...]
    etcds: Mapping[int, EtcdUsage]
    load: float


class Simulation:
    """One run of a plan; `say` is told how it goes."""

    def __init__(self, plan: Plan, folder: Path, stack: AsyncExitStack, say: Callable[[str], None]) -> None:
        if plan.members < 3:
            raise ValueError("a third member joins: a simulation has three or more")
        self._plan = plan
        self._folder = folder
        self._stack = stack
        self._say = say
        self._etcds: dict[int, Etcd] = {}
        self._certificates: dict[int, str] = {}
        self._workers: list[WorkerProcess] = []
        self._net = randbelow(256)
        key, now = new_key(), datetime.now(UTC)
        self._key, self._root = key, make_root(key, DOMAIN, now=now, lifetime=timedelta(days=2))
        self._document = RootUnderTest(DOMAIN, key=key, certificate=self._root).say()

    async def run(self) -> Figures:
        """Runs all of it; raises SimulationFailed."""
        plan, began = self._plan, time.time()
        for _ in range(_WORKERS):
            await self._start_worker()
        idle, joins = [], []
        await self._add([1, 2])
        await self._whole(2)
        joins.append(await self._watch_joining(_THIRD))
        idle.append(await self._idle(3))
        if plan.members > 3:
            await self._add(list(range(4, plan.members)))
            await self._whole(plan.members - 1)
            joins.append(await self._watch_joining(plan.members))
            idle.append(await self._idle(plan.members))
        one_by_one = await self._one_by_one(idle[-1])
        churn = [await self._churn(rate, idle[-1]) for rate in plan.rates]
        is_equal = await self._await_equal()
        return Figures(
            machine=f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            members=plan.members,
            services=plan.members * plan.services,
            endpoints=plan.endpoints,
            idle=tuple(idle),
            joins=tuple(joins),
            one_by_one=one_by_one,
            churn=tuple(churn),
            is_consistent=is_equal,
            took=time.time() - began,
        )

    # Members come

    async def _start_worker(self) -> WorkerProcess:
        worker = await self._stack.enter_async_context(start_worker(self._folder))
        self._workers.append(worker)
        await worker.ask(commands.Measure(), Usage)  # it has been imported, all that it needs
        return worker

    async def _add(self, numbers: Sequence[int]) -> None:
        """Adds members to the first workers, each via the first member, and the next when the mesh is whole.

        Two at a time made a busy machine so late that streams were given up, and made anew, faster than it could.
        """
        self._say(f"members {numbers[0]} to {numbers[-1]} join")
        began = time.time()
        await self._start_etcds(numbers)
        for number in numbers:
            await self._start(self._workers[number % _WORKERS], [number])
            await self._whole(number)
            self._say(f"{number} members are whole after {time.time() - began:.0f} s")

    async def _start(self, worker: WorkerProcess, numbers: Sequence[int]) -> None:
        specs = tuple(map(self._spec, numbers))
        await worker.ask(commands.Start(self._plan, specs), Done)
        worker.members += numbers
        first = exports.own_member(settings_of(self._plan, 1, self._address(1)), certificate=self._certificates[1])
        for number in numbers:
            if number != 1:
                await worker.ask(commands.Introduce(number, first), Done)

    async def _start_etcds(self, numbers: Sequence[int]) -> None:
        for begin in range(0, len(numbers), _ETCDS_AT_ONCE):
            await asyncio.gather(*map(self._start_etcd, numbers[begin : begin + _ETCDS_AT_ONCE]))

    async def _start_etcd(self, number: int) -> None:
        folder = self._folder / name_of(number)
        folder.mkdir()
        etcd = start_etcd(folder, arguments=_ETCD_ARGUMENTS)
        self._etcds[number] = await self._stack.enter_async_context(etcd)

    def _address(self, number: int) -> str:
        return f"127.108.{self._net}.{number}"

    def _spec(self, number: int) -> Spec:
        key = new_key()
        certificate = make_intermediate(
            self._root,
            self._key,
            public_key=key.public_key(),
            cluster=name_of(number),
            domain=DOMAIN,
            now=datetime.now(UTC),
            lifetime=timedelta(days=1),
        )
        pem = certificate.public_bytes(Encoding.PEM).decode()
        self._certificates[number] = pem
        return Spec(
            index=number,
            address=self._address(number),
            etcd=self._etcds[number].url,
            key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
            certificate=pem,
            root=self._root.public_bytes(Encoding.PEM).decode(),
            documents=(msgspec.json.encode(self._document).decode(),),
        )

    async def _whole(self, members: int) -> float:
        """Returns when all so many members had a whole picture."""
        command = commands.AwaitWhole(members, members * self._plan.services, _LIMIT)
        waiting = [worker.ask(command, Done) for worker in self._workers if worker.members]
        return max(done.at for done in await asyncio.gather(*waiting))

    async def _await_equal(self) -> bool:
        """Says whether every picture has become equal to what is offered, within a while: the last changes are late."""
        for _ in range(_LOOKS):
            held = [await worker.ask(commands.Digest(), Held) for worker in self._workers]
            if is_consistent({name: of for one in held for name, of in one.digests.items()}):
                return True
            await asyncio.sleep(self._plan.settle_seconds)
        return False

    # What it costs

    async def _look(self) -> _Look:
        workers = await asyncio.gather(*(worker.ask(commands.Measure(), Usage) for worker in self._workers))
        etcds = {number: await etcd_usage(etcd.address, etcd.pid) for number, etcd in self._etcds.items()}
        machine = psutil.cpu_times()
        return _Look(tuple(workers), etcds, sum(machine) - machine.idle - machine.iowait)

    async def _over(self, seconds: float) -> tuple[_Look, _Look]:
        before = await self._look()
        await asyncio.sleep(seconds)
        return before, await self._look()

    async def _watch_joining(self, number: int) -> Join:
        self._say(f"member {number} joins")
        worker = await self._start_worker()
        await self._start_etcds([number])
        await asyncio.sleep(self._plan.settle_seconds)
        idle = _count(*await self._over(self._plan.join_seconds))
        before = await self._look()
        began = time.time()
        await self._start(worker, [number])
        if number == self._plan.members:
            await worker.ask(commands.AddSidecar(number), Done)
        whole = await self._whole(number)
        # What it causes may last a little longer: the same span as of idling is looked at, at least.
        await asyncio.sleep(max(0.0, self._plan.join_seconds - (time.time() - began)))
        after = await self._look()
        old = [other for other in self._etcds if other != number]
        return Join(
            number=number,
            services=(number - 1) * self._plan.services,
            seconds=whole - began,
            newcomer=count(
                [before.workers[-1], before.etcds[number]],
                [after.workers[-1], after.etcds[number]],
            ),
            old=count(
                [*before.workers[:-1], *(before.etcds[other] for other in old)],
                [*after.workers[:-1], *(after.etcds[other] for other in old)],
            )
            .without(idle)
            .each(len(old)),
            newcomer_rss=after.workers[-1].rss,
            newcomer_rss_before=before.workers[-1].rss,
        )

    async def _idle(self, members: int) -> Idle:
        self._say(f"{members} members idle")
        await asyncio.sleep(self._plan.settle_seconds)
        before, after = await self._over(self._plan.idle_seconds)
        etcds = list(after.etcds.values())
        return Idle(
            members=members,
            each=_count(before, after).each(members),
            control_rss=sum(one.rss for one in after.workers) / members,
            etcd_rss=sum(one.rss for one in etcds) / members,
            etcd_keys=sum(one.keys for one in etcds) / members,
            etcd_bytes=sum(one.size for one in etcds) / members,
        )

    async def _one_by_one(self, idle: Idle) -> OneByOne:
        plan, drawn = self._plan, random.Random(self._plan.seed)
        crowd = [number for worker in self._workers[:_WORKERS] for number in sorted(worker.members)]
        for number in sorted(crowd)[: plan.sidecars - 1]:
            await self._worker_of(number).ask(commands.AddSidecar(number), Done)
        await asyncio.sleep(plan.settle_seconds)
        await self._took()
        self._say(f"{plan.quiet_changes} endpoints come or go, one after another")
        before = await self._look()
        async with longest_stall() as stall:
            took = [await self._change_one(drawn.choice(crowd)) for _ in range(plan.quiet_changes)]
        between = await self._look()
        self._say(f"{plan.sender_changes} more of one member")
        for _ in range(plan.sender_changes):
            await self._change_one(_THIRD)
        after = await self._look()
        idling = idle.each.each(1 / plan.members)
        spans = by_change(one for of_change in took for one in of_change)
        return OneByOne(
            changes=plan.quiet_changes,
            first=quantiles(found[0] for found in spans),
            median=quantiles(found[len(found) // 2] for found in spans),
            last=quantiles(found[-1] for found in spans),
            sidecar=quantiles(span for of_change in took for one in of_change for span in one.sidecar),
            per_change=_count(before, between).without(idling).each(plan.quiet_changes),
            receiver=self._of_third(before, between).without(idle.each).each(plan.quiet_changes),
            sender=self._of_third(between, after).without(idle.each).each(plan.sender_changes),
            cores=os.cpu_count() or 1,
            load=_load(before, between),
            stall=stall.seconds,
        )

    async def _change_one(self, number: int) -> list[Took]:
        """Lets a member change an endpoint, and returns how long that took once it is everywhere."""
        changed = await self._worker_of(number).ask(commands.ChangeOne(number), Done)
        command = commands.AwaitTaken(number, changed.at, _CHANGE_LIMIT)
        took = await asyncio.gather(*(worker.ask(command, Took) for worker in self._workers))
        await asyncio.sleep(self._plan.quiet_pause)
        return list(took)

    async def _churn(self, rate: float, idle: Idle) -> Churned:
        self._say(f"{rate:g} endpoints come or go each second")
        plan = self._plan
        seconds = max(plan.churn_seconds, plan.churn_changes / rate)
        await self._took()
        before = await self._look()
        asked = [
            worker.ask(commands.Churn(rate * len(worker.members) / plan.members, seconds, plan.seed + place), Done)
            for place, worker in enumerate(self._workers)
            if worker.members
        ]
        changes = sum(done.changes for done in await asyncio.gather(*asked))
        between = await self._look()
        took = list[Took]()
        for _ in range(_LOOKS):  # those that are late count as well
            await asyncio.sleep(plan.settle_seconds)
            late = await self._took()
            took += late
            if not any(one.picture for one in late):
                break
        counted, spans = _count(before, await self._look()), by_change(took)
        busy = _count(before, between)
        return Churned(
            rate=rate,
            changes=changes,
            per_change=counted.without(idle.each.each(1 / plan.members)).each(max(1, changes)),
            picture=quantiles(span for found in spans for span in found),
            everywhere=quantiles(found[-1] for found in spans),
            sidecar=quantiles(span for one in took for span in one.sidecar),
            reached=sum(map(len, spans)) / max(1, changes),
            cpu_busy=(busy.cpu + busy.etcd_cpu) / busy.seconds,
            load=_load(before, between),
        )

    async def _took(self) -> list[Took]:
        return [await worker.ask(commands.Converged(), Took) for worker in self._workers]

    def _worker_of(self, number: int) -> WorkerProcess:
        return next(worker for worker in self._workers if number in worker.members)

    def _of_third(self, before: _Look, after: _Look) -> Counted:
        """Returns what the third member used, which has a process to itself."""
        pairs = [[look.workers[_WORKERS], look.etcds[_THIRD]] for look in (before, after)]
        return count(pairs[0], pairs[1])


def _load(before: _Look, after: _Look) -> float:
    """Returns how many cores of the machine were busy."""
    return (after.load - before.load) / (after.workers[0].at - before.workers[0].at)


def _count(before: _Look, after: _Look) -> Counted:
    return count([*before.workers, *before.etcds.values()], [*after.workers, *after.etcds.values()])


@asynccontextmanager
async def prepare(plan: Plan, say: Callable[[str], None] = lambda _: None) -> AsyncIterator[Simulation]:
    """Gives a simulation whose processes and data are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as folder:
        async with AsyncExitStack() as stack:
            yield Simulation(plan, Path(folder), stack, say)
