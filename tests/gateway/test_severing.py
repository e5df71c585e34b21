"""What is open to a drained cluster ends when it is severed: new calls do not fail, what is not concerned stays."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from federation.model import Drain, ServiceKey, Severance
from federation.snapshot import Replace, Section
from tests.support.pushed_mesh import Client, PushedMesh, run_pushed_mesh
from tests.support.two_clusters import SHOP
from tests.support.waiting import eventually
from trust.spiffe import ClusterName

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WEST = ClusterName("west")
CART = ServiceKey(SHOP, "cart")


async def sever(mesh: PushedMesh, *, service: ServiceKey | None = None, sidecars: bool = False) -> None:
    """Makes what is open to west end, and waits until its proxies have been told."""
    one = Severance(WEST, NOW, service=service, sidecars=sidecars)
    mesh.know("west", Replace(Section.SEVERANCES, {(WEST, service): one}))
    await mesh.pushing.settled()


@asynccontextmanager
async def calling(client: Client) -> AsyncIterator[None]:
    """Calls without pause while the block runs; none of it may fail."""
    statuses: list[int] = []

    async def call() -> None:
        while True:
            statuses.append(await client.get())

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(call())
        yield
        task.cancel()
    assert set(statuses) == {200}


@pytest.mark.parametrize("network", ["", "one"], ids=["through gateways", "directly"])
async def test_what_is_open_ends_and_new_calls_do_not_fail(tmp_path: Path, network: str) -> None:
    async with run_pushed_mesh(tmp_path, network=lambda name: network or name) as mesh:
        east, north = mesh.client("east"), mesh.client("north")
        async with calling(east), east.streaming(), north.streaming():
            connections = [await east.tcp(), await north.tcp()]
            assert [await one.echoes() for one in connections] == [True, True]
            await sever(mesh, sidecars=bool(network))
            for one in connections:
                await one.ends()
            await eventually(lambda: not (east.is_streaming or north.is_streaming), "the open responses end")
            await east.wait_served()

        # the drain is undone, and begins again: nothing is cut by that
        async with north.working():
            await north.works_on()
            before = await north.connections()
            for drains in ({}, {(WEST, None): Drain(WEST, 50, NOW, sever=True)}, {}):
                mesh.know("west", Replace(Section.DRAINS, drains))
                await mesh.pushing.settled()
            await north.works_on()
            assert north.failures == []
            assert await north.connections() == before


async def test_severing_a_service_ends_nothing_of_another(tmp_path: Path) -> None:
    async with run_pushed_mesh(tmp_path) as mesh:
        east = mesh.client("east")
        async with calling(east), east.streaming():
            store = await east.tcp()
            assert await store.echoes()
            await sever(mesh, service=CART, sidecars=True)
            await eventually(lambda: not east.is_streaming, "the open response of cart ends")
            assert await store.echoes()
            store.close()
