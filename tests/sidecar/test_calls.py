"""Unmodified programs reach each other through real Envoys: on the same network, and through a gateway."""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from federation.model import OUTBOUND_PORT
from tests.support.envoy import PATIENCE
from tests.support.running_mesh import Mesh, run_mesh
from tests.support.two_clusters import FAR_STORE_USE, NEAR_STORE_USE, far, near

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROGRAMS = Path(__file__).parents[1] / "system" / "programs"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["one", "two"], ids=["direct", "tunnel"])
async def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """West on the network of east, where its pods are reached directly, and on another one behind its gateways."""
    async with run_mesh(tmp_path_factory.mktemp("mesh"), west_network=request.param) as mesh:
        yield mesh


@pytest_asyncio.fixture(loop_scope="module")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        yield session


async def run_client(mesh: Mesh, program: str, *arguments: str) -> str:
    """Runs a client program as the client's workload, with the environment that a workload has; returns its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, PROGRAMS / program, *arguments),
        env={**os.environ, "http_proxy": mesh.proxy, "grpc_proxy": mesh.proxy, "ws_proxy": mesh.proxy},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(PATIENCE):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_http_stays_in_the_zone(mesh: Mesh, http: aiohttp.ClientSession) -> None:
    for name in ("page.shop.svc.cluster.local", "page.shop.svc", "page.shop", "page", "page:80", "PAGE.", far("cart")):
        async with http.get(f"http://{name}/", proxy=mesh.proxy) as response:
            assert response.status == 200, await response.text()
            assert (await response.json())["name"] == "east/server-a"
            assert response.headers["x-isthmus-upstream"] == "east/a/shop/server-a"
            assert "x-isthmus-flags" not in response.headers
            assert not [header for header in response.headers if header.lower().startswith("x-envoy")]


async def test_http_reaches_another_cluster_pod_by_pod(mesh: Mesh, http: aiohttp.ClientSession) -> None:
    answered: Counter[str] = Counter()
    for n in range(60):
        async with http.request(("GET", "POST")[n % 2], f"http://{far('page')}/", proxy=mesh.proxy) as response:
            assert response.status == 200, await response.text()
            said = await response.json()
        answered[said["name"]] += 1
        assert said["headers"]["x-forwarded-client-cert"].endswith("URI=spiffe://east.mesh.test/ns/shop/sa/client")
        assert response.headers["x-isthmus-upstream"] == said["name"].replace("west/", "west/a/shop/")
    assert answered == {"west/server-1": 20, "west/server-2": 20, "west/server-3": 20}


async def test_http_inside_connect(mesh: Mesh) -> None:
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(mesh.client, OUTBOUND_PORT)
        host = far("page")
        writer.write(f"CONNECT {host}:80 HTTP/1.1\r\nhost: {host}:80\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        for _ in range(3):
            writer.write(f"GET / HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200")
            length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
            assert b"west/server" in await reader.readexactly(length)
        writer.close()


async def test_a_server_sees_who_calls(mesh: Mesh, http: aiohttp.ClientSession) -> None:
    forged = {"x-forwarded-client-cert": "URI=spiffe://west.mesh.test/ns/shop/sa/admin"}
    async with http.post(f"http://{near('page')}/", proxy=mesh.proxy, data=b"x" * 100_000, headers=forged) as response:
        said = await response.json()
    assert said["headers"]["x-forwarded-client-cert"].split(";")[-1] == "URI=spiffe://east.mesh.test/ns/shop/sa/client"
    assert "admin" not in said["headers"]["x-forwarded-client-cert"]
    assert said["headers"]["host"] == near("page")


async def test_grpc(mesh: Mesh) -> None:
    assert "stream 50 east/server" in await run_client(mesh, "grpc_echo.py", "call", f"{near('greeter')}:50051")
    assert "stream 50 west/server" in await run_client(mesh, "grpc_echo.py", "call", f"{far('greeter')}:50051")


async def test_websocket(mesh: Mesh) -> None:
    assert "east/server-a:19" in await run_client(mesh, "websocket_echo.py", "call", f"ws://{near('chat')}/")
    assert ":19" in (said := await run_client(mesh, "websocket_echo.py", "call", f"ws://{far('chat')}/"))
    assert "west/server" in said


@pytest.mark.parametrize(("port", "where"), [(NEAR_STORE_USE, "east/server-a"), (FAR_STORE_USE, "west/server")])
async def test_plain_tcp(mesh: Mesh, port: int, where: str) -> None:
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(mesh.client, port)
        assert where in (await reader.readline()).decode()
        writer.write(b"ping\n")
        assert (await reader.readline()).endswith(b":ping\n")
        writer.write_eof()
        assert await reader.read() == b"bye\n"
        writer.close()


async def test_unknown_host_says_what_to_check(mesh: Mesh, http: aiohttp.ClientSession) -> None:
    async with http.get("http://nobody.shop/", proxy=mesh.proxy) as response:
        assert response.status == 502
        assert "no service is known here as nobody.shop" in await response.text()
