"""Shares of calls, measured at real Envoys: member weights, failover, drains under open streams, endpoints that end."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import aiohttp
import grpc
import pytest
import pytest_asyncio

from federation.model import OUTBOUND_PORT, Drain, ServicePolicy, WhenStale
from federation.snapshot import VOUCHED_KEY, Change, Replace, Section
from federation.xds.resources import Resource, TypeUrl
from tests.support.envoy import PATIENCE
from tests.support.three_clusters import ThreeClusters, run_three_clusters
from tests.support.two_clusters import FAR_STORE_USE, far, key
from tests.support.waiting import eventually
from tests.system.programs.grpc_echo import STREAM
from trust.spiffe import ClusterName

pytestmark = pytest.mark.asyncio(loop_scope="module")

EAST, WEST, SOUTH = (ClusterName(name) for name in ("east", "west", "south"))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
DROP = ServicePolicy(when_stale=WhenStale.DROP, drop_after=timedelta(seconds=2))
NO_POLICIES, NO_DRAINS = Replace(Section.POLICIES, {}), Replace(Section.DRAINS, {})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ThreeClusters]:
    async with run_three_clusters(tmp_path_factory.mktemp("mesh")) as mesh:
        yield mesh


@pytest_asyncio.fixture(loop_scope="module")
async def mesh(running: ThreeClusters) -> AsyncIterator[ThreeClusters]:
    """The mesh, without any policy and drain, and with nobody ejected."""
    await running.know(NO_POLICIES, NO_DRAINS)
    await running.client.wait_for("/clusters", lambda page: "failed_outlier_check" not in page)
    yield running


def weights(**shares: int) -> Change:
    return Change(
        Section.POLICIES,
        key("cart"),
        ServicePolicy(weights=tuple((ClusterName(name), share) for name, share in sorted(shares.items()))),
    )


def drain(member: ClusterName, weight: int) -> Change:
    return Change(Section.DRAINS, (member, None), Drain(member, weight, NOW))


async def calls(mesh: ThreeClusters, count: int, service: str = "cart") -> Counter[str]:
    """Makes calls one after the other; returns which members answered, or the status of what failed."""
    answered: Counter[str] = Counter()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        for _ in range(count):
            async with session.get(f"http://{far(service)}/", proxy=mesh.proxy) as response:
                await response.read()
                who = response.headers.get("x-isthmus-upstream", "")
                answered[who.partition("/")[0] if response.status == 200 else str(response.status)] += 1
    return answered


def expected(count: int, share: float) -> range:
    """Returns how many of `count` calls a share may be: five standard deviations, as if each call were drawn."""
    spread = 5 * math.sqrt(count * share * (1 - share))
    return range(math.floor(count * share - spread), math.ceil(count * share + spread) + 1)


async def test_calls_are_divided_by_member_weights(mesh: ThreeClusters) -> None:
    await mesh.know(weights(west=90, south=10))
    answered = await calls(mesh, 2000)
    assert answered.keys() == {WEST, SOUTH}
    assert answered[WEST] in expected(2000, 0.9)
    # Two hosts of west have 9 parts each, the one of south 2: of 20 calls in a row, each gets its own.
    assert abs(answered[SOUTH] - 200) <= 2


async def test_a_change_of_weights_is_a_change_of_endpoints_only(mesh: ThreeClusters) -> None:
    await mesh.know(weights(west=90, south=10))
    before = mesh.told
    await mesh.know(weights(west=50, south=50))
    changed = {
        type_url.name
        for resources, earlier in zip(mesh.told.values(), before.values(), strict=True)
        for type_url, of_type in resources.items()
        if of_type != earlier[type_url]
    }
    assert changed == {"ENDPOINTS"}
    answered = await calls(mesh, 200)
    assert abs(answered[WEST] - 100) <= 2


async def test_when_a_weighted_member_is_dead_the_others_get_its_calls(mesh: ThreeClusters) -> None:
    await mesh.know(weights(west=90, south=10))
    dead = [mesh.sidecars["west/server-1"], mesh.sidecars["west/server-2"]]
    for sidecar in dead:
        await sidecar.kill()
    try:
        answered = await calls(mesh, 300)
        assert not [who for who in answered if who.isdigit()], answered
        # While both are ejected: a host that is tried again after 2 s costs a call one retry, in the next priority.
        async with asyncio.timeout(PATIENCE):
            while await calls(mesh, 50) != {SOUTH: 50}:
                pass
        await mesh.sidecars["south/server-1"].kill()
        # Nobody who has a weight is left: the nearest is called.
        answered = await calls(mesh, 300)
        assert answered.keys() == {EAST}
    finally:
        for sidecar in (*dead, mesh.sidecars["south/server-1"]):
            if not sidecar.is_running:
                await sidecar.start()
                await sidecar.wait_live()


@asynccontextmanager
async def load(mesh: ThreeClusters) -> AsyncIterator[Counter[str]]:
    """Calls `cart` without pause; counts who answered."""
    answered: Counter[str] = Counter()

    async def work() -> None:
        while True:
            answered.update(await calls(mesh, 5))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work()) for _ in range(3)]
        try:
            yield answered
        finally:
            for task in tasks:
                task.cancel()


async def test_a_drain_moves_calls_step_by_step_and_ends_nothing_that_is_open(mesh: ThreeClusters) -> None:
    await mesh.know(weights(west=100))
    await mesh.know(Change(Section.POLICIES, key("greeter"), ServicePolicy(weights=((WEST, 1),))))
    await mesh.know(Change(Section.POLICIES, key("store"), ServicePolicy(weights=((WEST, 1),))))
    reader, writer = await asyncio.open_connection(mesh.address, FAR_STORE_USE)
    options = [("grpc.http_proxy", f"http://{mesh.address}:{OUTBOUND_PORT}")]
    async with (
        asyncio.timeout(PATIENCE),
        grpc.aio.insecure_channel(f"{far('greeter')}:50051", options=options) as channel,
    ):
        assert "west" in (await reader.readline()).decode()
        stream = channel.unary_stream(STREAM)(b"1000000")
        assert b"west" in await stream.read()
        async with load(mesh) as answered:
            for weight in (50, 10):
                await mesh.know(drain(WEST, weight))
                measured = await calls(mesh, 200)
                # The nearest of the others has what west has not.
                assert measured.keys() == {WEST, EAST}
                assert measured[WEST] in expected(200, weight / 100)
            await mesh.know(drain(WEST, 0))
            assert await calls(mesh, 200) == {EAST: 200}
            writer.write(b"still here\n")
            assert b"still here" in await reader.readline()
            for _ in range(50):
                assert b"west" in await stream.read()
            await mesh.know(NO_DRAINS)
            await eventually(lambda: answered[WEST] > 0)
            assert (await calls(mesh, 100)) == {WEST: 100}
        assert answered.keys() <= {WEST, EAST}, answered
        stream.cancel()
        writer.close()


async def test_a_drain_of_the_only_provider_keeps_it(mesh: ThreeClusters) -> None:
    await mesh.know(drain(WEST, 0))
    assert await calls(mesh, 20, "page") == {WEST: 20}


async def test_endpoints_of_others_end_with_the_word_of_the_control_plane(mesh: ThreeClusters) -> None:
    page = f"outbound|80|{far('page')}"
    await mesh.know(Change(Section.POLICIES, key("page"), DROP))
    confirmed = await mesh.client.stat(f"cluster.{page}.assignment_timeout_received")
    assert confirmed
    for count in (1, 2, 3):
        before = _assignment(mesh, page)
        await mesh.know(Change(Section.VOUCHED, VOUCHED_KEY, count))
        assert _assignment(mesh, page).body == before.body
        # The very same bytes make Envoy wait anew.
        assert await mesh.client.stat(f"cluster.{page}.assignment_timeout_received") == confirmed + count
    # Silence.
    await mesh.client.wait_stat(f"cluster.{page}.membership_total", lambda hosts: hosts == 0)
    assert await calls(mesh, 3, "page") == {"503": 3}
    assert await calls(mesh, 3) == {EAST: 3}, "what is here, or has no such policy, stays"
    await mesh.know(Change(Section.VOUCHED, VOUCHED_KEY, 4))
    await mesh.client.wait_stat(f"cluster.{page}.membership_total", lambda hosts: hosts == 2)


async def test_endpoints_of_others_end_with_a_dead_control_plane_and_come_back_with_it(mesh: ThreeClusters) -> None:
    hosts = f"cluster.outbound|80|{far('page')}.membership_total"
    await mesh.know(Change(Section.POLICIES, key("page"), DROP), Change(Section.VOUCHED, VOUCHED_KEY, 5))
    await mesh.silence()
    await mesh.client.wait_stat(hosts, lambda count: count == 0)
    assert await calls(mesh, 3) == {EAST: 3}
    await mesh.serve()
    await eventually(lambda: bool(mesh.pushing.connected), "the sidecar comes back")
    # The stream begins with the versions that Envoy still has: only what is confirmed anew is sent.
    await mesh.know(Change(Section.VOUCHED, VOUCHED_KEY, 6))
    await mesh.client.wait_stat(hosts, lambda count: count == 2)


def _assignment(mesh: ThreeClusters, name: str) -> Resource:
    (told,) = mesh.told.values()
    return told[TypeUrl.ENDPOINTS][name]
