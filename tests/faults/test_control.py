"""The control plane breaks: its leader, or all of it. Nobody who calls notices, and changes arrive again."""

import yaml

from deploy.lab.links import LinkState
from deploy.lab.reports import Action
from tests.faults.broken_mesh import CART, CLIENT, BrokenMesh
from tests.faults.conftest import DROP_AFTER, service
from tests.faults.pictures import Picture
from tests.faults.row import NotYet, answer


class News:
    """A service that appears in west while something is broken elsewhere: it must arrive in east's proxies."""

    def __init__(self, mesh: BrokenMesh) -> None:
        self._mesh = mesh
        self._file = mesh.manifests / "west" / "news.yaml"

    def tell(self) -> None:
        self._file.write_text(yaml.safe_dump_all(service("news")))

    def withdraw(self) -> None:
        self._file.unlink(missing_ok=True)

    async def arrived(self) -> None:
        for proxy in self._mesh.sidecars("east"):
            if "news" not in str(await self._mesh.dump(proxy)):
                raise NotYet(f"{proxy} has not heard of the new service")


async def another_leads(mesh: BrokenMesh, old: str) -> None:
    [new] = [replica for replica in mesh.replicas("east") if replica != old]
    status = await mesh.status(new)
    if not status.is_leader:
        raise NotYet(f"{new} does not lead: the leader is {status.leader!r}")


async def left_alone(mesh: BrokenMesh, replica: str) -> None:
    if proxies := await mesh.streams(replica):
        raise NotYet(f"{replica} has {sorted(proxies)}")
    for peer in ("west", "south"):
        if (await mesh.member(replica, peer)).listens_since is not None:
            raise NotYet(f"{peer} listens to {replica}")


async def _lose_leader(mesh: BrokenMesh, before: Picture, fault: str, action: Action, undo: Action) -> None:
    news = News(mesh)
    async with mesh.row(fault, before) as row:
        old = await answer(lambda: mesh.leader("east"))
        row.strikes()
        await mesh.act(action, old)
        news.tell()
        try:
            await row.detects("status: another replica leads", lambda: another_leads(mesh, old))
            await row.notices("a change of west is in east's proxies after", news.arrived)
        finally:
            news.withdraw()
            await mesh.act(undo, old)
        row.mends()


async def test_the_leader_is_killed(mesh: BrokenMesh, before: Picture) -> None:
    await _lose_leader(mesh, before, "control leader killed", Action.KILL, Action.START)


async def test_the_leader_is_paused(mesh: BrokenMesh, before: Picture) -> None:
    await _lose_leader(mesh, before, "control leader paused", Action.PAUSE, Action.RESUME)


async def test_the_leader_is_cut_from_etcd(mesh: BrokenMesh, before: Picture) -> None:
    news = News(mesh)
    async with mesh.row("control leader cut from etcd", before) as row:
        old = await answer(lambda: mesh.leader("east"))
        row.strikes()
        await mesh.link(old, "east/etcd", LinkState.SILENT)
        news.tell()
        try:
            await row.detects("status: another replica leads", lambda: another_leads(mesh, old))
            await row.notices("a change of west is in all of east's proxies, still cut, after", news.arrived)
            await row.notices("nobody is on the replica without etcd after", lambda: left_alone(mesh, old))
        finally:
            news.withdraw()
            await mesh.link(old, "east/etcd", LinkState.OPEN)
        row.mends()


async def test_all_control_planes_of_a_cluster_are_killed(mesh: BrokenMesh, before: Picture) -> None:
    async with mesh.row("all control planes of east killed", before) as row:
        row.strikes()
        await mesh.act(Action.KILL, "east/control")
        await row.detects("clusters of west: east is stale", lambda: mesh.sees("west", "east", "stale"))
        await mesh.act(Action.START, "east/control")
        row.mends()


async def test_a_partition_without_a_local_control_plane_drops_what_may_be_dropped(
    mesh: BrokenMesh, before: Picture
) -> None:
    loads = (("east", CART),)
    async with mesh.row("partition, and east's control planes killed", before, loads=loads, posts_may_fail=True) as row:
        row.strikes()
        await mesh.act(Action.KILL, "east/control")
        await mesh.link("east", "west", LinkState.SILENT)
        await row.detects("clusters of west: east is stale", lambda: mesh.sees("west", "east", "stale"))
        await row.notices(
            f"Envoy itself dropped ware ({DROP_AFTER} s) after", lambda: mesh.has_endpoints(CLIENT, "ware", {})
        )
        await mesh.has_endpoints(CLIENT, "cart", {"east": 2, "west": 1})
        await mesh.link("east", "west", LinkState.OPEN)
        await mesh.act(Action.START, "east/control")
        row.mends()
