"""What one member of a mesh may cost the others: sizes, pace, memory; and members of another age."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc
import msgspec
import pytest
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from federation import names
from federation.model import (
    EPOCH,
    FEDERATION_PORT,
    GATEWAY_PORT,
    Drain,
    GatewayAddress,
    Liveness,
    MemberCluster,
    NetworkName,
    Protocol,
    Service,
    ServiceExport,
    ServiceKey,
    ServicePort,
)
from federation.peering import checks, exports
from federation.peering.allowance import MOST_AT_ONCE, MOST_PER_SECOND, MOST_PORTS, Pace
from federation.peering.dialing import open_channel
from federation.peering.offer import FEDERATION_METHOD, FEDERATION_SERVICE, INTRODUCTION, REFUSAL
from federation.peering.rejections import PeerRejection
from federation.snapshot import Change, Section
from federation.xds.channel import LARGEST_PORTION
from federation.xds.protocol import DeltaStream, Order, Push
from federation.xds.resources import TypeUrl, make_resource
from tests.support.federation import (
    CART,
    SHOP,
    ClusterUnderTest,
    ControlUnderTest,
    catalogue,
    exported_service,
    pod,
    start_cluster,
)
from tests.support.history import history
from tests.support.lying_peer import LyingPeer, start_liar
from tests.support.relay import start_relay
from tests.support.trust import DOMAIN, EAST, WEST, make_issuers
from tests.support.waiting import eventually
from trust.issuance import Issuer
from trust.spiffe import ClusterName, control_identity

SOUTH = ClusterName("south")
Issuers = Mapping[ClusterName, Issuer]
Call = grpc.aio.StreamStreamCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]


@pytest.fixture
def issuers() -> Issuers:
    return make_issuers(EAST, WEST, SOUTH, now=datetime.now(UTC))


@pytest.fixture
async def east(tmp_path: Path, issuers: Issuers) -> AsyncIterator[ClusterUnderTest]:
    async with start_cluster(tmp_path, issuers[EAST]) as cluster:
        yield cluster


@pytest.fixture
async def west(tmp_path: Path, issuers: Issuers) -> AsyncIterator[ClusterUnderTest]:
    async with start_cluster(tmp_path, issuers[WEST]) as cluster:
        yield cluster


async def start_lying(stack: AsyncExitStack, issuers: Issuers, listener: ControlUnderTest) -> LyingPeer:
    """Runs a control plane of west that says what it is told to, and introduces it."""
    svid = issuers[WEST].issue(control_identity(WEST), now=datetime.now(UTC))
    liar, member = await start_liar(stack, issuers[WEST], svid)
    await listener.introduce(member)
    return liar


def rejections(control: ControlUnderTest) -> tuple[PeerRejection, ...]:
    """What was refused of a peer; nothing while this replica does not lead."""
    return tuple(one for status in control.peers.status() for one in status.rejections)


def record(name: str = "cart", **more: object) -> bytes:
    """An export as an edition before this one writes it, and what a later one adds."""
    endpoint = {"address": "10.0.0.2", "pod": "cart-2", "account": "cart", "locality": {}}
    said = {
        "cluster": "west",
        "key": {"namespace": "shop", "name": name},
        "ports": [{"number": 80, "protocol": "http"}],
        "endpoints": [endpoint],
        "changed_at": "2026-01-01T00:00:00Z",
    }
    return msgspec.json.encode(said | more)


# Sizes


def test_a_response_has_a_portion_or_one_resource() -> None:
    stream = DeltaStream(Order.NONE)
    bodies = {f"shop/{name}": bytes(LARGEST_PORTION // 3) for name in "abcdefgh"} | {
        "shop/z": bytes(LARGEST_PORTION * 2)
    }
    stream.offer({TypeUrl.EXPORT: {name: make_resource(name, body) for name, body in bodies.items()}})
    stream.receive(DeltaDiscoveryRequest(type_url=TypeUrl.EXPORT, initial_resource_versions={"shop/gone": "1"}))
    pushes: list[Push] = []
    while due := stream.due():
        pushes += due
        stream.receive(DeltaDiscoveryRequest(type_url=TypeUrl.EXPORT, response_nonce=due[0].nonce))
    assert [name for push in pushes for name in push.upserts] == sorted(bodies)
    assert [len(push.upserts) for push in pushes] == [2, 2, 2, 2, 1]
    assert [push.removed for push in pushes if push.removed] == [("shop/gone",)]


def test_a_refusal_that_names_the_culprit_costs_the_others_nothing() -> None:
    stream = DeltaStream(Order.NONE)
    stream.offer({TypeUrl.EXPORT: {name: make_resource(name, b"x") for name in ("shop/a", "shop/b", "shop/c")}})
    stream.receive(DeltaDiscoveryRequest(type_url=TypeUrl.EXPORT))
    [push] = stream.due()
    refusal = DeltaDiscoveryRequest(type_url=TypeUrl.EXPORT, response_nonce=push.nonce)
    refusal.error_detail.message = "Export shop/b: it is: no good"
    stream.receive(refusal)
    assert {name for _, name in stream.rejections} == {"shop/b"}
    [push] = stream.due()
    assert push.upserts == ("shop/a", "shop/c")


async def test_a_response_that_is_too_large_is_refused_unread_and_both_sides_see_why(
    east: ClusterUnderTest, issuers: Issuers
) -> None:
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(east.control(*exported_service()))
        liar = await start_lying(stack, issuers, control)
        liar.say(exported={"shop/cart": record()}, members={})
        await eventually(lambda: control.addresses(WEST) == ["10.0.0.2"])
        liar.say(exported={"shop/cart": record(), "shop/huge": bytes(40_000_000)}, members={}, beat=2)
        await eventually(lambda: [one.resource for one in rejections(control)] == ["Stream"])
        [rejection] = rejections(control)
        assert "more than 16777216 bytes" in rejection.message
        await eventually(lambda: liar.told == {rejection.message})
        assert control.addresses(WEST) == ["10.0.0.2"]
        liar.say(exported={"shop/cart": record(), "shop/pay": record("pay")}, members={}, beat=3)
        await eventually(lambda: control.addresses(WEST, ServiceKey(SHOP, "pay")) == ["10.0.0.2"])
        await eventually(lambda: bool(control.peers.status()) and not rejections(control))


async def test_what_is_refused_of_a_member_is_seen_on_both_sides(
    east: ClusterUnderTest, west: ClusterUnderTest, issuers: Issuers
) -> None:
    ports = tuple(ServicePort(number, Protocol.TCP) for number in range(1, checks.MOST_PORTS + 1))
    offer: list[Change] = []
    for number in range(MOST_PORTS // checks.MOST_PORTS + 1):
        key = ServiceKey(SHOP, f"s-{number:03}")
        offer.append(Change(Section.SERVICES, key, Service(key, ports)))
        offer.append(Change(Section.EXPORTS, key, ServiceExport(key)))
    async with east.control(*exported_service()) as listener, west.control(*offer) as speaker:
        await listener.introduce(speaker.member)
        await eventually(lambda: bool(speaker.offer.listeners()) and bool(speaker.offer.listeners()[0].rejections))
        [(resource, message)] = speaker.offer.listeners()[0].rejections
        [rejection] = listener.peer(WEST).rejections
        assert (rejection.resource, rejection.message) == (resource, message)
        assert resource == "Export shop/s-100"
        assert len(listener.picture.imports) == len(offer) // 2 - 1
        assert "10000 are the most" in message
        # And why a stream was ended is told on the next one.
        async with calling(issuers[SOUTH], west.gateway, **{REFUSAL: "not understood\nat all"}):
            told = ("Stream", "not understood\\nat all")
            await eventually(lambda: told in [bad for one in speaker.offer.listeners() for bad in one.rejections])


# Pace and memory


def test_what_a_quiet_peer_says_is_not_held_back() -> None:
    pace = Pace()
    assert [pace.wait(1000.0) for _ in range(MOST_AT_ONCE)] == [0.0] * MOST_AT_ONCE
    waits = [pace.wait(1000.0) for _ in range(3)]
    assert waits == pytest.approx([n / MOST_PER_SECOND for n in (1, 2, 3)])
    assert pace.wait(1010.0) == 0.0


async def test_a_flood_of_changes_is_joined_and_holds_back_no_beat(
    east: ClusterUnderTest, west: ClusterUnderTest
) -> None:
    async with east.control(*exported_service()) as listener, west.control(*exported_service()) as speaker:
        await listener.introduce(speaker.member)
        await eventually(lambda: (WEST, CART) in listener.picture.imports and listener.is_live(WEST))
        loop = asyncio.get_running_loop()
        began = loop.time()
        changes = 0
        while loop.time() < began + 3:
            changes += 1
            speaker.store.apply([pod("cart-1", ready=bool(changes % 2)), pod(f"cart-{2 + changes % 99}")])
            await asyncio.sleep(0.002)
        speaker.store.apply([pod("cart-250")])
        await eventually(lambda: "10.0.0.250" in listener.addresses(WEST))
        lasted = loop.time() - began
        told = await history(east.etcd.url)
        writes = [one for one in told if one.key == names.export_key(WEST, CART)]
        print(f"{changes} changes in {lasted:.1f} s became {len(writes)} writes")
        assert len(writes) <= MOST_AT_ONCE + MOST_PER_SECOND * lasted + 2
        assert changes > len(writes)
        verdicts = [exports.decode_freshness(one.item.value) for one in told if _is_freshness(one.key) and one.item]
        assert Liveness.STALE not in {verdict.state for verdict in verdicts}


async def test_a_member_that_drains_and_undrains_itself_without_pause_is_held_to_its_pace(
    east: ClusterUnderTest, issuers: Issuers
) -> None:
    async with AsyncExitStack() as stack:
        listener = await stack.enter_async_context(east.control(*exported_service()))
        liar = await start_lying(stack, issuers, listener)
        await eventually(lambda: listener.is_live(WEST))
        known = listener.picture.members[WEST]
        loop = asyncio.get_running_loop()
        began = loop.time()
        weight = 0
        while loop.time() < began + 2:
            weight = (weight + 1) % 100
            drained = msgspec.structs.replace(known, introduced_by="", drains=(Drain(WEST, weight, EPOCH),))
            liar.say(exported={}, members={WEST: exports.encode(drained)})
            await asyncio.sleep(0.002)
        await eventually(lambda: [one.weight for one in listener.picture.members[WEST].drains] == [weight])
        lasted = loop.time() - began
        writes = [one for one in await history(east.etcd.url) if one.key == names.member_key(WEST)]
        assert 5 < len(writes) <= MOST_AT_ONCE + MOST_PER_SECOND * lasted + 5


def _is_freshness(key: str) -> bool:
    return key == names.freshness_key(WEST)


async def test_a_peer_that_does_not_read_holds_back_nobody_and_costs_bounded_memory(
    east: ClusterUnderTest, west: ClusterUnderTest, issuers: Issuers
) -> None:
    async with (
        west.control(*catalogue(30, endpoints=150)) as speaker,
        east.control(*exported_service()) as listener,
        start_relay((west.address, FEDERATION_PORT), port=GATEWAY_PORT) as narrow,
    ):
        await listener.introduce(speaker.member)
        await eventually(lambda: len(listener.picture.imports) == 30)
        everything = sum(len(exports.encode(one)) for one in speaker.offer.exports.values())
        async with calling(issuers[SOUTH], GatewayAddress(narrow.address, narrow.port)) as deaf:
            await eventually(lambda: SOUTH in [one.peer for one in speaker.offer.listeners()])
            narrow.freeze()
            for number in range(201, 209):
                speaker.store.apply([pod(f"cart-{number}")])
                key, address = ServiceKey(SHOP, "s-1"), f"10.0.0.{number}"
                await eventually(lambda key=key, address=address: address in listener.addresses(WEST, key))
            await narrow.open()
            await deaf.read()
            print(f"{8 * everything} bytes of changes; {narrow.brought} for who does not read")
            assert narrow.brought < 2 * LARGEST_PORTION < 8 * everything


async def test_one_peer_has_so_many_streams_and_no_more(west: ClusterUnderTest, issuers: Issuers) -> None:
    async with west.control(*exported_service()) as speaker, AsyncExitStack() as stack:
        for _ in range(16):
            call = await stack.enter_async_context(calling(issuers[SOUTH], west.gateway))
            await call.read()
        async with calling(issuers[SOUTH], west.gateway) as refused:
            with pytest.raises(grpc.aio.AioRpcError, match="16 streams here already"):
                await refused.read()
        async with calling(issuers[EAST], west.gateway) as other:
            await other.read()
            assert [one.peer for one in speaker.offer.listeners()] == [EAST] + [SOUTH] * 16


# Members of another age


async def test_records_of_another_age_are_kept_and_not_sent_again(east: ClusterUnderTest, issuers: Issuers) -> None:
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(east.control(*exported_service()))
        liar = await start_lying(stack, issuers, control)
        younger = record("pay", weight=7, exported_at="2026-01-01T00:00:00Z", more={"deep": [1]})
        said = {"shop/cart": record(), "shop/pay": younger}
        liar.say(exported=said, members={})
        await eventually(lambda: len(control.picture.imports) == 2)
        assert control.picture.imports[WEST, CART].exported_at == EPOCH
        assert control.picture.imports[WEST, ServiceKey(SHOP, "pay")].exported_at > EPOCH
        before = await control.client.list(names.export_prefix(WEST))
        stream = liar.streams[-1]
        await control.client.delete(names.LEADER_KEY)  # who leads then holds what etcd holds, and nothing else
        await eventually(lambda: liar.streams[-1] is not stream)
        liar.say(exported=said | {"shop/new": record("new")}, members={}, beat=2)
        await eventually(lambda: len(control.picture.imports) == 3)
        after = await control.client.list(names.export_prefix(WEST))
        assert set(before.items) < set(after.items)


async def test_kinds_that_nobody_knows_yet_disturb_nothing(west: ClusterUnderTest, issuers: Issuers) -> None:
    async with west.control(*exported_service()), calling(issuers[SOUTH], west.gateway) as call:
        await call.write(DeltaDiscoveryRequest(type_url="type.googleapis.com/isthmus.federation.v9.Dream"))
        await call.write(DeltaDiscoveryRequest(type_url=TypeUrl.BEAT))
        kinds = set()
        async with asyncio.timeout(60):
            while kinds != {TypeUrl.EXPORT, TypeUrl.BEAT}:
                response = await call.read()
                assert isinstance(response, DeltaDiscoveryResponse)
                kinds.add(response.type_url)


@asynccontextmanager
async def calling(issuer: Issuer, gateway: GatewayAddress, **metadata: str) -> AsyncIterator[Call]:
    """Calls west's control plane as that of another cluster, by hand: asks for its exports, and answers nothing."""
    svid = issuer.issue(control_identity(issuer.cluster), now=datetime.now(UTC))
    async with open_channel(
        gateway, peer=WEST, domain=DOMAIN, svid=svid, trust_bundle=issuer.trust_bundle_pem
    ) as channel:
        method = channel.stream_stream(
            f"/{FEDERATION_SERVICE}/{FEDERATION_METHOD}",
            request_serializer=DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=DeltaDiscoveryResponse.FromString,
        )
        call: Call = method()
        node = Node(id=issuer.cluster)
        member = MemberCluster(issuer.cluster, NetworkName(issuer.cluster), "eu", ())
        node.metadata.update({INTRODUCTION: exports.encode(member).decode()} | metadata)
        try:
            await call.write(DeltaDiscoveryRequest(node=node, type_url=TypeUrl.EXPORT))
            yield call
        finally:
            call.cancel()
