"""etcd breaks: traffic goes on, what must be written is written again, and `isthmus status` says what is wrong."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

from deploy.lab.links import LinkState
from deploy.lab.reports import Action
from tests.faults.broken_mesh import BrokenMesh
from tests.faults.pictures import Picture
from tests.faults.row import NotYet, answer

ETCD = "east/etcd"


async def says(mesh: BrokenMesh, cluster: str, subject: str, words: str) -> None:
    """Raises NotYet unless a replica's `isthmus status` has a problem with that subject and one of those words."""
    seen = []
    for replica in mesh.replicas(cluster):
        for problem in (await mesh.status(replica)).problems:
            seen.append(f"{problem.subject}: {problem.message}")
            if problem.subject == subject and any(word in problem.message for word in words.split("|")):
                return
    raise NotYet(f"{cluster} says {seen}")


async def test_etcd_is_killed(mesh: BrokenMesh, before: Picture) -> None:
    async with mesh.row("etcd kill -9", before) as row:
        row.strikes()
        await mesh.act(Action.KILL, ETCD)
        await row.detects("status: etcd", lambda: says(mesh, "east", "etcd", ""))
        await mesh.act(Action.START, ETCD)
        row.mends()


async def test_etcd_is_paused(mesh: BrokenMesh, before: Picture, pause: float) -> None:
    async with mesh.row(f"etcd paused {pause:.0f} s", before) as row:
        streams = await answer(lambda: _streams(mesh))
        row.strikes()
        await mesh.act(Action.PAUSE, ETCD)
        await row.detects("status: etcd", lambda: says(mesh, "east", "etcd", ""))
        await row.lasts(pause)
        await mesh.act(Action.RESUME, ETCD)
        row.mends()
    assert await answer(lambda: _streams(mesh)) == streams, "no replica is better off"


async def test_etcd_comes_back_empty(mesh: BrokenMesh, before: Picture) -> None:
    async with mesh.row("etcd wiped", before) as row:
        records = await answer(lambda: mesh.records(ETCD))
        row.strikes()
        await mesh.act(Action.WIPE, ETCD)
        await row.detects("status: etcd", lambda: says(mesh, "east", "etcd", ""))
        await mesh.act(Action.START, ETCD)
        row.mends()

        async def is_written_again() -> None:
            missing = records - await mesh.records(ETCD)
            if missing:
                raise NotYet(f"not written again: {sorted(missing)}")

        await row.notices("all records are back after", is_written_again)


async def test_etcd_takes_no_more_writes(mesh: BrokenMesh, before: Picture) -> None:
    alarm = {"alarm": "NOSPACE", "memberID": (await mesh.etcd(ETCD, "maintenance/status", {}))["header"]["member_id"]}
    async with mesh.row("etcd read-only (quota)", before) as row:
        await mesh.etcd(ETCD, "maintenance/alarm", {"action": "ACTIVATE", **alarm})
        row.strikes()
        try:
            await row.detects("status: etcd read-only", lambda: says(mesh, "east", "etcd", "read-only|quota|space"))
        finally:
            await mesh.etcd(ETCD, "maintenance/alarm", {"action": "DEACTIVATE", **alarm})
        row.mends()


async def test_history_is_compacted_while_we_are_away(mesh: BrokenMesh, before: Picture) -> None:
    async with mesh.row("etcd compacted while away", before) as row:
        row.strikes()
        await mesh.link("east/control", ETCD, LinkState.REFUSING)
        for number in range(5):
            await _put(mesh, f"/other/{number}")
        revision = (await mesh.etcd(ETCD, "maintenance/status", {}))["header"]["revision"]
        await mesh.etcd(ETCD, "kv/compaction", {"revision": revision})
        await row.detects("status: etcd", lambda: says(mesh, "east", "etcd", ""))
        await mesh.link("east/control", ETCD, LinkState.OPEN)
        row.mends()


async def test_etcd_is_slow(mesh: BrokenMesh, before: Picture) -> None:
    async with mesh.row("etcd slow (frozen 4/5 of the time)", before) as row:
        row.strikes()
        async with _halting(mesh):
            await row.detects("status: etcd slow", lambda: says(mesh, "east", "etcd", ""))
        row.mends()


async def test_one_etcd_of_three_is_lost(mesh: BrokenMesh, before: Picture) -> None:
    async with mesh.row("etcd: one node of three lost", before) as row:
        row.strikes()
        await mesh.act(Action.KILL, "west/etcd-1")
        await row.detects("status: west is led", lambda: mesh.is_led("west"))
        await row.lasts(6)  # longer than the lease of a leader whose etcd that was
        await mesh.is_led("west")
        await mesh.act(Action.START, "west/etcd-1")
        row.mends()


async def _streams(mesh: BrokenMesh) -> list[dict[str, datetime]]:
    return [await mesh.streams(replica) for replica in mesh.replicas("east")]


async def _put(mesh: BrokenMesh, key: str) -> None:
    await mesh.etcd(ETCD, "kv/put", {"key": base64.b64encode(key.encode()).decode(), "value": ""})


@asynccontextmanager
async def _halting(mesh: BrokenMesh) -> AsyncIterator[None]:
    """Lets etcd work for a fifth of each second."""

    async def halt() -> None:
        while True:
            await mesh.act(Action.PAUSE, ETCD)
            await asyncio.sleep(0.8)
            await mesh.act(Action.RESUME, ETCD)
            await asyncio.sleep(0.2)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(halt())
        try:
            yield
        finally:
            task.cancel()
    await mesh.act(Action.RESUME, ETCD)
