"""Who does not belong is refused by the real Envoy on the mesh port: real handshakes, nothing imitated."""

import asyncio
import itertools
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import trustme
from cryptography import x509

from federation.model import MESH_PORT
from federation.names import service_sni
from tests.support.addresses import free_block
from tests.support.envoy import PATIENCE, start_envoy
from tests.support.identities import MeshIdentities, identity, tls_client
from tests.support.mesh_port import converse
from tests.support.running_mesh import run_app
from tests.support.serving import serve_tcp
from tests.support.static_envoy import static_bootstrap
from tests.support.two_clusters import DOMAIN, NEAR_STORE_USE, STORE_PORT, Member, east_and_west, key
from trust.spiffe import ClusterName, Identity

pytestmark = pytest.mark.asyncio(loop_scope="module")

IDENTITIES = MeshIdentities(DOMAIN)
CLIENT = identity("east", "client")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Member, str]]:
    """One server of west, with its sidecar: its cluster and its address."""
    _, west = east_and_west(free_block())
    scope = west.pod_scope("server-1")
    config = static_bootstrap(
        west.sidecar("server-1"),
        IDENTITIES.secrets(scope.identity),
        node="west/shop/server-1",
        address=scope.address,
    )

    async def store(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")  # speaks before anybody asked
        writer.close()

    async with (
        start_envoy(config, folder=tmp_path_factory.mktemp("server")) as envoy,
        serve_tcp(store, scope.address, STORE_PORT),
        run_app("west/server-1", scope.address),
    ):
        await envoy.wait_live()
        yield west, scope.address


def sni(service: str) -> str:
    return service_sni(ClusterName("west"), key(service), {"page": 80, "store": 6379}[service], DOMAIN)


HTTP = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def test_a_member_is_served(server: tuple[Member, str], tmp_path: Path) -> None:
    _, address = server
    context = tls_client(tmp_path, *IDENTITIES.leaf(CLIENT))
    answer = await converse(address, context, sni("page"), HTTP)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"spiffe://east.mesh.test/ns/shop/sa/client" in answer
    assert await converse(address, context, sni("store"), b"") == b"hello\n"


async def test_what_is_not_exported_is_for_its_own_cluster_alone(tmp_path: Path) -> None:
    east, _ = east_and_west(free_block())
    scope = east.pod_scope("server-a")
    config = static_bootstrap(
        east.sidecar("server-a"), IDENTITIES.secrets(scope.identity), node="east/shop/server-a", address=scope.address
    )
    contexts = {}
    for cluster in ("east", "west"):
        (tmp_path / cluster).mkdir()
        contexts[cluster] = tls_client(tmp_path / cluster, *IDENTITIES.leaf(identity(cluster, "client")))
    async with (
        start_envoy(config, folder=tmp_path) as envoy,
        run_app("east/server-a", scope.address),
    ):
        await envoy.wait_live()
        for service, caller, is_served in (
            ("cart", "west", True),
            ("page", "east", True),
            ("page", "west", False),
        ):
            server_name = service_sni(ClusterName("east"), key(service), 80, DOMAIN)
            answer = await converse(scope.address, contexts[caller], server_name, HTTP)
            assert answer.startswith(b"HTTP/1.1 200") == is_served, (service, caller, answer)


async def test_plain_text_is_refused(server: tuple[Member, str]) -> None:
    assert await converse(server[1], None, None, HTTP) == b""


@pytest.mark.parametrize("service", ["page", "store"])
async def test_no_certificate_is_refused(server: tuple[Member, str], tmp_path: Path, service: str) -> None:
    assert await converse(server[1], tls_client(tmp_path), sni(service), HTTP) == b""


@pytest.mark.parametrize("service", ["page", "store"])
async def test_a_certificate_of_another_root_is_refused(
    server: tuple[Member, str], tmp_path: Path, service: str
) -> None:
    stranger = MeshIdentities(DOMAIN).leaf(CLIENT)  # the same names under another root
    assert await converse(server[1], tls_client(tmp_path, *stranger), sni(service), HTTP) == b""
    leaf = trustme.CA().issue_cert("client.shop.east.mesh.test")
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    context = tls_client(tmp_path, chain, leaf.private_key_pem.bytes())
    assert await converse(server[1], context, sni(service), HTTP) == b""


@pytest.mark.parametrize("service", ["page", "store"])
async def test_an_identity_of_one_cluster_signed_by_another_is_refused(
    server: tuple[Member, str], tmp_path: Path, service: str
) -> None:
    forged = IDENTITIES.leaf(identity("west", "client"), signed_by="east")
    assert await converse(server[1], tls_client(tmp_path, *forged), sni(service), HTTP) == b""


GOOD = "spiffe://east.mesh.test/ns/shop/sa/client"


@pytest.mark.parametrize(
    ("names", "is_served"),
    [
        ([x509.UniformResourceIdentifier(GOOD)], True),
        ([], False),
        ([x509.DNSName("client.shop.east.mesh.test")], False),
        ([x509.UniformResourceIdentifier("spiffe://east.mesh.test/ns/Shop/sa/client")], False),
        ([x509.UniformResourceIdentifier("SPIFFE://east.mesh.test/ns/shop/sa/client")], False),
        ([x509.UniformResourceIdentifier("spiffe://east.mesh.test/ns/shop/sa/client/more")], False),
        # x-forwarded-client-cert quotes no URI: these would tell the app of a second one, of another cluster.
        ([x509.UniformResourceIdentifier(GOOD + ";URI=spiffe:%2F%2Fwest")], False),
        ([x509.UniformResourceIdentifier(GOOD + ",URI=boss")], False),
        *(
            ([x509.UniformResourceIdentifier(first), x509.UniformResourceIdentifier(second)], False)
            for evil in (";URI=spiffe://west.mesh.test/ns/shop/sa/owner", ",URI=boss", '"x', " y", "\x01")
            for first, second in itertools.permutations((GOOD, "spiffe://east.mesh.test/x" + evil))
        ),
    ],
)
async def test_a_caller_cannot_dress_up_its_name(
    server: tuple[Member, str], tmp_path: Path, names: list[x509.GeneralName], is_served: bool
) -> None:
    context = tls_client(tmp_path, *IDENTITIES.hostile_leaf("east", *names))
    answer = await converse(server[1], context, sni("page"), HTTP)
    assert answer.startswith(b"HTTP/1.1 200") == is_served, answer
    assert is_served or b"owner" not in answer


@pytest.mark.parametrize(
    "name", [None, "mesh.test", "81.page.shop.svc.west.mesh.test", "80.page.shop.svc.east.mesh.test"]
)
async def test_a_name_that_is_not_served_here_is_refused(
    server: tuple[Member, str], tmp_path: Path, name: str | None
) -> None:
    context = tls_client(tmp_path, *IDENTITIES.leaf(CLIENT))
    assert await converse(server[1], context, name, HTTP) == b""


@pytest.mark.parametrize(
    ("whose", "signed_by", "is_trusted"),
    [
        (identity("east", "server"), "", True),
        (identity("east", "server"), "west", False),  # the right name, from a cluster that may not give it
        (identity("east", "other"), "", False),  # a member, but not who stands behind this service
        (identity("west", "server"), "", False),
    ],
)
async def test_a_caller_speaks_only_to_who_is_expected(
    tmp_path: Path, whose: Identity, signed_by: str, is_trusted: bool
) -> None:
    east, _ = east_and_west(free_block())
    scope = east.pod_scope("client")
    config = static_bootstrap(
        east.sidecar("client"), IDENTITIES.secrets(scope.identity), node="east/shop/client", address=scope.address
    )
    chain, private_key = IDENTITIES.leaf(whose, signed_by=signed_by)
    (tmp_path / "chain.pem").write_bytes(chain)
    (tmp_path / "key.pem").write_bytes(private_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")

    async def store(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        writer.close()

    server = east.pod_scope("server-a").address
    async with (
        start_envoy(config, folder=tmp_path) as envoy,
        serve_tcp(store, server, MESH_PORT, ssl=context),
        asyncio.timeout(PATIENCE),
    ):
        await envoy.wait_live()
        reader, writer = await asyncio.open_connection(scope.address, NEAR_STORE_USE)
        assert await reader.read() == (b"hello\n" if is_trusted else b"")
        writer.close()
