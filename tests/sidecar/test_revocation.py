"""Who is revoked is refused by the sidecars, from the next request on, and what he has open ends."""

import asyncio
import itertools
import json
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509

from deploy.control.proxies import Compiler
from federation.model import MESH_PORT, MemberCluster, NetworkName
from federation.names import service_sni
from federation.snapshot import Replace, Section
from federation.snapshot import apply as next_picture
from federation.xds.resources import ResourceSet, TypeUrl
from tests.support.identities import identity, tls_client
from tests.support.mesh_port import converse
from tests.support.pushed_mesh import PushedMesh, run_pushed_mesh
from tests.support.two_clusters import DOMAIN, Member, east_and_west, key
from tests.support.waiting import eventually
from trust.bundle import make_revocation
from trust.spiffe import ClusterName

HTTP = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
uri = x509.UniformResourceIdentifier


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[PushedMesh]:
    """All clusters on one network: sidecars reach each other directly."""
    async with run_pushed_mesh(tmp_path, network=lambda _: "one") as mesh:
        yield mesh


async def test_a_revoked_cluster_that_reaches_us_directly_is_cut_off(mesh: PushedMesh) -> None:
    innocent, revoked = mesh.client("east"), mesh.client("north")
    async with revoked.streaming():
        tcp = await revoked.tcp()
        assert await tcp.echoes()
        mesh.revoke("west", "north")
        await mesh.pushing.settled()
        assert await revoked.get() == 403
        assert not await (await revoked.tcp()).echoes()
        assert await innocent.get() == 200
        await tcp.ends()
        await eventually(lambda: not revoked.is_streaming, "the open response ends")
    assert await revoked.get() == 403
    assert await innocent.get() == 200
    mesh.revoke("west")
    await mesh.pushing.settled()
    await revoked.wait_served()


@pytest.mark.parametrize("subject", ["shop/thief@north", "shop/client@north"])
async def test_a_revoked_workload_is_denied_and_nobody_else_notices(mesh: PushedMesh, subject: str) -> None:
    innocent, other = mesh.client("east"), mesh.client("north")
    is_denied = "client" in subject
    async with innocent.working(), other.streaming():
        before, others = await innocent.connections(), await other.connections()
        for revoked, denied in (((subject,), is_denied), ((), False)):
            mesh.revoke("west", *revoked)
            await mesh.pushing.settled()
            assert await other.get() == (403 if denied else 200)
            tcp = await other.tcp()
            assert await tcp.echoes() is not denied
            tcp.close()
            await innocent.works_on()
        assert innocent.failures == []
        assert other.is_streaming  # what it had open before: for its own control plane to end, or for `sever`
        assert await innocent.connections() == before
        assert await other.connections() == others + 2  # a connection for each of plain TCP, none for calls
        sidecar = mesh.envoys["west/shop/server-1"]
        assert await sidecar.stat("listener_manager.listener_in_place_updated") == 0


async def test_a_revocation_that_severs_ends_what_is_open(mesh: PushedMesh) -> None:
    revoked = mesh.client("north")
    async with revoked.streaming():
        tcp = await revoked.tcp()
        assert await tcp.echoes()
        mesh.revoke("west", "shop/client@north", sever=True)
        await tcp.ends()
        await eventually(lambda: not revoked.is_streaming, "the open response ends")
    assert await revoked.get() == 403
    assert await mesh.client("east").get() == 200


@pytest.mark.parametrize("network", ["one", ""])
async def test_who_revokes_a_cluster_ends_what_it_has_open_there(tmp_path: Path, network: str) -> None:
    async with run_pushed_mesh(tmp_path, network=lambda name: network or name) as mesh:
        client = mesh.client("north")
        async with client.streaming():
            tcp = await client.tcp()
            assert await tcp.echoes()
            mesh.revoke("north", "west")
            await mesh.pushing.settled()
            assert await client.get() == 502
            await tcp.ends()
            await eventually(lambda: not client.is_streaming, "the open response ends")


async def test_a_revoked_proxy_is_left_with_nothing(mesh: PushedMesh) -> None:
    innocent, revoked = mesh.client("east"), mesh.client("north")
    async with innocent.working(), revoked.streaming():
        tcp = await revoked.tcp()
        assert await tcp.echoes()
        mesh.pushing.show({"north/shop/client": {}})  # what the compiler gives it, see below
        await mesh.pushing.settled()
        with pytest.raises(aiohttp.ClientConnectionError):
            await revoked.get()
        await tcp.ends()
        await eventually(lambda: not revoked.is_streaming, "the open response ends")
        assert json.loads(await revoked.envoy.get("/listeners?format=json")) == {}
        await innocent.works_on()

        mesh.know("north")
        await mesh.pushing.settled()
        await revoked.envoy.wait_for("/listeners", lambda page: "outbound-tcp" in page)
        await revoked.wait_served()
        await innocent.works_on()
        assert innocent.failures == []


async def test_a_name_too_many_does_not_get_around_it(mesh: PushedMesh, tmp_path: Path) -> None:
    mesh.revoke("west", "north", "shop/thief")
    await mesh.pushing.settled()
    address = mesh.address("west", "server-1")
    north, east = "spiffe://north.mesh.test/ns/shop/sa/client", "spiffe://east.mesh.test/ns/shop/sa/"
    dresses = ("", "/more", ";x", "%00", "?x", "#x", "\x01")
    hostile = [
        ("north", *pair) for dress in dresses for pair in itertools.permutations((north, f"{north}2{dress}"))
    ] + [("north", name) for name in (north, north.upper(), "SPIFFE" + north[6:])]
    thieves = [("east", *pair) for pair in itertools.permutations((east + "client", east + "thief"))]
    contexts: list[tuple[object, ssl.SSLContext, bool]] = [
        (names, tls_client(tmp_path, *mesh.identities.hostile_leaf(signer, *map(uri, names))), False)
        for signer, *names in (*hostile, *thieves)
    ]
    contexts.append(("innocent", tls_client(tmp_path, *mesh.identities.leaf(identity("east", "client"))), True))
    for what, context, is_served in contexts:
        for service, port, said, good in (("cart", 80, HTTP, b"HTTP/1.1 200"), ("store", 6379, b"ping\n", b"ping\n")):
            sni = service_sni(ClusterName("west"), key(service), port, DOMAIN)
            answer = await converse(address, context, sni, said, enough=len(good))
            assert answer.startswith(good) == is_served, (what, service, answer)


async def test_nobody_comes_in_before_there_are_rules(tmp_path: Path) -> None:
    async with run_pushed_mesh(tmp_path, network=lambda _: "one", without_rules=True) as mesh:
        sidecar = mesh.envoys["west/shop/server-1"]
        assert not (await sidecar.get("/ready")).startswith("LIVE")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(mesh.address("west", "server-1"), MESH_PORT)
        mesh.know("west")
        await sidecar.wait_live()
        client = mesh.client("east")
        await client.envoy.wait_live()
        await client.wait_served()


# What follows from the picture alone

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def revoking(one: Member, *subjects: str, sever: bool = False) -> Member:
    revoked = {subject: make_revocation(subject, at=NOW, sever=sever) for subject in subjects}
    others = {
        ClusterName(name): MemberCluster(ClusterName(name), NetworkName(network), region="eu", gateways=())
        for name, network in (("near", one.settings.network), ("far", "elsewhere"))
    }
    changes = [Replace(Section.REVOCATIONS, revoked), Replace(Section.MEMBERS, others)]
    return Member(one.settings, next_picture(one.snapshot, changes))


def changed(before: ResourceSet, after: ResourceSet) -> set[TypeUrl]:
    return {kind for kind in before.keys() | after.keys() if before.get(kind) != after.get(kind)}


@pytest.mark.parametrize(
    ("subject", "sever", "is_severing"),
    [
        ("far", False, False),
        ("near", False, True),
        ("unknown", False, False),
        ("shop/client@near", False, False),
        ("shop/client", False, False),
        ("far", True, True),
        ("shop/client@far", True, True),
    ],
)
def test_listeners_change_only_where_connections_must_end(subject: str, sever: bool, is_severing: bool) -> None:
    _, west = east_and_west("10.1.1")
    before = revoking(west).sidecar("server-1")
    after = revoking(west, subject, sever=sever).sidecar("server-1")
    assert changed(before, after) == {TypeUrl.EXTENSION} | ({TypeUrl.LISTENER} if is_severing else set())


def test_a_revoked_workload_of_the_own_cluster_is_told_nothing_and_named_to_nobody() -> None:
    _, west = east_and_west("10.1.1")
    compiler = Compiler(west.settings, ())
    scope = west.pod_scope("server-1")
    assert compiler(west.snapshot, scope)[TypeUrl.LISTENER]
    revoked = revoking(west, "shop/server@west")
    assert compiler(revoked.snapshot, scope) == {}
    assert [offer.endpoints for offer in revoked.offers.values()] == [()] * len(west.offers)
    assert compiler(west.snapshot, scope)[TypeUrl.LISTENER]


def test_the_compiler_follows_revocations() -> None:
    _, west = east_and_west("10.1.1")
    compiler = Compiler(west.settings, ())
    scope = west.pod_scope("server-1")
    for subjects in ((), ("near",), ("near", "far"), ()):
        west = revoking(west, *subjects)
        assert compiler(west.snapshot, scope) == west.sidecar("server-1")
