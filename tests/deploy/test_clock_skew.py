"""Clocks that differ by five minutes, between members and between a control plane and its proxies, break nothing."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from federation.model import Liveness
from tests.support.addresses import free_address
from tests.support.clocks import envoy_clock, python_clock
from tests.support.control import (
    Control,
    export,
    join,
    pod,
    service,
    start_app,
    start_control,
    start_proxy,
    until,
)
from tests.support.envoy import Envoy
from tests.support.trust import init_root
from trust.root import Root

SKEW = timedelta(minutes=5)
_TOLERANCE = timedelta(minutes=1)
"""Between two looks at a clock: a test takes seconds, the skew is minutes."""


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return init_root(tmp_path / "root", now=datetime.now(UTC))


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def call_across(root: Root, stack: AsyncExitStack, folder: Path, clocks: Mapping[str, Mapping[str, str]]) -> None:
    """Joins east and west, and calls from east to west and back, with the clocks of `clocks` where one is given.

    Its keys: the name of a cluster for its control plane, `<cluster> proxies` for its Envoys.
    """
    gateways = {"east": free_address(), "west": free_address()}
    members = [
        await stack.enter_async_context(
            start_control(
                folder / name,
                name,
                *("--region", region, "--gateways", gateways[name]),
                environment=clocks.get(name, {}),
            )
        )
        for name, region in (("east", "eu"), ("west", "us"))
    ]
    east, west = members
    for member in members:
        assert abs(await _clock_of(member) - _shift(clocks.get(member.name, {}))) < _TOLERANCE
    await join(root, east)
    await join(root, west, via=east)
    envoys: list[Envoy] = []
    clients: dict[str, str] = {}
    for control in members:
        environment = clocks.get(f"{control.name} proxies", {})
        clients[control.name], app = free_address(), free_address()
        name = control.name
        control.write("pods.yaml", pod("client-1", "client", clients[name]), pod("cart-1", f"of-{name}", app))
        control.write("services.yaml", service(f"of-{name}"), export(f"of-{name}"))
        await stack.enter_async_context(start_app(f"app of {name}", app))
        for node, address, account in (
            ("gateway-1", gateways[name], "gateway"),
            ("shop/client-1", clients[name], "client"),
            ("shop/cart-1", app, f"of-{name}"),
        ):
            starting = start_proxy(
                control, root, f"{name}/{node}", address=address, account=account, environment=environment
            )
            envoys.append(await stack.enter_async_context(starting))
            await envoys[-1].wait_live()
            assert abs(_started(envoys[-1]) - datetime.now(UTC) - _shift(environment)) < _TOLERANCE
    for caller, callee in (("east", "west"), ("west", "east"), ("east", "east")):
        await _call_until(clients[caller], f"http://of-{callee}.shop.svc.clusterset.local", f"app of {callee}")
    for control, other in ((east, "west"), (west, "east")):
        async with control.client() as admin:
            clusters = await until(
                admin.clusters,
                lambda found, other=other: any(one.name == other and one.state is Liveness.LIVE for one in found),
            )
            assert len(clusters) == 2
            await until(admin.proxies, lambda found: len(found) == 3 and all(one.is_in_step for one in found))
    # A control plane that comes back issues new leaves. (A leaf that lives for less than the skew is none to others.)
    before = [await _serial(envoy) for envoy in envoys]
    for control in members:
        await control.kill()
        await control.start()
    for envoy, serial in zip(envoys, before, strict=True):
        await envoy.wait_for("/certs", lambda page, serial=serial: serial not in page)
    for caller, callee in (("east", "west"), ("west", "east")):
        await _call_until(clients[caller], f"http://of-{callee}.shop.svc.clusterset.local", f"app of {callee}")


async def test_control_planes_and_proxies_with_clocks_apart(tmp_path: Path, root: Root, stack: AsyncExitStack) -> None:
    """East's control plane is ahead of its proxies and of its peer, west's is behind its proxies."""
    ahead = {"east": python_clock(SKEW), "west proxies": envoy_clock(SKEW, tmp_path)}
    await call_across(root, stack, tmp_path, ahead)


async def test_a_member_whose_clock_is_behind(tmp_path: Path, root: Root, stack: AsyncExitStack) -> None:
    behind = {"east": python_clock(-SKEW), "east proxies": envoy_clock(-SKEW, tmp_path)}
    await call_across(root, stack, tmp_path, behind)


async def test_a_clock_that_is_a_year_ahead_is_noticed(tmp_path: Path, root: Root, stack: AsyncExitStack) -> None:
    """That the clock is shifted where certificates are judged, too: this is more than anybody allows for."""
    east = await stack.enter_async_context(start_control(tmp_path / "east"))
    await join(root, east)
    address = free_address()
    east.write("pods.yaml", pod("client-1", "client", address))
    starting = start_proxy(
        east,
        root,
        "east/shop/client-1",
        address=address,
        account="client",
        environment=envoy_clock(timedelta(days=366), tmp_path),
    )
    envoy = await stack.enter_async_context(starting)
    counter = "cluster.xds.ssl.fail_verify_error"
    await envoy.wait_for(f"/stats?filter=^{counter}$&usedonly", lambda page: page.startswith(counter))
    assert not (await envoy.get("/ready")).startswith("LIVE")


async def _clock_of(control: Control) -> timedelta:
    """Returns how far a control plane is ahead: by when it says that it started."""
    async with control.client() as admin:
        return (await admin.status()).started - datetime.now(UTC)


def _started(envoy: Envoy) -> datetime:
    """Returns when an Envoy started, by the first line of its log."""
    found = re.match(r"\[(\S+ \S+?)\.\d+\]", envoy.log.read_text())
    assert found is not None
    return datetime.fromisoformat(found[1]).astimezone(UTC)


def _shift(environment: Mapping[str, str]) -> timedelta:
    return timedelta(seconds=int(environment.get("FAKETIME", environment.get("ISTHMUS_TEST_CLOCK", "0")).rstrip("s")))


async def _serial(envoy: Envoy) -> str:
    """Returns the serial of the certificate that an Envoy shows others."""
    found = re.search(r'"cert_chain": \[\s*{[^}]*?"serial_number": "([0-9a-f]+)"', await envoy.get("/certs"))
    assert found is not None, await envoy.get("/certs")
    return found[1]


async def _call_until(proxy: str, url: str, name: str) -> None:
    """Calls through a sidecar until the app of that name answers."""

    async def ask() -> str:
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(url, proxy=f"http://{proxy}:15001") as response,
            ):
                return (await response.json())["name"] if response.status == 200 else await response.text()
        except aiohttp.ClientError as error:
            return repr(error)

    await until(ask, lambda said: said == name)
