"""Drains by the admin API of real control planes, with real Envoys: who is told, what is counted, what is cut."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from deploy.admin_client import AdminClient
from federation.admin import DrainOrder
from federation.reports import LoadReport
from tests.support.addresses import free_address
from tests.support.control import (
    DOMAIN,
    PATIENCE,
    Control,
    export,
    join,
    pod,
    service,
    start_control,
    start_proxy,
    until,
)
from tests.support.pushed_mesh import QUICK_DRAIN
from tests.support.serving import serve_tcp
from tests.support.trust import init_root
from trust.spiffe import MeshDomain

CART = "http://cart.shop.svc.clusterset.local"
TCP_PORT, TCP_USE = 6379, 6380


@asynccontextmanager
async def an_app(name: str, address: str) -> AsyncIterator[None]:
    """Runs a program that says its name, streams for ever on /stream, fails on /broken, and echoes on TCP_PORT."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/broken":
            return web.Response(status=500)
        if request.path != "/stream":
            return web.Response(text=name)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(name.encode())
        await asyncio.Event().wait()  # until the caller goes
        return response

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(name.encode())
        while read := await reader.read(1000):
            writer.write(read)
        writer.close()

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, address, 8080).start()
        async with serve_tcp(echo, address, TCP_PORT):
            yield
    finally:
        await runner.cleanup()


class Mesh:
    """East, where a client and a cart run, and west, where another cart runs behind a gateway."""

    def __init__(self, east: Control, west: Control, *, client: str) -> None:
        self.east = east
        self.west = west
        self.client = client
        self._sessions = aiohttp.ClientSession()

    async def close(self) -> None:
        await self._sessions.close()

    async def call(self, path: str = "/") -> str:
        """Calls a cart and returns who answered, or the status of an error."""
        async with (
            asyncio.timeout(PATIENCE.total_seconds()),
            self._sessions.get(CART + path, proxy=f"http://{self.client}:15001") as response,
        ):
            return await response.text() if response.status == 200 else str(response.status)

    async def stream(self) -> aiohttp.ClientResponse:
        """Opens a stream of HTTP to a cart; its first bytes are who answers."""
        async with asyncio.timeout(PATIENCE.total_seconds()):
            return await self._sessions.get(
                f"{CART}/stream", proxy=f"http://{self.client}:15001", timeout=aiohttp.ClientTimeout()
            )

    async def connection(self) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
        """Opens a TCP connection to a cart, and returns who answers."""
        async with asyncio.timeout(PATIENCE.total_seconds()):
            reader, writer = await asyncio.open_connection(self.client, TCP_USE)
            return (await reader.readexactly(len("cart-east"))).decode(), reader, writer


def of(report: LoadReport, member: str, port: int) -> tuple[int, int, int]:
    """Returns (open, issued, failed) of the carts of a member."""
    found = [load for load in report.loads if (load.service, load.member, load.port) == ("shop/cart", member, port)]
    assert len(found) <= 1
    return (found[0].open, found[0].issued, found[0].failed) if found else (0, 0, 0)


async def answered_by(mesh: Mesh, name: str) -> None:
    """Calls until it is always the same cart that answers: while all are ejected, Envoy tries any."""

    async def ask() -> set[str]:
        try:
            return {await mesh.call() for _ in range(20)}
        except aiohttp.ClientError as error:
            return {repr(error)}

    await until(ask, lambda said: said == {name})


async def settled(admin: AdminClient) -> None:
    """Waits until the proxies have what their control plane says, and have reported since."""
    proxies = await until(admin.proxies, lambda found: all(one.is_in_step for one in found))
    assert proxies
    now = datetime.now(UTC)
    await until(admin.load, lambda report: report.at is not None and report.at > now and not report.silent)


async def metrics(control: Control) -> set[str]:
    """Scrapes a control plane."""
    async with aiohttp.ClientSession() as session, session.get(f"{control.context['admin']}/metrics") as response:
        return set((await response.text()).splitlines())


def trail(control: Control) -> list[dict[str, str]]:
    """Returns the audit trail of a control plane."""
    lines = "".join(file.read_text() for file in sorted(control.data.glob("audit-*.jsonl")))
    return [json.loads(line) for line in lines.splitlines()]


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    root = init_root(tmp_path / "root", MeshDomain(DOMAIN), now=datetime.now(UTC))
    async with AsyncExitStack() as stack:
        client, carts = free_address(), {"east": free_address(), "west": free_address()}
        gateways = {"east": free_address(), "west": free_address()}
        east, west = [
            await stack.enter_async_context(
                start_control(tmp_path / name, name, "--region", region, "--gateways", gateways[name])
            )
            for name, region in (("east", "eu"), ("west", "us"))
        ]
        await join(root, east)
        await join(root, west, via=east)
        for control in (east, west):
            node, address = f"{control.name}/gateway-1", gateways[control.name]
            await stack.enter_async_context(
                start_proxy(control, root, node, address=address, account="gateway", options=QUICK_DRAIN)
            )
        caller = pod("client-1", "client", client)
        caller["metadata"] |= {
            "annotations": {"isthmus.dev/tcp-uses": f"cart.shop.svc.clusterset.local:{TCP_PORT}@{TCP_USE}"}
        }
        east.write("client.yaml", caller)
        cart = service("cart")
        cart["spec"]["ports"].append({"name": "tcp", "port": TCP_PORT, "targetPort": TCP_PORT, "appProtocol": "tcp"})
        for control in (east, west):
            control.write("cart.yaml", cart, export("cart"))
            control.write("cart-1.yaml", pod("cart-1", "cart", carts[control.name]))
            await stack.enter_async_context(an_app(f"cart-{control.name}", carts[control.name]))
            node, address = f"{control.name}/shop/cart-1", carts[control.name]
            await stack.enter_async_context(
                start_proxy(control, root, node, address=address, account="cart", options=QUICK_DRAIN)
            )
        await stack.enter_async_context(
            start_proxy(east, root, "east/shop/client-1", address=client, account="client", options=QUICK_DRAIN)
        )
        mesh = Mesh(east, west, client=client)
        stack.push_async_callback(mesh.close)
        await answered_by(mesh, "cart-east")
        yield mesh


async def test_a_drain_is_told_counted_and_severed(mesh: Mesh) -> None:
    async with mesh.east.client() as east, mesh.west.client() as west:
        # while anything is drained, proxies report every second
        await east.drain(DrainOrder("east", 0, clients=True))
        await until(east.load, lambda report: report.interval == 1.0)
        await answered_by(mesh, "cart-west")
        await settled(east)
        before = await east.load()

        # what is open through the tunnel is counted, HTTP and TCP, and every call with its end
        streams = [await mesh.stream() for _ in range(3)]
        connections = [await mesh.connection() for _ in range(2)]
        assert {who for who, _, _ in connections} == {"cart-west"}
        for _ in range(7):
            assert await mesh.call() == "cart-west"
        for _ in range(4):
            assert await mesh.call("/broken") == "500"
        base = of(before, "west", 80), of(before, "west", TCP_PORT)

        def is_counted(report: LoadReport) -> bool:
            http, tcp = of(report, "west", 80), of(report, "west", TCP_PORT)
            return http == (3, base[0][1] + 14, base[0][2] + 4) and tcp == (2, base[1][1] + 2, 0)

        await until(east.load, is_counted)
        assert {'isthmus_drains{kind="cluster"} 1.0', 'isthmus_open{member="west"} 5.0'} <= await metrics(mesh.east)
        await until(west.drains, lambda found: [(one.cluster, one.asked_of) for one in found] == [("east", "east")])

        # the other way round: nothing new goes to west, what is open stays and is counted
        await east.undrain("east")
        await west.drain(DrainOrder("west", 0))
        (told,) = await until(east.drains, lambda found: len(found) == 1)
        assert (told.cluster, told.weight, told.asked_of, told.kept) == ("west", 0, "west", ())
        await answered_by(mesh, "cart-east")
        await settled(east)
        report = await east.load()
        assert (of(report, "west", 80)[0], of(report, "west", TCP_PORT)[0]) == (3, 2)
        issued = of(report, "west", 80)[1]
        for _ in range(10):
            assert await mesh.call() == "cart-east"
        who, near, near_writer = await mesh.connection()
        assert who == "cart-east"
        await until(east.load, lambda report: of(report, "east", TCP_PORT)[0] == 1)
        assert of(await east.load(), "west", 80)[1] == issued

        # severed, it ends; what is open elsewhere does not
        await west.drain(DrainOrder("west", 0, sever=True))
        for stream in streams:
            async with asyncio.timeout(PATIENCE.total_seconds()):
                with pytest.raises(aiohttp.ClientError):
                    await stream.read()
        for _, reader, _ in connections:
            async with asyncio.timeout(PATIENCE.total_seconds()):
                with suppress(ConnectionResetError):
                    assert await reader.read(1000) == b""
        await until(east.load, lambda report: of(report, "west", 80)[0] + of(report, "west", TCP_PORT)[0] == 0)
        near_writer.write(b"still there")
        async with asyncio.timeout(PATIENCE.total_seconds()):
            assert await near.readexactly(11) == b"still there"

        # undone, nothing is cut again
        near_writer.close()
        assert await west.undrain("west") == ()
        await until(east.drains, lambda found: found == ())
        await until(east.load, lambda report: report.interval == 10.0)
    assert [event["kind"] for event in trail(mesh.west) if "drained" in event["kind"]] == ["drained"] * 2 + [
        "undrained"
    ]
