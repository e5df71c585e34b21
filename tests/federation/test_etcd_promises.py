"""Whatever happens to a cluster's etcd, afterwards all is as in a mesh that had no fault, and nothing ever left it."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from federation import names
from federation.etcd import EtcdClient, EtcdError, Put
from federation.model import Departure, Drain, ExportedService, Freshness, MemberCluster, ServiceKey
from federation.peering import exports
from federation.peering.decisions import decide, take_back
from federation.peering.records import encode_revocation, place_of, read_record
from federation.snapshot import Change, Section
from tests.support.etcd import QUOTA, fill
from tests.support.federation import SHOP, ClusterUnderTest, ControlUnderTest, exported_service, pod, start_cluster
from tests.support.relay import Relay, start_relay
from tests.support.trust import EAST, WEST, make_issuers
from tests.support.waiting import eventually
from trust.bundle import Revocation
from trust.issuance import Issuer
from trust.spiffe import ClusterName

SOUTH, NORTH = ClusterName("south"), ClusterName("north")
THEN = datetime(2026, 1, 1, tzinfo=UTC)
STAYS = pod("cart-1")


class Step:
    """What happens to a mesh during a fault, and to one without faults: changes at the sources, orders of an admin."""

    def __init__(self, mesh: "Mesh", faultless: "Mesh", chance: random.Random) -> None:
        self._meshes = (mesh, faultless)
        self._chance = chance

    def change(self) -> None:
        """Pods come and go, and exports, in both clusters."""
        for _ in range(self._chance.randrange(1, 4)):
            cluster, is_there = self._chance.choice((EAST, WEST)), self._chance.random() < 0.6
            number = self._chance.randrange(2, 6)
            key = ServiceKey(SHOP, f"pay-{number}")
            for mesh in self._meshes:
                store = (mesh.east if cluster == EAST else mesh.west).store
                store.apply([pod(f"cart-{number}", ready=is_there), *exported_service(key.name)])
                if not is_there:
                    store.apply([Change(Section.EXPORTS, key, None)])

    async def order(self) -> None:
        """An admin of east decides something, or takes it back."""
        kept = self._chance.random() < 0.6
        match self._chance.randrange(3):
            case 0:
                drain = Drain(WEST, self._chance.randrange(100), datetime.now(UTC))
                key, body = names.drain_key(WEST, None), exports.encode(drain)
            case 1:
                key, body = names.departure_key(NORTH), exports.encode(Departure(NORTH, datetime.now(UTC)))
            case _:
                revocation = Revocation(cluster=NORTH, at=datetime.now(UTC))
                key, body = names.revocation_key(NORTH), encode_revocation(revocation)
        for mesh in self._meshes:
            await mesh.write(key, body if kept else None)

    async def settle(self) -> None:
        """Waits until both meshes say the same, in their pictures and in their etcds."""
        mesh, faultless = self._meshes
        deadline = asyncio.get_running_loop().time() + 60
        while True:
            one, other = await _all_of(mesh), await _all_of(faultless)
            if one == other:
                return
            assert asyncio.get_running_loop().time() < deadline, _difference(one, other)
            await asyncio.sleep(0.05)


class Mesh:
    """East and west, who hear each other; what is wrong happens to the etcd of east."""

    def __init__(
        self, cluster: ClusterUnderTest, way: Relay, *, east: ControlUnderTest, west: ControlUnderTest
    ) -> None:
        self.cluster, self.way, self.etcd = cluster, way, cluster.etcd
        self.east, self.west = east, west

    async def write(self, key: str, body: bytes | None) -> None:
        """Keeps or removes what an admin of east decided, until etcd takes it: once is enough, even when the control
        plane has not seen yet that etcd lost data. Returns when it is known."""
        async with asyncio.timeout(60):
            while True:
                with suppress(EtcdError):
                    if body is None:
                        await take_back(self.east.client, key)
                    else:
                        await decide(self.east.client, key, Put(key, body))
                    break
                await asyncio.sleep(0.1)
            replica = self.east.replica
            while replica.records.get(key) != body or key in replica.lost:
                await replica.news.wait_newer(replica.news.count)

    async def always(self) -> None:
        """Fails when something leaves the picture of east that nobody took out. For ever."""
        store = self.east.store
        while True:
            picture = store.snapshot
            assert WEST in picture.members
            assert "10.0.0.1" in self.east.addresses(WEST)
            assert (SOUTH, None) in picture.drains
            assert picture.revocations.keys() >= {SOUTH}
            await store.wait_newer(picture.revision)


@asynccontextmanager
async def start_mesh(folder: Path, issuers: Mapping[ClusterName, Issuer]) -> AsyncIterator[Mesh]:
    await asyncio.to_thread(folder.mkdir)
    source = (*exported_service(), STAYS)
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(start_cluster(folder, issuers[EAST], etcd_arguments=QUOTA))
        way = await stack.enter_async_context(start_relay((cluster.etcd.address, 2379)))
        cluster.etcd_urls = (f"http://{way.address}:{way.port}",)
        other = await stack.enter_async_context(start_cluster(folder, issuers[WEST]))
        east = await stack.enter_async_context(cluster.control(*source))
        west = await stack.enter_async_context(other.control(*source))
        mesh = Mesh(cluster, way, east=east, west=west)
        await east.introduce(west.member)
        await mesh.write(names.drain_key(SOUTH, None), exports.encode(Drain(SOUTH, 0, THEN)))
        await mesh.write(names.revocation_key(SOUTH), encode_revocation(Revocation(cluster=SOUTH, at=THEN)))
        await eventually(lambda: bool(east.addresses(WEST) and west.addresses(EAST)))
        yield mesh


async def nothing(mesh: Mesh, step: Step) -> None:
    del mesh
    step.change()
    await step.order()


async def killed(mesh: Mesh, step: Step) -> None:
    await mesh.etcd.kill()
    step.change()
    await mesh.etcd.start()
    await step.order()


async def frozen(mesh: Mesh, step: Step) -> None:
    health = mesh.east.client.health
    await eventually(lambda: not health.cut_off_for(datetime.now(UTC)), "the fault before is over")
    mesh.etcd.pause()
    step.change()
    await eventually(lambda: bool(health.cut_off_for(datetime.now(UTC))))
    mesh.etcd.resume()
    await step.order()


async def emptied(mesh: Mesh, step: Step) -> None:
    await step.order()
    await mesh.etcd.kill()
    mesh.etcd.wipe()
    step.change()
    await mesh.etcd.start()


async def set_back(mesh: Mesh, step: Step) -> None:
    """What was acknowledged in the meantime is lost, and revisions go backwards."""
    await mesh.etcd.kill()
    mesh.etcd.remember()
    await mesh.etcd.start()
    step.change()
    await step.order()
    await step.settle()
    await mesh.etcd.kill()
    mesh.etcd.go_back()
    await mesh.etcd.start()


async def compacted_while_away(mesh: Mesh, step: Step) -> None:
    await mesh.way.cut()
    step.change()
    async with EtcdClient((mesh.etcd.url,)) as other:
        await mesh.etcd.compact(await other.put(f"{names.ETCD_PREFIX}nobody-knows", b""))
        await other.delete(f"{names.ETCD_PREFIX}nobody-knows")
    await mesh.way.open()
    await step.order()


async def full(mesh: Mesh, step: Step) -> None:
    await fill(mesh.etcd)
    step.change()
    await mesh.etcd.make_room()
    await step.order()


async def slow(mesh: Mesh, step: Step) -> None:
    async with mesh.etcd.slowed(0.3):
        step.change()
        await step.order()


FAULTS = (nothing, killed, frozen, emptied, set_back, compacted_while_away, full, slow)


async def test_after_faults_all_is_as_if_there_had_been_none(tmp_path: Path) -> None:
    """Lives through faults with a mesh, and through what else happens with another one too; compares them.

    First through each fault by itself, then through a sequence of which one begins before the last is repaired.
    """
    issuers, chance = make_issuers(EAST, WEST, now=datetime.now(UTC)), random.Random(1)
    async with (
        start_mesh(tmp_path / "faulted", issuers) as mesh,
        start_mesh(tmp_path / "faultless", issuers) as faultless,
        asyncio.TaskGroup() as group,
    ):
        always = group.create_task(mesh.always())
        step = Step(mesh, faultless, chance)
        await step.settle()
        for fault in FAULTS:
            await fault(mesh, step)
            print(f"{fault.__name__} happened")
            await step.settle()
        for fault in chance.choices(FAULTS, k=5):
            print(f"then {fault.__name__}")
            await fault(mesh, step)
        await step.settle()
        await eventually(
            lambda: not mesh.east.client.health.problems(datetime.now(UTC), missing=mesh.east.publisher.missing)
        )
        always.cancel()


async def _all_of(mesh: Mesh) -> Mapping[str, object]:
    """Returns what the pictures of both clusters and the etcd of east hold, by what must be equal in two meshes."""
    try:
        listing = await mesh.east.client.list(names.ETCD_PREFIX)
    except EtcdError:
        return {}
    found: dict[str, object] = {}
    for item in listing.items:
        if place_of(item.key) is not None:
            found[f"etcd {item.key}"] = _plain(read_record(item.key, item.value))
    for control in (mesh.east, mesh.west):
        picture = control.picture
        for section in (Section.MEMBERS, Section.IMPORTS, Section.FRESHNESS, Section.DRAINS, Section.DEPARTURES):
            for key, value in getattr(picture, section.value).items():
                found[f"{control.name} {section} {key}"] = _plain(value)
        found[f"{control.name} revoked"] = sorted(picture.revocations)
    return found


def _plain(value: object) -> object:
    """Leaves out of a record what differs between two meshes: moments, and where things listen."""
    match value:
        case MemberCluster():
            return value.name, value.introduced_by, value.drains, value.has_left
        case ExportedService():
            return value.cluster, value.key, value.ports, value.endpoints
        case Freshness():
            return value.state
        case Drain():
            return value.cluster, value.service, value.weight
        case Departure():
            return value.cluster
        case Revocation():
            return value.subject
        case _:
            raise TypeError(value)


def _difference(one: Mapping[str, object], other: Mapping[str, object]) -> str:
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return "\n".join(f"{key}: {one.get(key)} != {other.get(key)}" for key in keys)
