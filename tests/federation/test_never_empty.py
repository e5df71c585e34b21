"""Nothing that still exists leaves the picture by accident, whatever a peer, etcd, a clock or a leader does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from federation import names
from federation.model import ExportedService, Freshness, Liveness, ServicePolicy, Thresholds, WhenStale
from federation.peering import exports
from federation.snapshot import Change, Section
from federation.xds.resources import TypeUrl
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
from trust.issuance import Issuer
from trust.spiffe import ClusterName, control_identity

SECOND = timedelta(seconds=1)
QUICK = Thresholds(stale_after=2 * SECOND, gone_after=3 * SECOND)
DROP = Change(Section.POLICIES, CART, ServicePolicy(WhenStale.DROP, 2.5 * SECOND))


@pytest.fixture
def issuers() -> dict[ClusterName, Issuer]:
    return dict(make_issuers(EAST, WEST, now=datetime.now(UTC)))


@pytest.fixture
async def clusters(
    issuers: dict[ClusterName, Issuer], tmp_path: Path
) -> AsyncIterator[tuple[ClusterUnderTest, ClusterUnderTest]]:
    """East and west, without their control planes."""
    async with (
        start_cluster(tmp_path, issuers[EAST]) as east,
        start_cluster(tmp_path, issuers[WEST]) as west,
    ):
        yield east, west


async def meet(east: ControlUnderTest, west: ControlUnderTest) -> None:
    await east.introduce(west.member)
    await eventually(lambda: east.is_live(WEST) and west.is_live(EAST))
    await eventually(lambda: bool(east.addresses(WEST)))


def state(control: ControlUnderTest, peer: ClusterName) -> Liveness:
    freshness = control.picture.freshness.get(peer)
    return freshness.state if freshness else Liveness.UNKNOWN


async def test_a_silent_peer_turns_stale_then_gone_and_all_of_it_stays_until_its_first_beat_is_back(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, west_cluster = clusters
    async with (
        east_cluster.control(*exported_service(), pod("cart-1"), DROP, thresholds=QUICK) as east,
        west_cluster.control(*exported_service(), pod("cart-2")) as west,
    ):
        await meet(east, west)
        held = east.picture.imports
        west_cluster.relay.freeze()
        seen: list[tuple[Liveness, bool]] = []

        def look() -> bool:
            now = (state(east, WEST), WEST in east.picture.silences)
            if not seen or seen[-1] != now:
                seen.append(now)
            return now[0] is Liveness.GONE

        await eventually(look)
        # What is judged changes, in this order; what is known does not, in the picture or in etcd.
        order = [(Liveness.LIVE, False), (Liveness.STALE, False), (Liveness.STALE, True), (Liveness.GONE, True)]
        assert [step for step in order if step in seen] == seen
        assert seen[-1] == (Liveness.GONE, True)
        assert east.picture.imports == held
        assert await east.client.get(names.export_key(WEST, CART)) is not None
        await west_cluster.relay.open()
        await eventually(lambda: east.is_live(WEST) and WEST not in east.picture.silences)
        assert east.addresses(WEST) == ["10.0.0.2"]


async def test_the_next_leader_lets_a_verdict_stand_and_goes_on_counting_and_never_counts_its_own_absence(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, west_cluster = clusters
    patient = Thresholds(stale_after=2 * SECOND, gone_after=timedelta(days=1))
    async with AsyncExitStack() as stack:
        async with west_cluster.control(*exported_service(), pod("cart-2")) as west:
            async with east_cluster.control(*exported_service(), pod("cart-1"), thresholds=patient) as east:
                await meet(east, west)
            # East is away, and its etcd says that west was heard long ago: its own absence is not west's silence.
            long_ago = datetime.now(UTC) - timedelta(days=30)
            old = exports.encode(Freshness(Liveness.LIVE, since=long_ago, heard=long_ago))
            async with east_cluster.control(*exported_service(), pod("cart-1"), thresholds=QUICK) as east:
                await east.client.put(names.freshness_key(WEST), old)
                await eventually(lambda: east.is_live(WEST))
        # West is away. East comes, finds it stale since long ago with little measured, and must not call it gone.
        east = await stack.enter_async_context(
            east_cluster.control(*exported_service(), pod("cart-1"), thresholds=patient)
        )
        told = Freshness(Liveness.STALE, since=long_ago, heard=long_ago, silent=5 * SECOND)
        await eventually(lambda: state(east, WEST) is Liveness.STALE)
        await east.client.put(names.freshness_key(WEST), exports.encode(told))
        await eventually(lambda: east.picture.freshness[WEST].since == long_ago)
    async with east_cluster.control(*exported_service(), pod("cart-1"), thresholds=patient) as east:
        await eventually(lambda: bool(east.peers.status()))
        await eventually(lambda: east.picture.freshness[WEST].silent >= 7 * SECOND)
        verdict = east.picture.freshness[WEST]
        assert (verdict.state, verdict.since) == (Liveness.STALE, long_ago)
        assert east.addresses(WEST) == ["10.0.0.2"]


async def test_an_etcd_that_cannot_be_written_drops_nobody(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    """West falls silent and comes back while east's etcd is away: east could not know, so it says nothing."""
    east_cluster, west_cluster = clusters
    async with (
        east_cluster.control(*exported_service(), pod("cart-1"), DROP, thresholds=QUICK) as east,
        west_cluster.control(*exported_service(), pod("cart-2")) as west,
    ):
        await meet(east, west)
        await east_cluster.etcd.kill()
        west_cluster.relay.freeze()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await eventually(lambda: loop.time() - began > 3.5)  # longer than all thresholds
        assert state(east, WEST) is Liveness.LIVE
        assert east.picture.silences == {}
        assert east.addresses(WEST) == ["10.0.0.2"]
        await west_cluster.relay.open()
        await east_cluster.etcd.start()
        west.store.apply([pod("cart-4")])
        await eventually(lambda: east.addresses(WEST) == ["10.0.0.2", "10.0.0.4"])
        await eventually(lambda: east.is_live(WEST))


async def test_a_peer_that_tells_of_no_members_any_more_takes_nobody_away(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest], issuers: dict[ClusterName, Issuer]
) -> None:
    east_cluster, _ = clusters
    async with AsyncExitStack() as stack:
        east = await stack.enter_async_context(east_cluster.control(*exported_service(), pod("cart-1")))
        svid = issuers[WEST].issue(control_identity(WEST), now=datetime.now(UTC))
        liar, member = await start_liar(stack, issuers[WEST], svid)
        offer = ExportedService(WEST, CART, (), (), changed_at=datetime.now(UTC))
        said = {str(CART): exports.encode(offer)}
        liar.say(exported=said, members={WEST: exports.encode(member)})
        await east.introduce(member)
        await eventually(lambda: (WEST, CART) in east.picture.imports)
        members = dict(east.picture.members)
        liar.say(exported=said, members={}, beat=2)  # it takes back itself, and all others that it told of
        await eventually(lambda: liar.streams[-1].acknowledged.get(TypeUrl.MEMBER) == {})
        await eventually(lambda: east.is_live(WEST))
        assert (WEST, CART) in east.picture.imports
        assert dict(east.picture.members) == members


async def test_an_older_edition_of_a_record_or_one_that_cannot_be_read_takes_nothing_away(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, west_cluster = clusters
    async with (
        east_cluster.control(*exported_service(), pod("cart-1")) as east,
        west_cluster.control(*exported_service(), pod("cart-2")) as west,
    ):
        await meet(east, west)
        for key in (names.export_key(WEST, CART), names.member_key(WEST), names.freshness_key(WEST)):
            await east.client.put(key, b"{")
            await eventually(
                lambda key=key: f"etcd {key}" in east.picture.findings or east.replica.records[key] != b"{"
            )
        old = exports.encode(Freshness(Liveness.LIVE, since=datetime.now(UTC), heard=datetime.now(UTC)))
        without = msgspec.json.encode({k: v for k, v in msgspec.json.decode(old).items() if k != "silent"})
        assert exports.decode_freshness(without).silent == timedelta()
        assert east.addresses(WEST) == ["10.0.0.2"]
        assert WEST in east.picture.members
        await east.client.put(names.departure_key(WEST), b"{")
        await eventually(lambda: f"etcd {names.departure_key(WEST)}" in east.picture.findings)
        assert WEST not in east.picture.departures
        assert east.addresses(WEST) == ["10.0.0.2"]
