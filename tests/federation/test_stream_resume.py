"""A federation stream that was interrupted goes on where it was: what a peer has is not sent to it again.

Counted in resources (each that comes is written, so its revision in etcd would change) and in bytes on the wire.
"""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from federation import names
from federation.model import FEDERATION_PORT, GATEWAY_PORT, GatewayAddress, ServiceKey
from tests.support.addresses import free_address
from tests.support.federation import (
    SHOP,
    ClusterUnderTest,
    ControlUnderTest,
    catalogue,
    exported_service,
    start_cluster,
)
from tests.support.relay import start_relay
from tests.support.trust import EAST, WEST, make_issuers
from tests.support.waiting import eventually

SERVICES = 200
OFFER = catalogue(SERVICES)
"""Some 300 KB."""


@pytest.fixture
async def clusters(tmp_path: Path) -> AsyncIterator[tuple[ClusterUnderTest, ClusterUnderTest]]:
    """East and west, without their control planes."""
    issuers = make_issuers(EAST, WEST, now=datetime.now(UTC))
    async with start_cluster(tmp_path, issuers[EAST]) as east, start_cluster(tmp_path, issuers[WEST]) as west:
        yield east, west


async def meet(one: ControlUnderTest, other: ControlUnderTest) -> None:
    """Introduces `one` to `other` and waits until it has all that the other offers."""
    await one.introduce(other.member)
    await eventually(lambda: one.is_live(other.name) and other.is_live(one.name))
    await eventually(lambda: len(one.picture.imports) == SERVICES)


async def written(control: ControlUnderTest) -> Mapping[str, int]:
    """Returns when each import was last written, by key: revisions of etcd."""
    found = (await control.client.list(names.export_prefix(WEST))).items
    return {item.key: item.mod_revision for item in found}


async def hears_news(east: ControlUnderTest, west: ControlUnderTest, name: str) -> None:
    """Waits until something new of west arrives: then all that was due before has arrived too."""
    west.store.apply(exported_service(name))
    await eventually(lambda: (WEST, ServiceKey(SHOP, name)) in east.picture.imports)


async def test_nothing_is_sent_again_after_a_cut_a_restart_or_at_another_replica(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, west_cluster = clusters
    relay = west_cluster.relay
    costs: dict[str, int] = {}
    async with AsyncExitStack() as stack:
        listener = AsyncExitStack()
        speaker = AsyncExitStack()
        stack.push_async_exit(listener)
        stack.push_async_exit(speaker)
        east = await listener.enter_async_context(east_cluster.control(*exported_service("own")))
        west = await speaker.enter_async_context(west_cluster.control(*OFFER))
        await meet(east, west)
        costs["all of it"] = relay.brought
        await hears_news(east, west, "first")
        before = await written(east)

        async def ends_with_nothing_sent_again(what: str, since: int) -> None:
            await hears_news(east, west, what)
            costs[what] = relay.brought - since
            after = await written(east)
            assert {key for key, at in after.items() if before.get(key) != at} == {
                names.export_key(WEST, ServiceKey(SHOP, name)) for name in costs if name != "all of it"
            }

        since = relay.brought
        relay.drop()
        await eventually(lambda: EAST not in [one.peer for one in west.offer.listeners()])
        await eventually(lambda: EAST in [one.peer for one in west.offer.listeners()])
        await ends_with_nothing_sent_again("cut", since)

        since = relay.brought
        await listener.aclose()
        east = await listener.enter_async_context(east_cluster.control(*exported_service("own")))
        await ends_with_nothing_sent_again("listener", since)

        since = relay.brought
        await speaker.aclose()
        more = [change for name in ("first", "cut", "listener") for change in exported_service(name)]
        west = await speaker.enter_async_context(west_cluster.control(*OFFER, *more))
        await ends_with_nothing_sent_again("speaker", since)

        # Another replica of west, with a picture of its own, and no word of the one before.
        since = relay.brought
        other = ClusterUnderTest(west_cluster.issuer, west_cluster.etcd, relay=relay, address=free_address())
        more += exported_service("speaker")
        west = await stack.enter_async_context(other.control(*OFFER, *more))
        relay.lead_to(other.address)
        await speaker.aclose()
        await eventually(lambda: EAST in [one.peer for one in west.offer.listeners()])
        await ends_with_nothing_sent_again("replica", since)
    print(costs)
    assert all(cost < costs["all of it"] / 5 for what, cost in costs.items() if what != "all of it"), costs


async def test_a_stream_moves_to_the_other_gateway_and_nothing_is_sent_again(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, west_cluster = clusters
    async with start_relay((west_cluster.address, FEDERATION_PORT), port=GATEWAY_PORT) as second:
        gateways = (west_cluster.gateway, GatewayAddress(second.address, second.port))
        relays = {f"{one.address}:{one.port}": one for one in (west_cluster.relay, second)}
        async with (
            east_cluster.control(*exported_service("own")) as east,
            west_cluster.control(*OFFER, gateways=gateways) as west,
        ):
            await meet(east, west)
            await hears_news(east, west, "first")
            before = await written(east)
            for way, end in (("lost", "cut"), ("silent", "freeze")):
                via = east.peer(WEST).via
                (other,) = relays.keys() - {via}
                began, since = time.monotonic(), relays[other].brought
                await relays[via].cut() if end == "cut" else relays[via].freeze()
                await eventually(lambda other=other: east.peer(WEST).via == other)
                print(f"gateway {way}: heard through the other after {time.monotonic() - began:.1f} s")
                await hears_news(east, west, way)
                assert relays[other].brought - since < 60_000
                await relays[via].open()
            after = await written(east)
            assert {key for key in before if before[key] != after[key]} == set()
