"""The real Envoy of a gateway opens a tunnel to exactly the pod that was asked for, for members of the mesh alone."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from federation.model import FEDERATION_PORT, GATEWAY_PORT, MESH_PORT
from tests.support.addresses import free_block
from tests.support.connect_client import ask
from tests.support.envoy import PATIENCE, Envoy, start_envoy
from tests.support.identities import MeshIdentities, identity, tls_client
from tests.support.serving import serve_tcp
from tests.support.static_envoy import static_bootstrap
from tests.support.two_clusters import DOMAIN, east_and_west
from trust.spiffe import gateway_identity

pytestmark = pytest.mark.asyncio(loop_scope="module")

IDENTITIES = MeshIdentities(DOMAIN)
CLIENT = identity("east", "client")
BLOCK = free_block()
GATEWAY, POD, OTHER_POD, CONTROL = (f"{BLOCK}.{number}" for number in (101, 21, 22, 201))
SNI = "east.gateway.west.mesh.test"
PAGE = "page.shop.svc.west.mesh.test"


@asynccontextmanager
async def saying(text: bytes, address: str, port: int) -> AsyncIterator[None]:
    """Runs a server that says its name to whoever says something."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(text)
        writer.close()

    async with serve_tcp(greet, address, port):
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Envoy]:
    """West's gateway, two of its pods, and one of its two control planes."""
    _, west = east_and_west(BLOCK)
    config = static_bootstrap(
        west.gateway(GATEWAY, control=(f"{BLOCK}.202", CONTROL)),
        IDENTITIES.secrets(gateway_identity(west.settings.name)),
        node="west/gateway-1",
        address=GATEWAY,
    )
    async with (
        start_envoy(config, folder=tmp_path_factory.mktemp("gateway")) as envoy,
        saying(b"pod", POD, MESH_PORT),
        saying(b"other pod", OTHER_POD, MESH_PORT),
        saying(b"control", CONTROL, FEDERATION_PORT),
    ):
        await envoy.wait_live()
        yield envoy


@pytest.fixture
def member(tmp_path: Path) -> ssl.SSLContext:
    """A client that shows the certificate of a member's workload."""
    return h2(tls_client(tmp_path, *IDENTITIES.leaf(CLIENT)))


def h2(context: ssl.SSLContext) -> ssl.SSLContext:
    context.set_alpn_protocols(["h2"])
    return context


async def connect(context: ssl.SSLContext, authority: str, pod: str | None) -> int | None:
    """Asks for a tunnel; returns the status."""
    headers = {":method": "CONNECT", ":authority": authority}
    if pod is not None:
        headers["x-isthmus-endpoint"] = pod
    return await ask(GATEWAY, GATEWAY_PORT, context=context, server_name=SNI, headers=headers)


async def test_a_member_reaches_an_exported_pod(gateway: Envoy, member: ssl.SSLContext) -> None:
    assert await connect(member, PAGE, f"{POD}:{MESH_PORT}") == 200


@pytest.mark.parametrize(
    "pod",
    [f"{BLOCK}.77:{MESH_PORT}", f"{POD}:8080", f"{CONTROL}:{FEDERATION_PORT}", "nonsense", None],
    ids=["nobody", "the app itself", "somebody else's port", "nonsense", "none"],
)
async def test_an_unknown_pod_is_refused_and_nobody_else_is_reached(
    gateway: Envoy, member: ssl.SSLContext, pod: str | None
) -> None:
    assert await connect(member, PAGE, pod) == 503


@pytest.mark.parametrize(
    "authority",
    [
        "nobody.shop.svc.west.mesh.test",
        "page.shop.svc.east.mesh.test",
        "federation",
        "page.shop.svc.west.mesh.test:80",
        "gateway.west.mesh.test",
    ],
)
async def test_what_is_not_exported_is_refused(gateway: Envoy, member: ssl.SSLContext, authority: str) -> None:
    assert await connect(member, authority, f"{POD}:{MESH_PORT}") == 403  # as if all were forbidden


async def test_peers_check_its_health(gateway: Envoy, member: ssl.SSLContext) -> None:
    headers = {":method": "GET", ":scheme": "https", ":path": "/healthz", ":authority": "gateway.west.mesh.test"}
    assert await ask(GATEWAY, GATEWAY_PORT, context=member, server_name=SNI, headers=headers) == 200


async def test_strangers_are_refused(gateway: Envoy, tmp_path: Path) -> None:
    pod = f"{POD}:{MESH_PORT}"
    assert await connect(h2(tls_client(tmp_path)), PAGE, pod) is None
    stranger = MeshIdentities(DOMAIN).leaf(CLIENT)
    assert await connect(h2(tls_client(tmp_path, *stranger)), PAGE, pod) is None
    forged = IDENTITIES.leaf(identity("west", "client"), signed_by="east")
    assert await connect(h2(tls_client(tmp_path, *forged)), PAGE, pod) is None


async def test_the_federation_stream_passes_undeciphered_to_a_control_plane_that_lives(gateway: Envoy) -> None:
    for _ in range(4):  # one of the two control planes is not there
        answered = await first_bytes("control.west.mesh.test")
        assert answered == b"control"


@pytest.mark.parametrize("name", ["control.east.mesh.test", "mesh.test", ""])
async def test_other_names_are_closed(gateway: Envoy, name: str) -> None:
    assert await first_bytes(name) == b""


async def first_bytes(server_name: str) -> bytes:
    """Sends a TLS ClientHello for this name, or plain text for none, and returns what comes back."""
    hello = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    if server_name:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context()
        with pytest.raises(ssl.SSLWantReadError):
            context.wrap_bio(incoming, outgoing, server_hostname=server_name).do_handshake()
        hello = outgoing.read()
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(GATEWAY, GATEWAY_PORT)
            writer.write(hello)
            answer = await reader.read()
            writer.close()
            return answer
    except ConnectionError:
        return b""
