"""Peers fall silent, lose gateways, die, come back with nothing: no call fails that somebody else could answer."""

from deploy.lab.links import LinkState
from deploy.lab.reports import Action
from tests.faults.broken_mesh import CART, CLIENT, BrokenMesh
from tests.faults.conftest import DROP_AFTER
from tests.faults.pictures import Picture
from tests.faults.row import since

EAST_CART = (("east", CART),)


async def test_a_partition_keeps_endpoints(mesh: BrokenMesh, before: Picture) -> None:
    async with mesh.row("partition east-west (keep, drop)", before, loads=EAST_CART, posts_may_fail=True) as row:
        row.strikes()
        await mesh.link("east", "west", LinkState.SILENT)
        await row.detects("clusters: stale on both sides", lambda: _both_see(mesh, "east", "west", "stale"))
        await mesh.has_endpoints(CLIENT, "cart", {"east": 2, "west": 1})
        await mesh.has_endpoints(CLIENT, "stock", {"west": 1})
        await row.notices(
            f"ware (drop after {DROP_AFTER} s) is dropped after", lambda: mesh.has_endpoints(CLIENT, "ware", {})
        )
        await mesh.has_endpoints(CLIENT, "stock", {"west": 1})
        await mesh.link("east", "west", LinkState.OPEN)
        row.mends()


async def test_a_member_that_is_silent_too_long_is_gone(mesh: BrokenMesh, before: Picture) -> None:
    async with mesh.row(
        "partition south-west (gone after 8 s)", before, loads=(("south", CART),), posts_may_fail=True
    ) as row:
        row.strikes()
        await mesh.link("south", "west", LinkState.SILENT)
        await row.detects("clusters: west is stale", lambda: mesh.sees("south", "west", "stale"))
        await row.notices("west is gone after", lambda: mesh.sees("south", "west", "gone"))
        await row.notices(
            "its endpoints went after", lambda: mesh.has_endpoints("south/shop/client-1/sidecar", "cart", {"east": 2})
        )
        await mesh.link("south", "west", LinkState.OPEN)
        row.mends()


async def test_one_gateway_of_two_is_lost(mesh: BrokenMesh, before: Picture) -> None:
    async with mesh.row("one gateway of two killed", before, posts_may_fail=True) as row:
        row.strikes()
        await mesh.act(Action.KILL, "west/gateway-1")
        await row.detects("proxies of west: it is absent", lambda: mesh.lacks_proxy("west", 1))
        await row.lasts(2)
        await mesh.act(Action.START, "west/gateway-1")
        row.mends()


async def test_one_gateway_of_two_is_frozen(mesh: BrokenMesh, before: Picture) -> None:
    async with mesh.row("one gateway of two paused", before, posts_may_fail=True) as row:
        row.strikes()
        await mesh.act(Action.PAUSE, "west/gateway-1")
        await row.detects("Envoy in east: unhealthy", lambda: mesh.finds_sick(CLIENT))
        await row.lasts(2)
        await mesh.act(Action.RESUME, "west/gateway-1")
        row.mends()


async def test_all_gateways_of_a_peer_are_lost(mesh: BrokenMesh, before: Picture) -> None:
    async with mesh.row("both gateways of west killed", before, loads=EAST_CART) as row:
        row.strikes()
        await mesh.act(Action.KILL, "west/gateway")
        await row.detects("clusters: west is stale", lambda: mesh.sees("east", "west", "stale"))
        await mesh.has_endpoints(CLIENT, "stock", {"west": 1})
        await mesh.act(Action.START, "west/gateway")
        row.mends()


async def test_a_peer_is_killed_whole(mesh: BrokenMesh, before: Picture) -> None:
    loads = (("east", CART), ("south", CART))
    async with mesh.row("west killed whole", before, loads=loads, posts_may_fail=True) as row:
        row.strikes()
        await mesh.act(Action.KILL, "west")
        await row.detects("clusters: west is stale", lambda: mesh.sees("east", "west", "stale"))
        await mesh.act(Action.START, "west")
        row.mends()


async def test_a_peer_restarts_with_an_empty_etcd(mesh: BrokenMesh, before: Picture) -> None:
    async with mesh.row("west's control and etcd back empty", before) as row:
        row.strikes()
        await mesh.act(Action.KILL, "west/control")
        await mesh.act(Action.WIPE, "west/etcd")
        await row.detects("clusters: west is stale", lambda: mesh.sees("east", "west", "stale"))
        await mesh.act(Action.START, "west/etcd", "west/control")
        row.mends()
        await since(0.0, lambda: mesh.issue_tokens("west"))
        await row.notices("west is live again after", lambda: mesh.sees("east", "west", "live"))
        await mesh.has_endpoints(CLIENT, "stock", {"west": 1})


async def _both_see(mesh: BrokenMesh, one: str, other: str, state: str) -> None:
    await mesh.sees(one, other, state)
    await mesh.sees(other, one, state)
