"""Two replicas never both write: shown from etcd's own history, whatever happens to the one that leads.

The replicas of one cluster see different pods, so that what is written tells whose word it is.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from federation import names
from federation.etcd import EtcdClient, Event
from federation.model import ClusterSettings, NetworkName
from federation.peering import exports
from tests.support.federation import (
    CART,
    ClusterUnderTest,
    ControlUnderTest,
    exported_service,
    pod,
    start_cluster,
)
from tests.support.history import Reign, history, reigns
from tests.support.relay import Relay, start_relay
from tests.support.trust import EAST, WEST, make_issuers
from tests.support.waiting import eventually

ONE, TWO = "one", "two"
LEASE = timedelta(seconds=3)


class Replicas:
    """Two replicas of east, each with its own way to etcd and to its peer, which is a real one."""

    def __init__(self, cluster: ClusterUnderTest, west: ControlUnderTest, **by_name: ControlUnderTest) -> None:
        self.cluster, self.west = cluster, west
        self.one, self.two = by_name[ONE], by_name[TWO]

    def says(self, control: ControlUnderTest, number: int) -> None:
        """Changes the pods that one replica sees; the address tells which one it was."""
        control.store.apply([pod(f"cart-{number}")])

    async def reigns(self) -> tuple[Reign, ...]:
        return reigns(await history(self.cluster.etcd.url))


def authors(writes: tuple[Event, ...]) -> list[str]:
    """Returns whose word the written exports of east are, in order."""
    key = names.export_key(EAST, CART)
    bodies = [write.item.value for write in writes if write.key == key and write.item]
    numbers = [
        max(int(one.address.rpartition(".")[2]) for one in exports.decode_export(each).endpoints) for each in bodies
    ]
    return [ONE if number < 100 else TWO for number in numbers]


@pytest.fixture
async def ways(tmp_path: Path) -> AsyncIterator[tuple[Relay, Relay, Replicas]]:
    """The ways of replica one to etcd and to west, and both replicas; replica one leads."""
    issuers = make_issuers(EAST, WEST, now=datetime.now(UTC))
    async with AsyncExitStack() as stack:
        east = await stack.enter_async_context(start_cluster(tmp_path, issuers[EAST]))
        other = await stack.enter_async_context(start_cluster(tmp_path, issuers[WEST]))
        west = await stack.enter_async_context(other.control(*exported_service(), pod("cart-1")))
        to_etcd = await stack.enter_async_context(start_relay((east.etcd.address, 2379)))
        to_west = await stack.enter_async_context(start_relay((other.gateway.address, other.gateway.port), port=15443))
        through = msgspec.structs.replace(other.gateway, address=to_west.address)
        one = await stack.enter_async_context(
            replica(east, ONE, 2, etcd=to_etcd.address, peer_gateways={WEST: (through,)})
        )
        await one.introduce(west.member)
        await eventually(lambda: bool(one.addresses(WEST)), "one leads and hears west")
        two = await stack.enter_async_context(replica(east, TWO, 102, etcd=east.etcd.address))
        await eventually(lambda: bool(two.addresses(WEST)))
        yield to_etcd, to_west, Replicas(east, west, one=one, two=two)


@asynccontextmanager
async def replica(
    cluster: ClusterUnderTest, holder: str, number: int, *, etcd: str, **settings: object
) -> AsyncIterator[ControlUnderTest]:
    told = ClusterSettings(
        name=EAST, domain=cluster.issuer.domain, network=NetworkName(EAST), region="eu", gateways=(cluster.gateway,)
    )
    async with EtcdClient((f"http://{etcd}:2379",)) as client:
        control = ControlUnderTest(cluster.issuer, client, msgspec.structs.replace(told, **settings), lease=LEASE)
        control.holder = holder
        control.store.apply([*exported_service(), pod(f"cart-{number}")])
        control.store.mark_listed("source")
        async with asyncio.TaskGroup() as group:
            running = group.create_task(control.run())
            yield control
            running.cancel()


@pytest.mark.parametrize("cut_from", ["etcd", "etcd, held back", "etcd and peers"])
async def test_a_leader_that_is_cut_off_writes_nothing_after_the_next_has_begun(
    ways: tuple[Relay, Relay, Replicas], cut_from: str
) -> None:
    to_etcd, to_west, replicas = ways
    one, two = replicas.one, replicas.two
    if cut_from == "etcd, held back":
        to_etcd.freeze()  # what it writes from now on arrives when it leads no more
    else:
        await to_etcd.cut()
    if cut_from == "etcd and peers":
        await to_west.cut()
    replicas.says(one, 3)
    replicas.says(two, 103)
    await eventually(lambda: "10.0.0.103" in _published(two))
    replicas.west.store.apply([pod("cart-4")])
    await eventually(lambda: "10.0.0.4" in two.addresses(WEST), "the next leader hears west")
    await to_etcd.open()
    await to_west.open()
    replicas.says(one, 5)
    replicas.says(two, 105)
    await eventually(lambda: "10.0.0.105" in _published(two) and one.replica.records == two.replica.records)
    found = await replicas.reigns()
    told = "\n".join(map(str, found))
    assert [reign.holder for reign in found] == ["", ONE, "", TWO], told
    assert set(authors(found[1].writes)) == {ONE}, told
    assert authors(found[2].writes) == [], told
    assert set(authors(found[3].writes)) == {TWO}, told
    print(told)


async def test_a_leader_that_is_cut_from_its_peers_alone_goes_on_to_lead(ways: tuple[Relay, Relay, Replicas]) -> None:
    """It says that they are silent, takes nothing away, and hears them again."""
    _, to_west, replicas = ways
    await to_west.cut()
    await eventually(lambda: not replicas.two.is_live(WEST))
    replicas.says(replicas.one, 3)
    await eventually(lambda: "10.0.0.3" in _published(replicas.two))
    assert replicas.two.addresses(WEST) == ["10.0.0.1"]
    await to_west.open()
    await eventually(lambda: replicas.two.is_live(WEST))
    found = await replicas.reigns()
    assert [reign.holder for reign in found] == ["", ONE]
    assert set(authors(found[1].writes)) == {ONE}


def _published(control: ControlUnderTest) -> list[str]:
    body = control.replica.records.get(names.export_key(EAST, CART))
    return [one.address for one in exports.decode_export(body).endpoints] if body else []
