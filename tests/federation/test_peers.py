"""Clusters that hear each other: real etcd, real TLS between control planes, networks and peers that fail."""

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from federation import names
from federation.model import GatewayAddress, Liveness, ServiceKey
from federation.peering.redials import FEW
from federation.snapshot import Change, Section
from tests.support.addresses import free_address
from tests.support.federation import (
    CART,
    SHOP,
    ClusterUnderTest,
    ControlUnderTest,
    exported_service,
    pod,
    start_cluster,
)
from tests.support.trust import EAST, WEST, make_issuers
from tests.support.waiting import eventually
from trust.spiffe import ClusterName

SOUTH = ClusterName("south")
PAY = ServiceKey(SHOP, "pay")


@pytest.fixture
async def clusters(tmp_path: Path) -> AsyncIterator[tuple[ClusterUnderTest, ClusterUnderTest]]:
    """East and west, without their control planes."""
    issuers = make_issuers(EAST, WEST, now=datetime.now(UTC))
    async with start_cluster(tmp_path, issuers[EAST]) as east, start_cluster(tmp_path, issuers[WEST]) as west:
        yield east, west


async def meet(one: ControlUnderTest, other: ControlUnderTest) -> None:
    """Introduces `one` to `other` and waits until both hear each other."""
    await one.introduce(other.member)
    await eventually(lambda: one.is_live(other.name) and other.is_live(one.name))


async def test_one_introduction_is_enough_for_two_clusters_to_share_what_they_export(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, west_cluster = clusters
    async with (
        east_cluster.control(*exported_service(), pod("cart-1")) as east,
        west_cluster.control(*exported_service(), pod("cart-2"), pod("cart-3")) as west,
    ):
        await meet(east, west)
        await eventually(lambda: east.addresses(WEST) == ["10.0.0.2", "10.0.0.3"])
        await eventually(lambda: west.addresses(EAST) == ["10.0.0.1"])
        assert east.picture.members == west.picture.members == {EAST: east.member, WEST: west.member}
        assert east.peer(WEST).via == f"{west_cluster.gateway.address}:{west_cluster.gateway.port}"
        assert [listener.peer for listener in west.offer.listeners()] == [EAST]
        west.store.apply([pod("cart-2", ready=False)])
        await eventually(lambda: east.addresses(WEST) == ["10.0.0.3"])
        west.store.apply([Change(Section.EXPORTS, CART, None)])
        await eventually(lambda: not east.picture.imports)
        assert west.addresses(EAST) == ["10.0.0.1"]


async def test_a_newcomer_meets_all_members_by_knowing_one(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest], tmp_path: Path
) -> None:
    del clusters
    (tmp_path / "three").mkdir()
    issuers = make_issuers(EAST, WEST, SOUTH, now=datetime.now(UTC))
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(start_cluster(tmp_path / "three", each)) for each in issuers.values()]
        east, west, south = [
            await stack.enter_async_context(each.control(*exported_service(), pod(f"cart-{number}")))
            for number, each in enumerate(found, 1)
        ]
        await meet(east, west)
        await meet(south, west)
        await eventually(lambda: south.is_live(EAST) and east.is_live(SOUTH))
        members = {EAST: east.member, WEST: west.member, SOUTH: south.member}
        await eventually(lambda: all(each.picture.members == members for each in (east, west, south)))
        await eventually(lambda: south.addresses(EAST) == ["10.0.0.1"] and east.addresses(SOUTH) == ["10.0.0.3"])


async def test_a_black_hole_makes_a_peer_stale_and_takes_nothing_away(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, west_cluster = clusters
    async with (
        east_cluster.control(*exported_service(), pod("cart-1")) as east,
        west_cluster.control(*exported_service(), pod("cart-2"), *exported_service("pay")) as west,
    ):
        await meet(east, west)
        await eventually(lambda: len(east.picture.imports) == 2)
        west_cluster.relay.freeze()
        east_cluster.relay.freeze()
        await eventually(lambda: east.picture.freshness[WEST].state is Liveness.STALE)
        await eventually(lambda: west.picture.freshness[EAST].state is Liveness.STALE)
        assert len(east.picture.imports) == 2
        west.store.apply([pod("cart-4"), Change(Section.EXPORTS, PAY, None)])
        await west_cluster.relay.open()
        await east_cluster.relay.open()
        await eventually(lambda: east.is_live(WEST) and west.is_live(EAST))
        await eventually(lambda: east.addresses(WEST) == ["10.0.0.2", "10.0.0.4"])
        await eventually(lambda: (WEST, PAY) not in east.picture.imports)


async def test_a_peer_that_comes_back_is_not_told_again_what_it_has(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, west_cluster = clusters
    async with east_cluster.control(*exported_service(), pod("cart-1")) as east:
        async with west_cluster.control(*exported_service(), pod("cart-2")) as west:
            await meet(east, west)
            await eventually(lambda: east.addresses(WEST) == ["10.0.0.2"])
            written = await east.client.get(names.export_key(WEST, CART))
            west_cluster.relay.drop()
            heard = east.peer(WEST).heard
            await eventually(lambda: east.peer(WEST).heard != heard and bool(east.peer(WEST).via))
        # Another process of west, with a picture of its own.
        heard = east.peer(WEST).heard
        async with west_cluster.control(*exported_service(), pod("cart-2")) as west:
            await eventually(lambda: EAST in [listener.peer for listener in west.offer.listeners()])
            await eventually(lambda: east.peer(WEST).heard != heard and bool(east.peer(WEST).via))
            west.store.apply(exported_service("pay"))
            await eventually(lambda: (WEST, PAY) in east.picture.imports)
            assert await east.client.get(names.export_key(WEST, CART)) == written


async def test_a_control_plane_that_starts_again_takes_nothing_from_its_peers(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, west_cluster = clusters
    async with east_cluster.control(*exported_service(), pod("cart-1")) as east:
        async with west_cluster.control(*exported_service(), pod("cart-2")) as west:
            await meet(east, west)
            await eventually(lambda: east.addresses(WEST) == ["10.0.0.2"])
        async with west_cluster.control() as west:
            # East asks, with all that it holds, a control plane that does not know yet what it offers.
            await eventually(lambda: EAST in [listener.peer for listener in west.offer.listeners()])
            revision = east.picture.revision
            await eventually(lambda: east.picture.freshness[WEST].state is Liveness.STALE)
            assert east.addresses(WEST) == ["10.0.0.2"]
            west.store.apply([*exported_service(), pod("cart-2"), pod("cart-3")])
            west.store.mark_listed("source")
            await eventually(lambda: east.addresses(WEST) == ["10.0.0.2", "10.0.0.3"])
            assert east.picture.revision > revision


async def test_an_etcd_that_lost_everything_is_filled_again(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, west_cluster = clusters
    async with (
        east_cluster.control(*exported_service(), pod("cart-1")) as east,
        west_cluster.control(*exported_service(), pod("cart-2")) as west,
    ):
        await meet(east, west)
        await eventually(lambda: east.addresses(WEST) == ["10.0.0.2"])
        await east_cluster.etcd.kill()
        east_cluster.etcd.wipe()
        west.store.apply(exported_service("pay"))
        await east_cluster.etcd.start()
        keys = {names.member_key(WEST), names.export_key(WEST, CART), names.export_key(EAST, CART)}
        # Counted when it was found, and once more when all is written again: who wrote has to look each time.
        await eventually(lambda: east.replica.losses == 2)
        assert keys <= east.replica.records.keys()
        assert not east.replica.lost
        await eventually(lambda: (WEST, PAY) in east.picture.imports and east.is_live(WEST))
        await eventually(lambda: not east.publisher.missing)
        assert east.replica.losses == 2
        assert east.addresses(WEST) == ["10.0.0.2"]


async def test_changes_wait_for_an_etcd_that_is_frozen(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, west_cluster = clusters
    async with (
        east_cluster.control(*exported_service(), pod("cart-1")) as east,
        west_cluster.control(*exported_service(), pod("cart-2")) as west,
    ):
        await meet(east, west)
        await eventually(lambda: east.addresses(WEST) == ["10.0.0.2"])
        east_cluster.etcd.pause()
        west.store.apply([pod("cart-3")])
        await eventually(lambda: len(west.offer.exports[CART].endpoints) == 2)
        await eventually(lambda: not east.peers.status())  # leads no more, as far as it can know
        assert east.addresses(WEST) == ["10.0.0.2"]
        east_cluster.etcd.resume()
        await eventually(lambda: east.addresses(WEST) == ["10.0.0.2", "10.0.0.3"])


async def test_another_gateway_is_tried_when_one_is_dead_and_an_override_goes_first(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, west_cluster = clusters
    dead = GatewayAddress("127.107.0.1", 1)
    async with (
        west_cluster.control(*exported_service(), gateways=(dead, west_cluster.gateway)) as west,
        east_cluster.control(*exported_service()) as east,
    ):
        await meet(east, west)
    async with (
        west_cluster.control(*exported_service(), gateways=(dead,)) as west,
        east_cluster.control(*exported_service(), peer_gateways={WEST: (west_cluster.gateway,)}) as east,
    ):
        await eventually(lambda: bool(east.peers.status()) and east.peer(WEST).via.endswith(":15443"))


async def test_members_that_answer_nothing_keep_nobody_else_from_being_heard(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, west_cluster = clusters
    with socket.create_server((free_address(), 0), backlog=64) as mute:  # the kernel lets connect, and nobody speaks
        gateways = (GatewayAddress(*mute.getsockname()),)
        async with (
            east_cluster.control(*exported_service(), pod("cart-1")) as east,
            west_cluster.control(*exported_service(), pod("cart-2")) as west,
        ):
            for number in range(FEW + 3):
                name = ClusterName(f"mute-{number}")
                await east.introduce(msgspec.structs.replace(west.member, name=name, gateways=gateways))
            await eventually(lambda: len(east.peers.status()) == FEW + 3)
            await meet(west, east)
            await eventually(lambda: east.addresses(WEST) == ["10.0.0.2"])


async def test_a_peer_that_moved_to_other_gateways_is_found_again_when_it_calls(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, west_cluster = clusters
    dead = GatewayAddress("127.107.0.1", 1)
    async with east_cluster.control(*exported_service()) as east:
        async with west_cluster.control(*exported_service()) as west:
            await meet(east, west)
        async with west_cluster.control(*exported_service(), gateways=(dead,)) as west:
            await eventually(lambda: east.picture.members[WEST].gateways == (dead,))
        await west_cluster.relay.cut()
        async with west_cluster.control(*exported_service(), pod("cart-2")) as west:
            await eventually(lambda: east.picture.members[WEST].gateways == (west_cluster.gateway,))
            await west_cluster.relay.open()
            await eventually(lambda: east.addresses(WEST) == ["10.0.0.2"])


async def test_a_connection_ends_and_is_made_anew_when_leadership_passes_on(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, west_cluster = clusters
    async with (
        west_cluster.control(*exported_service(), pod("cart-2")) as west,
        east_cluster.control(*exported_service()) as east,
    ):
        await meet(east, west)
        leader = await east.client.get(names.LEADER_KEY)
        assert leader is not None
        await east.client.delete(names.LEADER_KEY)
        await eventually(lambda: not east.peers.status())
        await eventually(lambda: bool(east.peers.status()) and bool(east.peer(WEST).via))
        west.store.apply([pod("cart-3")])
        await eventually(lambda: east.addresses(WEST) == ["10.0.0.2", "10.0.0.3"])
