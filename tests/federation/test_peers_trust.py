"""Whom a cluster talks to and what it believes: real handshakes, and peers that lie."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from envoy.config.core.v3.base_pb2 import Node

from federation import names
from federation.model import (
    FEDERATION_PORT,
    Endpoint,
    ExportedService,
    GatewayAddress,
    Locality,
    MemberCluster,
    NetworkName,
    Protocol,
    ServiceKey,
    ServicePort,
)
from federation.peering import checks, exports
from federation.peering.allowance import MOST_PORTS
from federation.peering.dialing import open_channel
from federation.peering.freshness import LONGEST_SILENCE
from federation.peering.listening import listen
from federation.peering.offer import INTRODUCTION
from federation.xds.client import Received
from federation.xds.resources import Resource, ResourceSet, TypeUrl, make_resource
from tests.support.federation import (
    CART,
    SHOP,
    ClusterUnderTest,
    exported_service,
    pod,
    start_cluster,
)
from tests.support.lying_peer import start_liar
from tests.support.trust import DOMAIN, EAST, WEST, make_authorities, make_issuer
from tests.support.waiting import eventually
from trust.certificates import certificate_pem, key_pem, make_leaf, new_key
from trust.enrolment import Intermediate
from trust.issuance import X509Svid
from trust.spiffe import (
    CONTROL_ACCOUNT,
    ClusterName,
    Identity,
    ServiceAccount,
    control_dns_name,
    control_identity,
    gateway_identity,
)

SOUTH = ClusterName("south")
_DEADLINE = 60  # seconds


Authorities = Mapping[ClusterName, Intermediate]


@pytest.fixture
def authorities() -> Authorities:
    return make_authorities(EAST, WEST, SOUTH, now=datetime.now(UTC))


@pytest.fixture
async def east(tmp_path: Path, authorities: Authorities) -> AsyncIterator[ClusterUnderTest]:
    async with start_cluster(tmp_path, make_issuer(authorities[EAST])) as cluster:
        yield cluster


def issue(authorities: Authorities, whose: Identity) -> X509Svid:
    return make_issuer(authorities[whose.cluster]).issue(whose, now=datetime.now(UTC))


def forge(authorities: Authorities, whose: Identity, *, signed_by: ClusterName) -> X509Svid:
    """Returns a certificate that another cluster's authority signed although it may not."""
    thief, key, now = authorities[signed_by], new_key(), datetime.now(UTC)
    leaf = make_leaf(
        thief.certificate,
        thief.key,
        public_key=key.public_key(),
        identity=whose,
        domain=DOMAIN,
        extra_dns=(control_dns_name(whose.cluster, DOMAIN),),
        now=now,
        lifetime=timedelta(hours=1),
    )
    chain = certificate_pem(leaf) + certificate_pem(thief.certificate)
    return msgspec.structs.replace(issue(authorities, whose), certificate_chain_pem=chain, key_pem=key_pem(key))


def truth(name: str = "cart", *, cluster: ClusterName = WEST, address: str = "10.0.0.2") -> bytes:
    return exports.encode(
        ExportedService(
            cluster=cluster,
            key=ServiceKey(SHOP, name),
            ports=(ServicePort(80, Protocol.HTTP),),
            endpoints=(Endpoint(address, "cart-2", ServiceAccount("cart"), Locality("us", "a")),),
            changed_at=datetime.now(UTC),
        )
    )


async def test_lies_are_refused_and_shown_and_the_truth_beside_them_is_kept(
    east: ClusterUnderTest, authorities: Authorities
) -> None:
    async with AsyncExitStack() as stack:
        liar, west = await start_liar(stack, make_issuer(authorities[WEST]), issue(authorities, control_identity(WEST)))
        control = await stack.enter_async_context(east.control(*exported_service()))
        lies = {
            "shop/pay": truth("pay", cluster=SOUTH),
            "shop/torn": truth("torn")[:-9],
            "shop/moved": truth("elsewhere"),
            "shop/nowhere": truth("nowhere", address="cart.example"),
        }
        members = {"west": exports.encode(west), "south": exports.encode(west)}
        liar.say(exported={"shop/cart": truth(), **lies}, members=members)
        await control.introduce(west)
        await eventually(lambda: control.addresses(WEST) == ["10.0.0.2"] and control.is_live(WEST))
        await eventually(lambda: liar.refused() == {*lies, "south"})
        rejected = {rejection.resource: rejection.message for rejection in control.peer(WEST).rejections}
        assert rejected.keys() == {"Member south", *(f"Export {name}" for name in lies)}
        assert "may not offer services of south" in rejected["Export shop/pay"]
        assert control.picture.imports.keys() == {(WEST, CART)}
        assert control.picture.members.keys() == {EAST, WEST}
        liar.say(exported={"shop/cart": b"nonsense", "shop/pay": truth("pay")}, members=members)
        await eventually(lambda: control.addresses(WEST, ServiceKey(SHOP, "pay")) == ["10.0.0.2"])
        await eventually(lambda: "shop/cart" in liar.refused())
        assert control.addresses(WEST) == ["10.0.0.2"], "the last good offer stays in force"
        await eventually(
            lambda: (
                {rejection.resource for rejection in control.peer(WEST).rejections}
                == {"Member south", "Export shop/cart"}
            )
        )


async def test_removals_reach_only_what_the_peer_itself_offers(
    east: ClusterUnderTest, authorities: Authorities
) -> None:
    async with AsyncExitStack() as stack:
        liar, west = await start_liar(stack, make_issuer(authorities[WEST]), issue(authorities, control_identity(WEST)))
        control = await stack.enter_async_context(east.control(*exported_service()))
        await control.client.put(names.export_key(SOUTH, CART), truth(cluster=SOUTH))
        members = {"west": exports.encode(west)}
        proof = make_issuer(authorities[SOUTH]).intermediate_pem.decode()
        south = msgspec.structs.replace(west, name=SOUTH, gateways=(), certificate=proof)
        liar.say(exported={"shop/cart": truth()}, members=members | {"south": exports.encode(south)})
        await control.introduce(west)
        await eventually(lambda: control.addresses(WEST) == ["10.0.0.2"] and SOUTH in control.picture.members)
        liar.say(exported={}, members=members)
        await eventually(lambda: not control.addresses(WEST))
        assert control.addresses(SOUTH) == ["10.0.0.2"]
        assert control.picture.members[SOUTH].introduced_by == "west", "nobody is forgotten on another's word"


async def test_nobody_can_invent_a_member(east: ClusterUnderTest, authorities: Authorities) -> None:
    strangers = make_authorities(SOUTH, now=datetime.now(UTC))
    async with AsyncExitStack() as stack:
        liar, west = await start_liar(stack, make_issuer(authorities[WEST]), issue(authorities, control_identity(WEST)))
        control = await stack.enter_async_context(east.control(*exported_service()))
        proofs = {
            "north": "",
            "torn": "-----BEGIN CERTIFICATE-----\n",
            "disguised": make_issuer(authorities[WEST]).intermediate_pem.decode(),
            "south": make_issuer(strangers[SOUTH]).intermediate_pem.decode(),
        }
        lies = {
            name: exports.encode(msgspec.structs.replace(west, name=ClusterName(name), certificate=proof))
            for name, proof in proofs.items()
        }
        nested = b'{"x":' + b"[" * 100_000
        huge = exports.encode(west).replace(b'"wire_version":1', b'"wire_version":' + b"9" * 40)
        liar.say(exported={"shop/cart": truth(), "shop/nested": nested}, members={**lies, "west": huge})
        await control.introduce(west)
        await eventually(lambda: liar.refused() == {*lies, "west", "shop/nested"})
        await eventually(lambda: control.addresses(WEST) == ["10.0.0.2"])
        assert control.picture.members.keys() == {EAST, WEST}
        found = await control.client.list(names.ETCD_PREFIX + "members/")
        assert {item.key for item in found.items} == {names.member_key(EAST), names.member_key(WEST)}


async def test_a_peer_has_no_more_kept_than_it_may(east: ClusterUnderTest, authorities: Authorities) -> None:
    ports = tuple(ServicePort(number, Protocol.TCP) for number in range(1, checks.MOST_PORTS + 1))
    fitting = MOST_PORTS // checks.MOST_PORTS
    many = {
        f"shop/cart-{n:03}": exports.encode(
            ExportedService(WEST, ServiceKey(SHOP, f"cart-{n:03}"), ports, (), datetime.now(UTC))
        )
        for n in range(fitting + 40)
    }
    async with AsyncExitStack() as stack:
        liar, west = await start_liar(stack, make_issuer(authorities[WEST]), issue(authorities, control_identity(WEST)))
        control = await stack.enter_async_context(east.control(*exported_service()))
        liar.say(exported=many, members={})
        await control.introduce(west)
        await eventually(lambda: len(control.picture.imports) == fitting and len(liar.refused()) == 40)
        rejections = control.peer(WEST).rejections
        assert len(rejections) == 32, "enough to see what is wrong, however much a peer invents"
        assert all("10000 are the most" in rejection.message for rejection in rejections)
        # What is there already may change, and what goes makes room.
        del many["shop/cart-000"]
        liar.say(exported={**many, "shop/cart": truth(), "shop/cart-001": truth("cart-001")}, members={}, beat=2)
        await eventually(lambda: control.addresses(WEST) == ["10.0.0.2"])


@pytest.mark.parametrize(
    ("says", "problem"),
    [
        (
            {TypeUrl.BEAT: {name: make_resource(name, b"{}") for name in ("west", "more")}},
            "the beat of more than one cluster",
        ),
        (
            {TypeUrl.EXPORT: {"shop/cart": Resource("shop/cart", "v" * 65, truth())}},
            "a version of more than 64 characters",
        ),
    ],
)
async def test_a_peer_cannot_have_anything_remembered_that_is_not_kept(
    east: ClusterUnderTest, authorities: Authorities, says: ResourceSet, problem: str
) -> None:
    async with AsyncExitStack() as stack:
        liar, west = await start_liar(stack, make_issuer(authorities[WEST]), issue(authorities, control_identity(WEST)))
        liar.says = says
        control = await stack.enter_async_context(east.control(*exported_service()))
        await control.introduce(west)
        await eventually(lambda: bool(control.peers.status()) and problem in control.peer(WEST).problem)
        assert not control.picture.imports


@pytest.mark.parametrize("who", ["another cluster", "a workload", "a stranger", "forged"])
async def test_nobody_but_the_control_plane_of_a_peer_is_listened_to(
    east: ClusterUnderTest, authorities: Authorities, who: str
) -> None:
    match who:
        case "another cluster":
            svid = issue(authorities, control_identity(SOUTH))
        case "a workload":
            svid = issue(authorities, Identity(WEST, SHOP, CONTROL_ACCOUNT))
        case "a stranger":
            svid = issue(make_authorities(WEST, now=datetime.now(UTC)), control_identity(WEST))
        case _:
            svid = forge(authorities, control_identity(WEST), signed_by=SOUTH)
    async with AsyncExitStack() as stack:
        liar, west = await start_liar(stack, make_issuer(authorities[WEST]), svid)
        liar.say(exported={"shop/cart": truth()}, members={})
        control = await stack.enter_async_context(east.control(*exported_service()))
        await control.introduce(west)
        await eventually(lambda: bool(control.peers.status()) and bool(control.peer(WEST).problem))
        assert control.peer(WEST).heard is None
        assert control.peer(WEST).via == ""
        assert not liar.streams
        assert not control.picture.imports


async def test_only_control_planes_of_other_clusters_are_served(
    east: ClusterUnderTest, authorities: Authorities
) -> None:
    west = MemberCluster(WEST, NetworkName("west"), "us", ())
    strangers = make_authorities(WEST, now=datetime.now(UTC))
    async with east.control(*exported_service(), pod("cart-1")) as control:
        for svid, answer in (
            (issue(authorities, Identity(WEST, SHOP, ServiceAccount("cart"))), "no control plane"),
            (issue(authorities, gateway_identity(WEST)), "no control plane"),
            (issue(authorities, control_identity(EAST)), "east itself"),
        ):
            assert answer in await call(east, svid, west)
        for svid in (
            issue(strangers, control_identity(WEST)),
            forge(authorities, control_identity(WEST), signed_by=SOUTH),
        ):
            # TLS 1.3 tells a refused client nothing: its connection just ends, before or after its first bytes.
            reason = await call(east, svid, west)
            assert reason.startswith("unavailable") or reason == "the connection broke"
        svid = issue(authorities, control_identity(WEST))
        assert "cannot be believed" in await call(east, svid, msgspec.structs.replace(west, name=SOUTH))
        endless = msgspec.structs.replace(west, certificate="x" * (65 * 1024 * 1024))
        assert "resource exhausted" in await call(east, svid, endless)
        assert control.picture.members.keys() <= {EAST}
        assert not control.offer.listeners()


async def call(east: ClusterUnderTest, svid: X509Svid, introduction: MemberCluster) -> str:
    """Calls east as whoever `svid` says and returns why it was refused; fails when it was served."""
    node = Node(id="west")
    node.metadata.update({INTRODUCTION: exports.encode(introduction).decode()})

    async def keep(received: Received) -> str:
        raise AssertionError(f"served {received}")

    async def ends() -> str:
        await asyncio.sleep(_DEADLINE)
        return "neither served nor refused"

    async with open_channel(
        GatewayAddress(east.address, FEDERATION_PORT),
        peer=EAST,
        domain=DOMAIN,
        svid=svid,
        trust_bundle=east.issuer.trust_bundle_pem,
    ) as channel:
        return await listen(
            channel,
            node=node,
            held={},
            silence=LONGEST_SILENCE,
            on_sign=lambda: pytest.fail("served"),
            keep=keep,
            ends=ends,
        )
