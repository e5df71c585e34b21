"""Two real replicas, one cut from etcd: its Envoys move to the other. Where both have none, nobody moves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from federation.admin import DrainOrder
from federation.reports import StatusReport
from tests.support.addresses import free_address
from tests.support.control import DOMAIN, Control, join, pod, service, start_proxy, until
from tests.support.envoy import Envoy
from tests.support.etcd import Etcd, start_etcd
from tests.support.relay import Relay, start_relay
from tests.support.trust import init_root
from trust.spiffe import MeshDomain

LONG = timedelta(seconds=8)
"""An outage in which a replica would have handed over, if another one had etcd."""


class Cluster:
    """A cluster whose proxies are all on its first replica. The relay leads from that one to etcd."""

    def __init__(self, etcd: Etcd, relay: Relay, one: Control, two: Control, envoys: list[Envoy]) -> None:
        self.etcd = etcd
        self.relay = relay
        self.one = one
        self.two = two
        self.envoys = envoys

    async def served(self) -> frozenset[str]:
        """Returns the proxies on streams of either replica."""
        return frozenset({**await streams(self.one), **await streams(self.two)})


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    folder = tmp_path / "east"
    (folder / "etcd").mkdir(parents=True)
    addresses = [free_address(), free_address()]
    arguments = ("--region", "eu", "--control-addresses", ",".join(addresses))
    root = init_root(tmp_path / "root", MeshDomain(DOMAIN), now=datetime.now(UTC))
    async with AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(start_etcd(folder / "etcd"))
        relay = await stack.enter_async_context(start_relay((etcd.url.partition("//")[2].partition(":")[0], 2379)))
        one = Control(
            folder, "east", etcd=f"http://{relay.address}:2379", arguments=arguments, address=addresses[0]
        )  # fmt: skip
        two = Control(
            folder,
            "east",
            etcd=etcd.url,
            arguments=arguments,
            address=addresses[1],
            replica="control-2",
            manifests="manifests-of-two",
        )
        pods = {f"cart-{number}": free_address() for number in range(3)}
        for each in (one, two):
            each.write("pods.yaml", *(pod(name, "cart", address) for name, address in pods.items()))
        await stack.enter_async_context(running(one))
        await join(root, one)
        async with one.client() as admin:
            await admin.drain(
                DrainOrder("east", 50)
            )  # while anything is drained proxies report each second, not each ten
        envoys = [
            await stack.enter_async_context(
                start_proxy(one, root, f"east/shop/{name}", address=address, account="cart", others=[two])
            )
            for name, address in pods.items()
        ]
        async with one.client() as admin:
            await until(
                admin.proxies, lambda found: len(found) == len(envoys) and all(each.is_in_step for each in found)
            )
        await stack.enter_async_context(running(two))
        for each in (one, two):
            await until(lambda each=each: is_steady(each), bool)  # type: ignore[misc]
        yield Cluster(etcd, relay, one, two, envoys)


@asynccontextmanager
async def running(control: Control) -> AsyncIterator[None]:
    await control.start()
    try:
        yield
    finally:
        await control.stop()


async def probe(control: Control, path: str) -> int:
    async with aiohttp.ClientSession() as http, http.get(control.context["admin"] + path) as response:
        return response.status


async def is_steady(control: Control) -> bool:
    return await probe(control, "/healthz/etcd") == 200


async def status(control: Control) -> StatusReport:
    async with control.client() as admin:
        return await admin.status()


async def streams(control: Control) -> dict[str, datetime]:
    """Returns since when each proxy has been on its stream."""
    async with control.client() as admin:
        return {proxy.node: proxy.connected_since for proxy in await admin.proxies()}


def said(report: StatusReport) -> str:
    return "; ".join(f"{problem.subject} {problem.message}" for problem in report.problems)


async def test_proxies_move_to_a_replica_that_has_etcd_when_theirs_has_none_and_only_then(cluster: Cluster) -> None:
    await _nobody_moves_where_no_replica_has_etcd(cluster)
    one, two = cluster.one, cluster.two
    cluster.relay.freeze()
    two.write("news.yaml", service("news"))  # what only the other replica hears of
    for envoy in cluster.envoys:
        await envoy.wait_for("/config_dump", lambda text: "news.shop" in text)
    await until(lambda: streams(two), lambda found: len(found) == len(cluster.envoys))
    async with two.client() as admin, asyncio.TaskGroup() as tasks:
        # Envoy waits for some seconds before it reports to the next one: the rest need not.
        tasks.create_task(until(admin.load, lambda report: report.reporting == len(cluster.envoys)))
        assert await streams(one) == {}
        told = await until(lambda: status(one), lambda report: "handed over" in said(report))
        assert not told.is_ready
        assert told.waiting_for == ("etcd",)
        assert (await probe(one, "/readyz"), await probe(one, "/healthz/etcd")) == (503, 503)
        before = await streams(two)

        await cluster.relay.open()
        await until(lambda: status(one), lambda report: report.is_ready)
        assert await streams(two) == before, "who has moved stays"

    # nobody else has etcd any more, and so the one that is left serves
    cluster.relay.freeze()
    await until(lambda: status(one), lambda report: not report.is_ready)
    await two.kill()
    await until(lambda: streams(one), lambda found: len(found) == len(cluster.envoys))


async def _nobody_moves_where_no_replica_has_etcd(cluster: Cluster) -> None:
    await cluster.etcd.kill()
    for each in (cluster.one, cluster.two):
        await until(
            lambda each=each: status(each),  # type: ignore[misc]
            lambda report: any(
                problem.subject == "etcd" and datetime.now(UTC) - problem.since > LONG for problem in report.problems
            ),
        )
    await cluster.etcd.start()
    for each in (cluster.one, cluster.two):
        await until(lambda each=each: is_steady(each), bool)  # type: ignore[misc]
    # A machine that stands still ends streams too: what counts is that nobody was sent away.
    assert "handed over" not in cluster.one.log + cluster.two.log
    await until(cluster.served, lambda served: len(served) == len(cluster.envoys))
