"""Runs the mesh of `two_clusters` in real Envoys, with real programs behind them, without a control plane."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import msgspec
from websockets.asyncio.server import ServerConnection, serve

from federation.model import OUTBOUND_PORT
from federation.names import sidecar_node
from tests.support.addresses import free_block
from tests.support.envoy import PATIENCE, Envoy, start_envoy
from tests.support.identities import MeshIdentities
from tests.support.serving import serve_tcp
from tests.support.static_envoy import static_bootstrap
from tests.support.two_clusters import CHAT_PORT, DOMAIN, GRPC_PORT, HTTP_PORT, STORE_PORT, Member, east_and_west
from tests.system.programs.grpc_echo import Echo
from trust.spiffe import gateway_identity

_ANSWERING = Path(__file__).with_name("answering.py")


class App:
    """The HTTP program of a pod: a process that can be killed and started again."""

    def __init__(self, name: str, address: str) -> None:
        self._name = name
        self._address = address
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts the process and waits until it serves."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, _ANSWERING, self._address, str(HTTP_PORT), self._name),
            stderr=asyncio.subprocess.DEVNULL,  # it complains of callers that are killed
        )
        await wait_open(self._address, HTTP_PORT)
        assert self._process.returncode is None

    async def kill(self) -> None:
        """Kills the process at once (SIGKILL) and waits for its end."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


class Mesh(msgspec.Struct):
    """What runs: Envoys and HTTP programs by the name of their pod, such as `east/server-a`, gateways in order."""

    east: Member
    west: Member
    identities: MeshIdentities
    sidecars: Mapping[str, Envoy]
    gateways: tuple[Envoy, ...]
    apps: Mapping[str, App]

    @property
    def client(self) -> str:
        """The address of the client's pod."""
        return self.east.pod_scope("client").address

    @property
    def proxy(self) -> str:
        """What the client program is told in its environment."""
        return f"http://{self.client}:{OUTBOUND_PORT}"


@asynccontextmanager
async def run_mesh(folder: Path, *, west_network: str = "two") -> AsyncIterator[Mesh]:
    """Runs both clusters; all of them serve when it yields."""
    block = free_block()
    east, west = east_and_west(block, west_network=west_network)
    identities = MeshIdentities(DOMAIN)
    async with AsyncExitStack() as stack:
        sidecars: dict[str, Envoy] = {}
        apps: dict[str, App] = {}
        for cluster in (east, west):
            for pod in cluster.snapshot.pods.values():
                name = f"{cluster.settings.name}/{pod.key.name}"
                scope = cluster.pod_scope(pod.key.name)
                config = static_bootstrap(
                    cluster.sidecar(pod.key.name),
                    identities.secrets(scope.identity),
                    node=sidecar_node(cluster.settings.name, pod.key),
                    address=pod.address,
                )
                starting = start_envoy(config, folder=folder, name=name.replace("/", "-"))
                sidecars[name] = await stack.enter_async_context(starting)
                if pod.account == "server":
                    apps[name] = await stack.enter_async_context(run_programs(name, pod.address))
        gateways = []
        for gateway in west.settings.gateways:
            config = static_bootstrap(
                west.gateway(gateway.address, control=(f"{block}.201", f"{block}.202")),
                identities.secrets(gateway_identity(west.settings.name)),
                node=f"west/gateway-{gateway.address}",
                address=gateway.address,
            )
            starting = start_envoy(config, folder=folder, name=f"gateway-{gateway.address}")
            gateways.append(await stack.enter_async_context(starting))
        for envoy in (*sidecars.values(), *gateways):
            await envoy.wait_live()
        if west_network != "one":
            client = sidecars["east/client"]
            for tunnel in ("gateway|west", "gateway-tcp|west"):
                await client.wait_for(
                    "/clusters", lambda page, of=tunnel: page.count(f"{of}::") and _is_healthy(page, of)
                )
        yield Mesh(east, west, identities, sidecars, tuple(gateways), apps)


def _is_healthy(page: str, cluster: str) -> bool:
    flags = [line for line in page.splitlines() if line.startswith(f"{cluster}::") and "::health_flags::" in line]
    return bool(flags) and all(line.endswith("::healthy") for line in flags)


async def wait_open(address: str, port: int) -> None:
    """Waits until somebody accepts connections there."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                _, writer = await asyncio.open_connection(address, port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


@asynccontextmanager
async def run_app(name: str, address: str) -> AsyncIterator[App]:
    """Runs the HTTP program of a pod."""
    app = App(name, address)
    try:
        await app.start()
        yield app
    finally:
        await app.kill()


@asynccontextmanager
async def run_programs(name: str, address: str) -> AsyncIterator[App]:
    """Runs the programs of a pod: HTTP as a process of its own, the others in this one."""

    async def chat(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(f"{name}:{message!s}")

    async def store(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"hello from {name}\n".encode())  # a server that speaks first, as databases do
        while line := await reader.readline():
            writer.write(f"{name}:".encode() + line)
        writer.write(b"bye\n")  # after the client closed its half
        writer.close()

    greeter = grpc.server(ThreadPoolExecutor(4))
    greeter.add_generic_rpc_handlers((Echo(name),))
    greeter.add_insecure_port(f"{address}:{GRPC_PORT}")
    greeter.start()
    try:
        async with (
            run_app(name, address) as app,
            serve(chat, address, CHAT_PORT),
            serve_tcp(store, address, STORE_PORT),
        ):
            yield app
    finally:
        greeter.stop(None)
