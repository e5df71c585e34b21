"""Clusters that leave, are forgotten and come back: at once where they say so themselves, and nowhere else."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from deploy.control.departures import Departures
from federation import names
from federation.admin import AdminRefused
from federation.etcd import Fenced, Guard
from federation.model import Departure, MemberCluster
from federation.names import departure_key, export_prefix, member_key
from federation.peering import exports
from federation.peering.farewells import clear_away, depart, left_behind, take_word
from federation.snapshot import EMPTY, Change, Section, apply
from tests.support.federation import (
    CART,
    ClusterUnderTest,
    ControlUnderTest,
    exported_service,
    pod,
    start_cluster,
)
from tests.support.lying_peer import start_liar
from tests.support.trust import EAST, WEST, make_issuers
from tests.support.waiting import eventually
from trust.audit import AuditEvent, AuditKind
from trust.spiffe import ClusterName

SOUTH = ClusterName("south")


@pytest.fixture
async def clusters(tmp_path: Path) -> AsyncIterator[list[ClusterUnderTest]]:
    """East, west and south, without their control planes."""
    issuers = make_issuers(EAST, WEST, SOUTH, now=datetime.now(UTC))
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(start_cluster(tmp_path, each)) for each in issuers.values()]


def departures(control: ControlUnderTest, told: list[AuditEvent] | None = None) -> Departures:
    note = (told if told is not None else []).append
    return Departures(control.settings, store=control.store, etcd=control.client, on_event=note)


async def meet(*controls: ControlUnderTest) -> None:
    """Has all hear each other, by one introduction each."""
    first, *others = controls
    for other in others:
        await other.introduce(first.member)
    await eventually(lambda: all(one.is_live(two.name) for one in controls for two in controls if one is not two))


async def records_of(control: ControlUnderTest, member: ClusterName) -> list[str]:
    """The keys of all that a cluster's etcd holds of a member."""
    listing = await control.client.list(names.ETCD_PREFIX)
    return [item.key for item in listing.items if member in item.key.split("/") and "departures" not in item.key]


async def test_who_leaves_is_gone_everywhere_at_once_and_back_when_it_comes_back(
    clusters: list[ClusterUnderTest],
) -> None:
    async with AsyncExitStack() as stack:
        east, west, south = [
            await stack.enter_async_context(each.control(*exported_service(), pod(f"cart-{number}")))
            for number, each in enumerate(clusters, 1)
        ]
        await meet(east, west, south)
        await eventually(lambda: east.addresses(WEST) == south.addresses(WEST) == ["10.0.0.2"])
        told: list[AuditEvent] = []
        await departures(west, told).leave(asked_by="me")
        await departures(west, told).leave(asked_by="me")  # to leave twice is to leave once
        assert [event.kind for event in told] == [AuditKind.LEFT]
        for other in (east, south):
            await eventually(lambda other=other: WEST in other.picture.departures)
            await eventually(lambda other=other: left_behind(other.picture, other.name) == ())
            assert await records_of(other, WEST) == []
            assert WEST not in [status.peer for status in other.peers.status()]
            assert len(other.picture.imports) == 1
        await eventually(lambda: west.peers.status() == ())
        await eventually(lambda: not west.picture.imports and not west.picture.freshness)
        assert set(west.picture.members) == {EAST, WEST, SOUTH}  # so that it can come back
        assert west.offer.exports == {}
        await eventually(lambda: not any(one.startswith(export_prefix(WEST)) for one in west.replica.records))
        assert east.is_live(SOUTH)
        assert south.is_live(EAST)

        with pytest.raises(AdminRefused, match="has not left"):
            await departures(east).come_back(asked_by="me")
        await departures(west, told).come_back(asked_by="me")
        await eventually(lambda: all(other.addresses(WEST) == ["10.0.0.2"] for other in (east, south)))
        await eventually(lambda: all(other.is_live(WEST) for other in (east, south)))
        await eventually(lambda: west.is_live(EAST) and west.is_live(SOUTH))
        assert not east.picture.departures
        assert not west.picture.departures


async def test_a_peer_that_was_away_hears_the_farewell_when_it_comes_back(clusters: list[ClusterUnderTest]) -> None:
    east_cluster, west_cluster, _ = clusters
    async with west_cluster.control(*exported_service(), pod("cart-2")) as west:
        async with east_cluster.control(*exported_service(), pod("cart-1")) as east:
            await meet(east, west)
            await eventually(lambda: east.addresses(WEST) == ["10.0.0.2"])
        await departures(west).leave(asked_by="me")
        async with east_cluster.control(*exported_service(), pod("cart-1")) as east:
            await eventually(lambda: WEST in east.picture.departures)
            await eventually(lambda: left_behind(east.picture, EAST) == ())
            assert await records_of(east, WEST) == []


@pytest.mark.parametrize("says_incarnation", [True, False])
async def test_an_old_farewell_of_one_who_came_back_is_not_heeded(
    clusters: list[ClusterUnderTest], *, says_incarnation: bool
) -> None:
    """A replica of west that is cut from west's etcd has not heard that west is back. An older one has no numbers."""
    east_cluster, west_cluster, _ = clusters
    async with AsyncExitStack() as stack:
        east = await stack.enter_async_context(east_cluster.control(*exported_service(), pod("cart-1")))
        west = await stack.enter_async_context(west_cluster.control(*exported_service(), pod("cart-2")))
        await meet(east, west)
        await departures(west).leave(asked_by="me")
        farewell = west.member
        assert farewell.has_left
        await eventually(lambda: WEST in east.picture.departures and left_behind(east.picture, EAST) == ())
        await departures(west).come_back(asked_by="me")
        await eventually(lambda: east.addresses(WEST) == ["10.0.0.2"] and east.is_live(WEST))
        assert east.picture.members[WEST].incarnation == west.member.incarnation > farewell.incarnation > 0

        if not says_incarnation:
            farewell = msgspec.structs.replace(farewell, incarnation=0)
        replica, where = await start_liar(stack, west_cluster.issuer, west.keeper.svid())
        replica.say(exported={}, members={WEST: exports.encode(farewell)})
        west_cluster.relay.lead_to(where.gateways[0].address)
        west_cluster.relay.drop()
        if not says_incarnation:
            await eventually(lambda: WEST in east.picture.departures)
            return
        await eventually(lambda: len(replica.streams) > 2, "it was called again and again")
        await eventually(lambda: "came back since" in east.peer(WEST).problem)
        # Neither is it believed that west offers nothing any more.
        assert east.addresses(WEST) == ["10.0.0.2"]
        assert not east.picture.departures
        west_cluster.relay.lead_to(west_cluster.address)
        west.store.apply([pod("cart-3")])
        await eventually(lambda: east.addresses(WEST) == ["10.0.0.2", "10.0.0.3"])

        await departures(west).leave(asked_by="me")  # and a new farewell is one
        await eventually(lambda: WEST in east.picture.departures)


async def test_hearsay_brings_nobody_back_and_sends_nobody_away(clusters: list[ClusterUnderTest]) -> None:
    """West is lost. East forgets it, while south still tells of it."""
    east_cluster, west_cluster, south_cluster = clusters
    async with (
        east_cluster.control(*exported_service(), pod("cart-1")) as east,
        south_cluster.control(*exported_service(), pod("cart-3")) as south,
    ):
        async with west_cluster.control(*exported_service(), pod("cart-2")) as west:
            await meet(east, west, south)
            await eventually(lambda: east.addresses(WEST) == south.addresses(WEST) == ["10.0.0.2"])
        await departures(east).forget(WEST, asked_by="me")
        assert await records_of(east, WEST) == []
        # South tells all it knows once more, and all that changed.
        south_cluster.relay.drop()
        south.store.apply([pod("cart-4")])
        await eventually(lambda: east.addresses(SOUTH) == ["10.0.0.3", "10.0.0.4"])
        await eventually(lambda: left_behind(east.picture, EAST) == ())
        assert await records_of(east, WEST) == []
        assert WEST not in east.picture.members
        assert south.addresses(WEST) == ["10.0.0.2"]  # nobody else forgot it

        async with west_cluster.control(*exported_service(), pod("cart-5")):  # it was not lost after all
            await eventually(lambda: east.addresses(WEST) == ["10.0.0.5"])
            assert not east.picture.departures


async def test_a_farewell_at_second_hand_is_not_heeded(clusters: list[ClusterUnderTest]) -> None:
    east_cluster, west_cluster, _ = clusters
    async with (
        east_cluster.control(*exported_service(), pod("cart-1")) as east,
        west_cluster.control(*exported_service(), pod("cart-2")) as west,
    ):
        await meet(east, west)
        await eventually(lambda: west.addresses(EAST) == ["10.0.0.1"])
        lie = msgspec.structs.replace(east.member, has_left=True)
        # What west passes on of south and east is hearsay, whatever it says.
        said = exports.read_member(EAST, exports.encode(lie), SOUTH)
        assert said.introduced_by == SOUTH
        assert exports.learn(west.picture.members[EAST], said) is None


async def test_what_is_cleared_away_is_only_what_belongs_to_a_departure_that_stands(
    clusters: list[ClusterUnderTest],
) -> None:
    east_cluster, *_ = clusters
    async with east_cluster.control(*exported_service(), pod("cart-1")) as east:
        offer = exports.encode(east.offer.exports[CART]) if east.offer.exports else b"{}"
        west = MemberCluster(WEST, network=east.settings.network, region="eu", gateways=())
        await eventually(lambda: east.replica.records.get(member_key(EAST)) is not None)
        leader = await east.client.get(names.LEADER_KEY)
        assert leader is not None
        guard = Guard(leader.key, leader.create_revision)

        assert await take_word(east.client, west, guard=guard)
        assert not await take_word(east.client, west, guard=guard)
        await east.client.put(export_prefix(WEST) + "shop/cart", offer)
        assert await clear_away(east.client, WEST, guard=guard) == 0  # it has not left
        assert await east.client.get(export_prefix(WEST) + "shop/cart") is not None

        with pytest.raises(Fenced):
            await depart(east.client, Departure(WEST, datetime.now(UTC)), guard=Guard(leader.key, 1))
        assert await east.client.get(departure_key(WEST)) is None
        farewell = msgspec.structs.replace(west, has_left=True)
        assert await take_word(east.client, farewell, guard=guard)
        assert not await take_word(east.client, farewell, guard=guard)
        assert await records_of(east, WEST) == []

        # Whatever comes back without the member, such as an etcd that lost writes, goes again.
        await east.client.put(export_prefix(WEST) + "shop/cart", exports.encode(export_of(WEST, east)))
        await eventually(lambda: export_prefix(WEST) + "shop/cart" not in east.replica.records)

        assert await take_word(east.client, west, guard=guard)
        assert await east.client.get(departure_key(WEST)) is None
        assert await east.client.get(member_key(WEST)) is not None


def export_of(cluster: ClusterName, control: ControlUnderTest) -> exports.ExportedService:
    return msgspec.structs.replace(control.offer.exports[CART], cluster=cluster)


async def test_whom_a_cluster_can_forget(clusters: list[ClusterUnderTest]) -> None:
    east_cluster, *_ = clusters
    async with east_cluster.control(*exported_service(), pod("cart-1")) as east:
        await eventually(lambda: EAST in east.picture.members)
        with pytest.raises(AdminRefused, match="cannot forget itself"):
            await departures(east).forget(EAST, asked_by="me")
        with pytest.raises(AdminRefused, match="knows no member") as refused:
            await departures(east).forget("wset", asked_by="me")
        assert refused.value.status == 404


def test_what_is_left_behind_is_of_those_who_left_and_never_our_own() -> None:
    east = MemberCluster(EAST, network="n", region="r", gateways=())  # type: ignore[arg-type]
    west = msgspec.structs.replace(east, name=WEST)
    picture = apply(
        EMPTY,
        [
            Change(Section.MEMBERS, EAST, east),
            Change(Section.MEMBERS, WEST, west),
            Change(Section.DEPARTURES, EAST, Departure(EAST, datetime.now(UTC))),
        ],
    )
    assert left_behind(picture, EAST) == ()
    assert left_behind(picture, WEST) == (EAST,)
