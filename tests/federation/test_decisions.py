"""What is decided in the moment between the return of an etcd with less data and its being seen: it stands."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.control.departures import Departures
from deploy.control.drain_backend import DrainBackend
from federation import names
from federation.admin import DrainOrder
from federation.etcd import EtcdClient
from federation.model import Drain
from federation.peering import exports
from federation.peering.decisions import MOST, decided_since, number_of, numbered, take_back
from federation.peering.records import encode_revocation
from federation.snapshot import Snapshot
from tests.federation.test_etcd_faults import put
from tests.support.etcd import Etcd, start_etcd
from tests.support.federation import ClusterUnderTest, ControlUnderTest, exported_service, pod, start_cluster
from tests.support.relay import Relay, start_relay
from tests.support.trust import EAST, WEST, make_issuers
from tests.support.waiting import eventually
from trust.bundle import Revocation
from trust.spiffe import ClusterName

SOUTH, NORTH = ClusterName("south"), ClusterName("north")
THEN = datetime(2026, 1, 1, tzinfo=UTC)


class Cluster:
    """East, whose control plane reaches etcd by a way that can be cut, while its admin's orders take another."""

    def __init__(self, cluster: ClusterUnderTest, way: Relay, control: ControlUnderTest, admin: EtcdClient) -> None:
        self.etcd: Etcd = cluster.etcd
        self.way = way
        self.control = control
        self.admin = admin
        self.drains = DrainBackend(control.settings, store=control.store, etcd=admin, on_event=lambda event: None)
        self.departures = Departures(control.settings, store=control.store, etcd=admin, on_event=lambda event: None)

    @property
    def picture(self) -> Snapshot:
        return self.control.picture

    def weights(self) -> dict[ClusterName, int]:
        return {cluster: drain.weight for (cluster, _), drain in self.picture.drains.items()}

    async def remember(self) -> None:
        """Keeps a backup of etcd as it is."""
        await self.etcd.kill()
        self.etcd.remember()
        await self.etcd.start()

    @asynccontextmanager
    async def losing(self, *, is_emptied: bool) -> AsyncIterator[None]:
        """Has etcd come back empty, or as remembered; the control plane sees that at the end, and all is repaired."""
        await self.way.cut()
        await self.etcd.kill()
        if is_emptied:
            self.etcd.wipe()
        else:
            self.etcd.go_back()
        await self.etcd.start()
        await put(self.admin, "/until/it/answers", b"")
        losses = self.control.replica.losses
        yield
        await self.way.open()
        replica = self.control.replica
        await eventually(lambda: replica.losses > losses and not replica.lost)
        await eventually(lambda: self.control.publisher.missing == 0)


@pytest.fixture
async def east(tmp_path: Path) -> AsyncIterator[Cluster]:
    issuers = make_issuers(EAST, now=datetime.now(UTC))
    async with (
        start_cluster(tmp_path, issuers[EAST]) as cluster,
        start_relay((cluster.etcd.address, 2379)) as way,
        EtcdClient((cluster.etcd.url,)) as admin,
    ):
        cluster.etcd_urls = (f"http://{way.address}:{way.port}",)
        async with cluster.control(*exported_service(), pod("cart-1")) as control:
            for other in (WEST, SOUTH, NORTH):
                await put(admin, names.member_key(other), _member(control, other))
            await eventually(lambda: {WEST, SOUTH, NORTH} <= control.picture.members.keys())
            await eventually(lambda: control.publisher.missing == 0)
            yield Cluster(cluster, way, control, admin)


def _member(control: ControlUnderTest, name: ClusterName) -> bytes:
    own = exports.own_member(control.settings)
    return exports.encode(type(own)(name, own.network, own.region, ()))


@pytest.mark.parametrize("is_emptied", [True, False])
async def test_what_was_taken_back_before_the_loss_is_seen_stays_so(east: Cluster, *, is_emptied: bool) -> None:
    await east.drains.drain(DrainOrder(WEST, weight=50), asked_by="me")
    await eventually(lambda: east.weights() == {WEST: 50})
    if not is_emptied:
        await east.remember()
    await east.drains.drain(DrainOrder(WEST, weight=25), asked_by="me")
    await east.drains.drain(DrainOrder(SOUTH, weight=10), asked_by="me")
    await put(east.admin, names.revocation_key(NORTH), encode_revocation(Revocation(cluster=NORTH, at=THEN)))
    await east.departures.leave(asked_by="me")
    await eventually(lambda: east.weights() == {WEST: 25, SOUTH: 10} and bool(east.picture.revocations))
    async with east.losing(is_emptied=is_emptied):
        await east.drains.undrain(WEST, "", asked_by="me")
        await take_back(east.admin, names.revocation_key(NORTH))
        await take_back(east.admin, names.departure_key(EAST))
    # What nobody took back is back, and nothing else.
    assert east.weights() == {SOUTH: 10}
    assert not east.picture.revocations
    assert not east.picture.departures
    held = (await east.admin.list(f"{names.ETCD_PREFIX}drains/")).items
    assert [item.key for item in held] == [names.drain_key(SOUTH, None)]


async def test_what_was_ordered_before_the_loss_is_seen_stands(east: Cluster) -> None:
    """Orders that say what an older one said, which etcd holds again: they look like that one."""
    await east.drains.drain(DrainOrder(WEST, weight=50), asked_by="me")
    await east.drains.drain(DrainOrder(SOUTH, weight=50), asked_by="me")
    await east.departures.forget(NORTH, asked_by="me")
    await eventually(lambda: east.weights() == {WEST: 50, SOUTH: 50} and NORTH in east.picture.departures)
    await east.remember()
    await east.drains.drain(DrainOrder(WEST, weight=25), asked_by="me")
    await east.drains.undrain(SOUTH, "", asked_by="me")
    await take_back(east.admin, names.departure_key(NORTH))
    await put(east.admin, names.member_key(NORTH), _member(east.control, NORTH))
    await eventually(lambda: east.weights() == {WEST: 25} and not east.picture.departures)
    await eventually(lambda: NORTH in east.picture.members)
    async with east.losing(is_emptied=False):
        await east.drains.drain(DrainOrder(WEST, weight=50), asked_by="me")
        await east.drains.drain(DrainOrder(SOUTH, weight=50), asked_by="me")
        await east.departures.forget(NORTH, asked_by="me")
    assert east.weights() == {WEST: 50, SOUTH: 50}
    assert NORTH in east.picture.departures


async def test_what_was_decided_before_the_loss_is_restored_all_the_same(east: Cluster) -> None:
    """Etcd comes back as it was after an undrain that was known, and before a drain."""
    await east.drains.drain(DrainOrder(WEST, weight=50), asked_by="me")
    await eventually(lambda: east.weights() == {WEST: 50})
    await east.drains.undrain(WEST, "", asked_by="me")
    await eventually(lambda: not east.weights())
    await east.remember()
    await east.drains.drain(DrainOrder(WEST, weight=25), asked_by="me")
    await eventually(lambda: east.weights() == {WEST: 25})
    number = east.control.replica.decision(names.drain_key(WEST, None))
    async with east.losing(is_emptied=False):
        pass
    assert east.weights() == {WEST: 25}
    assert await east.admin.get(names.drain_key(WEST, None)) is not None
    assert number > 0
    assert east.control.replica.decision(names.drain_key(WEST, None)) == number


async def test_numbers_grow_and_few_are_kept(tmp_path: Path) -> None:
    async with start_etcd(tmp_path) as etcd, EtcdClient((etcd.url,)) as client:
        west, key = names.departure_key(WEST), names.drain_key(EAST, None)
        await client.transact([], await numbered(client, west))
        first = await client.get(names.decided_key(west))
        assert first is not None
        ahead = number_of(first.key, first.value) + 10**15  # by a clock that is decades ahead
        for each in range(MOST + 20):
            await client.put(names.decided_key(f"{names.ETCD_PREFIX}drains/m-{each}"), str(ahead + each).encode())
        await client.transact([], await numbered(client, key))
        held = {item.key: item.value for item in (await client.list(names.DECIDED_PREFIX)).items}
        assert len(held) == MOST + 2
        mine = names.decided_key(key)
        assert {names.decided_key(west), mine} <= held.keys()
        assert number_of(mine, held[mine]) == ahead + MOST + 20
        assert decided_since(held, ahead + MOST + 18) == {f"{names.ETCD_PREFIX}drains/m-{MOST + 19}", key}


def test_what_is_no_number_decides_nothing() -> None:
    key = names.decided_key(names.drain_key(EAST, None))
    for body in (None, b"", b"-1", b"1e9", b"\xff", b"9" * 19, b" 1", "²".encode()):
        assert number_of(key, body) == 0
    assert number_of(key, b"17") == 17
    assert number_of(names.drain_key(EAST, None), b"17") == 0
    assert decided_since({names.drain_key(EAST, None): exports.encode(Drain(EAST, 5, THEN))}, 0) == frozenset()
