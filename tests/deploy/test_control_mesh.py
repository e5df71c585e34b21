"""The whole control process with real etcd and real Envoy: one cluster serves its sidecars, two exchange exports."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from federation.model import Liveness
from tests.support.addresses import free_address
from tests.support.control import (
    DOMAIN,
    PATIENCE,
    Control,
    export,
    isthmus,
    join,
    pod,
    service,
    start_app,
    start_control,
    start_proxy,
    until,
    write_contexts,
)
from tests.support.trust import init_root
from tests.support.waiting import eventually
from trust.root import Root
from trust.spiffe import MeshDomain


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return init_root(tmp_path / "root", MeshDomain(DOMAIN), now=datetime.now(UTC))


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def call(proxy: str, url: str) -> tuple[int, Any]:
    """GETs through a sidecar; the answer is (status, JSON or text)."""
    async with (
        asyncio.timeout(PATIENCE.total_seconds()),
        aiohttp.ClientSession() as session,
        session.get(url, proxy=f"http://{proxy}:15001") as response,
    ):
        return response.status, await (response.json() if response.status == 200 else response.text())


async def call_until(proxy: str, url: str, right: Callable[[int, Any], bool]) -> Any:
    """GETs through a sidecar until the answer is as it should be; returns it."""
    deadline = time.monotonic() + PATIENCE.total_seconds()
    while True:
        try:
            status, answer = await call(proxy, url)
        except aiohttp.ClientError as error:
            status, answer = 0, repr(error)
        if right(status, answer):
            return answer
        assert time.monotonic() < deadline, f"{url} answers {status} {answer}"
        await asyncio.sleep(0.02)


async def metrics(control: Control) -> str:
    """Scrapes a control plane."""
    async with aiohttp.ClientSession() as session, session.get(f"{control.context['admin']}/metrics") as response:
        return await response.text()


async def test_a_sidecar_whose_pod_comes_from_a_manifests_folder_is_served(
    tmp_path: Path, root: Root, stack: AsyncExitStack
) -> None:
    east = await stack.enter_async_context(start_control(tmp_path / "east"))
    await join(root, east)
    client, cart = free_address(), free_address()
    await stack.enter_async_context(start_app("cart-1", cart))
    envoy = await stack.enter_async_context(
        start_proxy(east, root, "east/shop/client-1", address=client, account="client")
    )
    await stack.enter_async_context(start_proxy(east, root, "east/shop/cart-1", address=cart, account="cart"))
    # the proxies come first and are told to come back; the folder is watched, nothing is restarted
    east.write("pods.yaml", pod("client-1", "client", client), pod("cart-1", "cart", cart))
    east.write("cart.yaml", service("cart"))
    await envoy.wait_live()
    answer = await call_until(client, "http://cart.shop", lambda status, _: status == 200)
    assert answer["name"] == "cart-1"
    assert f"URI=spiffe://east.{DOMAIN}/ns/shop/sa/client" in answer["caller"]

    async with east.client() as admin:
        both = await until(admin.proxies, lambda found: len(found) == 2 and all(one.is_in_step for one in found))
        assert [one.node for one in both] == ["east/shop/cart-1", "east/shop/client-1"]
        assert both[0].identity == f"spiffe://east.{DOMAIN}/ns/shop/sa/cart"
        assert (await admin.status()).proxies_in_step == 2
    assert 'isthmus_proxies_in_step{role="sidecar"} 2.0' in await metrics(east)
    east.write("till.yaml", service("till"))
    await call_until(client, "http://till.shop", lambda status, _: status == 503)
    await until(lambda: metrics(east), lambda text: 'isthmus_convergence_seconds_count{scope="local"}' in text)

    # a broken object is shown with its line and disturbs nobody
    (east.manifests / "broken.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {ports: [{}]}\n"
    )
    contexts = write_contexts(tmp_path / "contexts.json", east)
    async with east.client() as admin:
        status = await until(admin.status, lambda found: bool(found.findings))
        assert status.findings[0].where.endswith("broken.yaml")
    shown = await isthmus("status", contexts=contexts)
    assert shown.code == 0
    assert "broken.yaml:4" in shown.stdout
    assert (await call(client, "http://cart.shop"))[0] == 200

    # killed and started again, it finds its proxies, and what changed meanwhile arrives
    await east.kill()
    assert (await call(client, "http://cart.shop"))[0] == 200
    east.write("basket.yaml", service("basket"))
    await east.start()
    await call_until(client, "http://basket.shop", lambda status, _: status == 503)
    assert (await call(client, "http://cart.shop"))[0] == 200


async def test_a_proxy_without_a_right_token_is_told_nothing(tmp_path: Path, root: Root, stack: AsyncExitStack) -> None:
    east = await stack.enter_async_context(start_control(tmp_path / "east"))
    await join(root, east)
    address = free_address()
    east.write("pods.yaml", pod("cart-1", "cart", address))
    envoy = await stack.enter_async_context(
        start_proxy(east, root, "east/shop/cart-1", address=address, account="client")
    )
    await eventually(lambda: "proxy refused" in east.log, "the proxy is refused")
    await envoy.wait_stat("cluster.xds.upstream_rq_total", lambda tries: tries >= 3)
    async with east.client() as admin:
        assert await admin.proxies() == ()
    assert not (await envoy.get("/ready")).startswith("LIVE")
    assert east.log.count("proxy refused") == 1


async def test_two_clusters_exchange_exports_and_calls_cross_over(
    tmp_path: Path, root: Root, stack: AsyncExitStack
) -> None:
    gateway = {"east": free_address(), "west": free_address()}
    started = {
        name: start_control(tmp_path / name, name, "--region", region, "--gateways", gateway[name])
        for name, region in (("east", "eu"), ("west", "us"))
    }
    east, west = [await stack.enter_async_context(one) for one in started.values()]
    await join(root, east)
    await join(root, west, via=east)
    for control in (east, west):
        node, address = f"{control.name}/gateway-1", gateway[control.name]
        await stack.enter_async_context(start_proxy(control, root, node, address=address, account="gateway"))
    client, carts = free_address(), [free_address(), free_address()]
    east.write("client.yaml", pod("client-1", "client", client))
    west.write("cart.yaml", service("cart"), export("cart"))
    west.write("cart-1.yaml", pod("cart-1", "cart", carts[0]))
    await stack.enter_async_context(start_proxy(east, root, "east/shop/client-1", address=client, account="client"))
    for number, address in enumerate(carts, 1):
        await stack.enter_async_context(start_app(f"cart-{number}", address))
        node = f"west/shop/cart-{number}"
        await stack.enter_async_context(start_proxy(west, root, node, address=address, account="cart"))

    url = "http://cart.shop.svc.clusterset.local"
    answer = await call_until(client, url, lambda status, _: status == 200)
    assert answer["name"] == "cart-1"
    assert f"URI=spiffe://east.{DOMAIN}/ns/shop/sa/client" in answer["caller"]

    # one introduction is enough for both to know and hear each other
    async with east.client() as at_east, west.client() as at_west:
        for admin in (at_east, at_west):
            await until(
                admin.clusters,
                lambda found: len(found) == 2 and all(one.state is Liveness.LIVE for one in found),
            )
        (cart,) = await at_east.services()
        assert (cart.is_local, [(place.cluster, place.endpoints) for place in cart.places]) == (False, [("west", 1)])

        west.write("cart-2.yaml", pod("cart-2", "cart", carts[1]))
        await until(at_east.services, lambda found: found[0].places[0].endpoints == 2)
        await call_until(client, url, lambda _, answer: answer["name"] == "cart-2")
        await until(lambda: metrics(east), lambda text: 'isthmus_convergence_seconds_count{scope="remote"}' in text)

        # the control plane of west is gone: its endpoints stay, it is shown as stale, and comes back
        await west.kill()
        await until(at_east.clusters, lambda found: found[1].state is Liveness.STALE)
        assert (await call(client, url))[0] == 200
        await west.start()
        await until(at_east.clusters, lambda found: found[1].state is Liveness.LIVE)

    contexts = write_contexts(tmp_path / "contexts.json", east, west)
    shown = await isthmus("clusters", contexts=contexts)
    assert shown.code == 0, shown.stderr
    assert "west" in shown.stdout
    assert "1 in" in shown.stdout
    await until(lambda: isthmus("proxies", contexts=contexts), lambda proxies: "west/gateway-1" in proxies.stdout)
