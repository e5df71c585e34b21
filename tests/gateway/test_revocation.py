"""A member that is revoked is cut off at the gateway, with all that it has open, and nobody else notices."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509

from federation.model import GATEWAY_PORT, MESH_PORT, MemberCluster, NetworkName
from federation.names import GATEWAY_LISTENER, tunnel_sni
from federation.snapshot import Replace, Section
from federation.xds.resources import TypeUrl
from tests.support.connect_client import ask
from tests.support.identities import identity, tls_client
from tests.support.pushed_mesh import PushedMesh, run_pushed_mesh
from tests.support.two_clusters import DOMAIN
from tests.support.waiting import eventually
from trust.spiffe import ClusterName

AUTHORITY = "cart.shop.svc.west.mesh.test"


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[PushedMesh]:
    async with run_pushed_mesh(tmp_path) as mesh:
        yield mesh


async def test_a_revoked_cluster_loses_its_tunnels_and_nobody_else_notices(mesh: PushedMesh) -> None:
    innocent, revoked = mesh.client("east"), mesh.client("north")
    async with innocent.working(), revoked.streaming():
        tcp = await revoked.tcp()
        assert await tcp.echoes()
        await innocent.works_on()
        before = await innocent.connections()

        mesh.revoke("west", "north")
        await mesh.pushing.settled()
        assert await revoked.get() == 403  # on the connection that it has open, before that one is drained
        assert not await (await revoked.tcp()).echoes()
        await tcp.ends()
        await eventually(lambda: not revoked.is_streaming, "the open response ends")
        assert await revoked.get() in (403, 503)
        await innocent.works_on()

        mesh.revoke("west")
        await mesh.pushing.settled()
        await revoked.wait_served()
        await innocent.works_on()
        assert innocent.failures == []
        assert await innocent.connections() == before


async def test_a_member_that_joins_or_leaves_touches_nobody_else(mesh: PushedMesh) -> None:
    innocent = mesh.client("east")
    gateway = mesh.gateway()
    members = dict(mesh.members["west"].snapshot.members)
    south = MemberCluster(ClusterName("south"), NetworkName("south"), region="eu", gateways=())
    async with innocent.working():
        before = await innocent.connections()
        for known, updates in (({**members, south.name: south}, 1), (members, 2)):
            told = mesh.compiled("west")[mesh.gateway_node]
            mesh.know("west", Replace(Section.MEMBERS, known))
            await mesh.pushing.settled()
            assert await gateway.stat("listener_manager.listener_in_place_updated") == updates
            await innocent.works_on()
            after = mesh.compiled("west")[mesh.gateway_node]
            changed = {
                (kind, name) for kind, of_kind in after.items() for name in of_kind if told[kind][name] != of_kind[name]
            }
            assert changed == {(TypeUrl.LISTENER, GATEWAY_LISTENER)}
        await gateway.wait_stat("listener_manager.total_filter_chains_draining", lambda count: count == 0)
        await innocent.works_on()
        assert innocent.failures == []
        assert await innocent.connections() == before


async def test_who_may_open_a_tunnel(mesh: PushedMesh, tmp_path: Path) -> None:
    """Every certificate is one that its cluster can sign; each is tried under the server name of each member."""
    mesh.revoke("west", "shop/thief@east", "shop/robber", "north")
    await mesh.pushing.settled()
    east = "spiffe://east.mesh.test/ns/shop/sa/"
    north = "spiffe://north.mesh.test/ns/shop/sa/client"
    uri = x509.UniformResourceIdentifier
    certificates = {
        "innocent": (mesh.identities.leaf(identity("east", "client")), {"east": 200, "north": None}),
        "revoked here": (mesh.identities.leaf(identity("east", "thief")), {"east": 403, "north": None}),
        "revoked everywhere": (mesh.identities.leaf(identity("east", "robber")), {"east": 403, "north": None}),
        "its other name is revoked": (
            mesh.identities.hostile_leaf("east", uri(east + "client"), uri(east + "thief")),
            {"east": 403, "north": None},
        ),
        "of a revoked cluster": (mesh.identities.leaf(identity("north", "client")), {"east": None, "north": None}),
        "two names in a revoked cluster": (
            mesh.identities.hostile_leaf("north", uri(north), uri(north + "2")),
            {"east": None, "north": None},
        ),
        "another cluster's name": (
            mesh.identities.hostile_leaf("north", uri(east + "client"), uri(north)),
            {"east": None, "north": None},
        ),
    }
    gateway, pod = mesh.address("west", "gateway"), mesh.address("west", "server-1")
    headers = {":method": "CONNECT", ":authority": AUTHORITY, "x-isthmus-endpoint": f"{pod}:{MESH_PORT}"}
    for what, (leaf, expected) in certificates.items():
        for caller, status in expected.items():
            context = tls_client(tmp_path, *leaf)
            context.set_alpn_protocols(["h2"])
            server_name = tunnel_sni(ClusterName(caller), ClusterName("west"), DOMAIN)
            answer = await ask(gateway, GATEWAY_PORT, context=context, server_name=server_name, headers=headers)
            assert answer == status, (what, caller)
