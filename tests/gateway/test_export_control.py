"""Who may not see an export cannot call it either, though it guesses the name and the pod; others notice nothing."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from federation.model import GATEWAY_PORT, MESH_PORT, MemberCluster, MemberSelector, NetworkName, ServiceExport
from federation.names import tunnel_sni
from federation.snapshot import Replace, Section
from tests.support.connect_client import ask
from tests.support.identities import identity, tls_client
from tests.support.pushed_mesh import PushedMesh, run_pushed_mesh
from tests.support.two_clusters import DOMAIN, key
from trust.spiffe import ClusterName

EAST, NORTH = ClusterName("east"), ClusterName("north")


def export_to(mesh: PushedMesh, *selectors: MemberSelector, services: Iterable[str] = ("cart", "store")) -> None:
    """Exports west's services to these alone, or to all."""
    exported = {key(one): ServiceExport(key(one), tuple(selectors)) for one in services}
    mesh.know("west", Replace(Section.EXPORTS, exported))


def label(mesh: PushedMesh, *labels: tuple[str, str]) -> None:
    """Gives east these labels, as west knows it."""
    members = {
        name: MemberCluster(name, NetworkName(member.network), member.region, (), labels=labels * (name == EAST))
        for name, member in mesh.members["west"].snapshot.members.items()
    }
    mesh.know("west", Replace(Section.MEMBERS, members))


@pytest.mark.parametrize("network", [str, lambda _: "one"], ids=["through the gateway", "directly"])
async def test_who_is_not_chosen_is_refused_and_others_notice_nothing(
    tmp_path: Path, network: Callable[[str], str]
) -> None:
    async with run_pushed_mesh(tmp_path, network=network) as mesh:
        chosen, other = mesh.client("east"), mesh.client("north")
        proxies = (mesh.gateway(), mesh.envoys["west/shop/server-1"])
        async with chosen.working(), other.streaming():
            before = await chosen.connections()
            export_to(mesh, MemberSelector("east"))
            await mesh.pushing.settled()
            assert await other.get() == 403
            assert not await (await other.tcp()).echoes()
            await chosen.works_on()

            label(mesh, ("tier", "gold"))
            export_to(mesh, MemberSelector(label="tier", value="gold"))
            await mesh.pushing.settled()
            assert await other.get() == 403
            await chosen.works_on()

            export_to(mesh)
            await mesh.pushing.settled()
            await other.wait_served()
            await chosen.works_on()
            assert other.is_streaming  # a change of audience ends nothing that is open
            for proxy in proxies:
                assert await proxy.stat("listener_manager.listener_in_place_updated") == 0
            assert await chosen.connections() == before
            assert chosen.failures == []


async def test_a_guess_at_the_gateway_tells_nothing(tmp_path: Path) -> None:
    async with run_pushed_mesh(tmp_path) as mesh:
        export_to(mesh, MemberSelector("east"))
        await mesh.pushing.settled()
        answers = {}
        for caller in (EAST, NORTH):
            context = tls_client(tmp_path, *mesh.identities.leaf(identity(caller, "client")))
            context.set_alpn_protocols(["h2"])
            for service in ("cart", "nobody"):
                answers[caller, service] = await ask(
                    mesh.address("west", "gateway"),
                    GATEWAY_PORT,
                    context=context,
                    server_name=tunnel_sni(caller, ClusterName("west"), DOMAIN),
                    headers={
                        ":method": "CONNECT",
                        ":authority": f"{service}.shop.svc.west.mesh.test",
                        "x-isthmus-endpoint": f"{mesh.address('west', 'server-1')}:{MESH_PORT}",
                    },
                )
        assert answers == {
            (EAST, "cart"): 200,
            (EAST, "nobody"): 403,
            (NORTH, "cart"): 403,
            (NORTH, "nobody"): 403,
        }


async def test_no_spelling_of_a_service_leads_around_its_audience(tmp_path: Path) -> None:
    cart = "cart.shop.svc.west.mesh.test"
    spellings = [cart.title(), f"{cart}.", f"{cart}:80", f"{cart}:{MESH_PORT}", f"x@{cart}", f"{cart}/"]
    async with run_pushed_mesh(tmp_path) as mesh:
        export_to(mesh, MemberSelector("east"))
        await mesh.pushing.settled()
        context = tls_client(tmp_path, *mesh.identities.leaf(identity(NORTH, "client")))
        context.set_alpn_protocols(["h2"])
        tried = [
            (spelling, more)
            for spelling in (*spellings, "*", "*.west.mesh.test", "federation")
            for more in ({}, {":protocol": "websocket", ":scheme": "https", ":path": "/"})
        ]
        answers = await asyncio.gather(
            *(
                ask(
                    mesh.address("west", "gateway"),
                    GATEWAY_PORT,
                    context=context,
                    server_name=tunnel_sni(NORTH, ClusterName("west"), DOMAIN),
                    headers={
                        ":method": "CONNECT",
                        ":authority": spelling,
                        "x-isthmus-endpoint": f"{mesh.address('west', 'server-1')}:{MESH_PORT}",
                        **more,
                    },
                )
                for spelling, more in tried
            )
        )
        served = [one for one, answer in zip(tried, answers, strict=True) if answer == 200]
        assert served == []
