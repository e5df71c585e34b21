"""A mesh whose proxies are told everything by push, without a control plane: to see what a change does to connections.

West serves; east and north have a client each. A test changes what a cluster knows (`know`), and every Envoy of it is
told by delta ADS, as the product compiles it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from federation import snapshot as picture
from federation.model import OUTBOUND_PORT, GatewayAddress, Locality, Pod, PodKey, TcpUse
from federation.names import gateway_node, sidecar_node
from federation.peering.exports import own_member
from federation.snapshot import Replace, Section
from federation.xds.resources import ResourceSet, TypeUrl
from tests.support.addresses import free_block
from tests.support.envoy import PATIENCE, Envoy, start_envoy
from tests.support.identities import MeshIdentities
from tests.support.pushing import Pushing
from tests.support.serving import serve_tcp
from tests.support.two_clusters import (
    DOMAIN,
    FAR_STORE_USE,
    HTTP_PORT,
    SHOP,
    STORE_PORT,
    Member,
    far,
    introduce,
    member,
    server,
)
from tests.support.waiting import eventually
from trust.bundle import make_revocation
from trust.spiffe import ServiceAccount, gateway_identity

QUICK_DRAIN = ("--drain-time-s", "1", "--drain-strategy", "immediate")
"""As in production, but for the seconds: tests wait for the end of it."""


class PushedMesh:
    """What runs. `members` is what each cluster knows, `envoys` are by node."""

    def __init__(self, block: str, members: Sequence[Member], identities: MeshIdentities) -> None:
        self.members = {one.settings.name: one for one in members}
        self.identities = identities
        self.pushing = Pushing(f"{block}.9")
        self.envoys: dict[str, Envoy] = {}
        self._secrets: dict[str, Mapping[str, Any]] = {}

    def know(self, cluster: str, *changes: Replace) -> None:
        """Changes what one cluster knows, and tells its proxies."""
        before = self.members[cluster]
        self.members[cluster] = Member(before.settings, picture.apply(before.snapshot, changes))
        self.pushing.show(self.compiled(cluster))

    def revoke(self, cluster: str, *subjects: str, sever: bool = False) -> None:
        """Makes one cluster revoke these, and nobody else."""
        at = datetime(2026, 1, 1, tzinfo=UTC)
        revoked = {one: make_revocation(one, at=at, sever=sever) for one in subjects}
        self.know(cluster, Replace(Section.REVOCATIONS, revoked))

    def compiled(self, cluster: str) -> dict[str, ResourceSet]:
        """Returns what the proxies of a cluster are told, by node."""
        one = self.members[cluster]
        told: dict[str, ResourceSet] = {}
        for pod in one.snapshot.pods.values():
            node = sidecar_node(one.settings.name, pod.key)
            identity = one.pod_scope(pod.key.name).identity
            told[node] = {**one.sidecar(pod.key.name), TypeUrl.SECRET: self._certificates(node, identity)}
        for gateway in one.settings.gateways:
            node = gateway_node(one.settings.name, gateway.address)
            certificates = self._certificates(node, gateway_identity(one.settings.name))
            told[node] = {**one.gateway(gateway.address), TypeUrl.SECRET: certificates}
        return told

    def client(self, cluster: str) -> "Client":
        """Returns the client program of a cluster."""
        return Client(self.members[cluster].pod_scope("client").address, self.envoys[f"{cluster}/shop/client"])

    @property
    def gateway_node(self) -> str:
        """The node id of west's gateway."""
        return gateway_node(self.members["west"].settings.name, self.address("west", "gateway"))

    def gateway(self) -> Envoy:
        """Returns west's gateway."""
        return self.envoys[self.gateway_node]

    def address(self, cluster: str, name: str) -> str:
        """Returns the address of a pod, or of "gateway"."""
        one = self.members[cluster]
        return one.settings.gateways[0].address if name == "gateway" else one.pod_scope(name).address

    def _certificates(self, node: str, identity: Any) -> Mapping[str, Any]:
        if node not in self._secrets:
            self._secrets[node] = self.identities.secrets(identity)
        return self._secrets[node]


class Client:
    """A program with connections of all kinds to west: calls, a stream that stays open, plain TCP."""

    def __init__(self, address: str, envoy: Envoy) -> None:
        self.envoy = envoy
        self._address = address
        self.lines = 0
        """Lines that the open stream has brought."""
        self.is_streaming = False
        self.failures: list[str] = []
        """What failed while `working`."""
        self.successes = 0

    async def get(self, service: str = "cart") -> int:
        """Makes one call; returns the status."""
        proxy = f"http://{self._address}:{OUTBOUND_PORT}"
        url = f"http://{far(service)}/"
        limit = aiohttp.ClientTimeout(PATIENCE)
        async with aiohttp.ClientSession(timeout=limit) as http, http.get(url, proxy=proxy) as response:
            await response.read()
            return response.status

    async def connections(self) -> int:
        """How many connections to west's cart and store, and to its gateways, this client's sidecar has made."""
        lines = (await self.envoy.get("/stats?filter=upstream_cx_total")).splitlines()
        counts = (line.rpartition(": ")[::2] for line in lines)
        return sum(int(count) for name, count in counts if "clusterset" in name or "gateway" in name)

    @asynccontextmanager
    async def streaming(self) -> AsyncIterator[None]:
        """Keeps a response open that never ends by itself."""
        proxy = f"http://{self._address}:{OUTBOUND_PORT}"
        async with aiohttp.ClientSession() as http, http.get(f"http://{far('cart')}/stream", proxy=proxy) as response:
            assert response.status == 200
            self.is_streaming = True

            async def read() -> None:
                try:
                    async for _ in response.content:
                        self.lines += 1
                except aiohttp.ClientError:
                    pass
                self.is_streaming = False

            async with asyncio.TaskGroup() as group:
                reading = group.create_task(read())
                await eventually(lambda: self.lines > 0, "the stream brings something")
                try:
                    yield
                finally:
                    reading.cancel()

    async def wait_served(self) -> None:
        """Waits until calls and plain TCP of this client are served."""
        deadline = time.monotonic() + PATIENCE
        while await self.get() != 200 or not await (tcp := await self.tcp()).echoes():
            assert time.monotonic() < deadline, "never served"
            await asyncio.sleep(0.02)
        tcp.close()

    async def tcp(self) -> "Tcp":
        """Opens a plain TCP connection to west's store."""
        async with asyncio.timeout(PATIENCE):
            return Tcp(*await asyncio.open_connection(self._address, FAR_STORE_USE))

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Uses a connection of every kind without pause while the block runs; counts."""

        async def work(tcp: Tcp) -> None:
            while True:
                lines = self.lines
                status = await self.get()
                if status != 200:
                    self.failures.append(f"status {status}")
                if not await tcp.echoes():
                    self.failures.append("tcp closed")
                if not self.is_streaming:
                    self.failures.append("stream ended")
                self.successes += 1
                await asyncio.sleep(0.02)
                assert self.lines >= lines

        async with self.streaming(), asyncio.TaskGroup() as group:
            tcp = await self.tcp()
            assert await tcp.echoes()
            task = group.create_task(work(tcp))
            try:
                yield
            finally:
                task.cancel()
                tcp.close()

    async def works_on(self, rounds: int = 3) -> None:
        """Waits until some more rounds of `working` are done."""
        wanted = self.successes + rounds
        await eventually(lambda: self.successes >= wanted or bool(self.failures), "the innocent works on")


class Tcp:
    """One plain TCP connection to an echo."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def echoes(self) -> bool:
        """Says whether what is said comes back: not when the connection is closed."""
        try:
            async with asyncio.timeout(PATIENCE):
                self._writer.write(b"ping\n")
                if await self._reader.readline() == b"ping\n":
                    return True
        except ConnectionError:
            pass
        self._writer.close()
        return False

    async def ends(self) -> None:
        """Waits until the connection is closed by the other side."""
        try:
            async with asyncio.timeout(PATIENCE):
                assert await self._reader.read() == b""
        except ConnectionError:
            pass
        self._writer.close()

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def run_pushed_mesh(
    folder: Path,
    *,
    network: Callable[[str], str] = str,
    options: Sequence[str] = QUICK_DRAIN,
    without_rules: bool = False,
) -> AsyncIterator[PushedMesh]:
    """Runs the mesh; `network` says on which network a cluster is, by default one of its own.

    All of them serve when it yields; but `without_rules` nobody is told who may come in, and only told is what else is.
    """
    block = free_block()
    gateways = [GatewayAddress(f"{block}.22")]
    serving = server("server-1", f"{block}.21", region="us", zone="a")
    west = member("west", [serving], network=network("west"), exports=("cart", "store"), gateways=gateways)
    callers = []
    for number, name in ((11, "east"), (31, "north")):
        uses = (TcpUse(far("store"), STORE_PORT, FAR_STORE_USE),)
        pod = Pod(PodKey(SHOP, "client"), f"{block}.{number}", ServiceAccount("client"), Locality("eu", "a"), uses=uses)
        callers.append(introduce(member(name, [pod], network=network(name), exports=()), west))
    known = {one.settings.name: own_member(one.settings) for one in callers}
    west = Member(west.settings, picture.apply(west.snapshot, [Replace(Section.MEMBERS, known)]))
    mesh = PushedMesh(block, [west, *callers], MeshIdentities(DOMAIN))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_program(serving.address))
        await stack.enter_async_context(mesh.pushing.serve())
        for cluster in mesh.members:
            told = mesh.compiled(cluster)
            if without_rules:
                told = {node: {**one, TypeUrl.EXTENSION: {}} for node, one in told.items()}
            mesh.pushing.show(told)
            for node in told:
                _, _, pod_name = node.rpartition("/")
                addresses = {pod.key.name: pod.address for pod in mesh.members[cluster].snapshot.pods.values()}
                config = mesh.pushing.bootstrap(node, addresses.get(pod_name, pod_name))
                starting = start_envoy(config, folder=folder, name=node.replace("/", "-"), options=options)
                mesh.envoys[node] = await stack.enter_async_context(starting)
        await mesh.pushing.settled()
        if not without_rules:
            for envoy in mesh.envoys.values():
                await envoy.wait_live()
            for cluster in ("east", "north"):
                await mesh.client(cluster).wait_served()
        yield mesh


@asynccontextmanager
async def _program(address: str) -> AsyncIterator[None]:
    """Runs what stands behind west's services."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"line\n")
                await asyncio.sleep(0.02)
        except ConnectionError:
            return response

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    application = web.Application()
    application.router.add_get("/", answer)
    application.router.add_get("/stream", stream)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, address, HTTP_PORT).start()
        async with serve_tcp(echo, address, STORE_PORT):
            yield
    finally:
        await runner.cleanup()
