"""What a root said travels from member to member, and nobody on the way can change it: real etcd, real TLS streams."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from envoy.config.core.v3.base_pb2 import Node

from federation import names
from federation.model import GatewayAddress
from federation.peering import trust_records
from federation.xds.client import DeltaClient
from federation.xds.protocol import DeltaStream, Ignored, Order, Subscribed
from federation.xds.resources import Resource, TypeUrl, make_resource
from tests.support.federation import (
    ClusterUnderTest,
    ControlUnderTest,
    exported_service,
    pod,
    start_cluster,
)
from tests.support.lying_peer import start_liar
from tests.support.trust import DOMAIN, EAST, WEST
from tests.support.trust_keepers import RootUnderTest, make_mesh
from tests.support.waiting import eventually
from trust.bundle import LARGEST, bundle_digest, encode_bundle
from trust.issuance import Issuer
from trust.joining import Grant
from trust.joining import encode as encode_message
from trust.spiffe import ClusterName, control_identity
from trust.statements import AuthorityState, TrustStatement, encode_statement

SOUTH = ClusterName("south")
NOWHERE = (GatewayAddress("127.105.0.9", 15443),)


@pytest.fixture
def mesh() -> tuple[RootUnderTest, Mapping[ClusterName, Issuer]]:
    """A root that has said its first word, and the members below it."""
    root, issuers = make_mesh(EAST, WEST, SOUTH, now=datetime.now(UTC))
    root.say()
    return root, issuers


@pytest.fixture
async def east(
    tmp_path: Path, mesh: tuple[RootUnderTest, Mapping[ClusterName, Issuer]]
) -> AsyncIterator[ClusterUnderTest]:
    async with start_cluster(tmp_path, mesh[1][EAST]) as cluster:
        yield cluster


def grant_for(cluster: ClusterName, root: RootUnderTest, *, answers: str = "a" * 32) -> Grant:
    """A grant of the second generation; what it holds is for the keeper to judge, who here does not."""
    return Grant(
        version=1,
        request_id=answers,
        domain=DOMAIN,
        cluster=cluster,
        generation=2,
        certificate="",
        root="",
        bundle=root.said[-1],
        introductions=(),
        expires=datetime.now(UTC) + timedelta(hours=1),
    )


def said_by(control: ControlUnderTest, peer: ClusterName) -> TrustStatement | None:
    heard = trust_records.held_statement(control.replica.records, peer)
    return heard.statement if heard else None


def statement(cluster: ClusterName, *, generation: int = 1) -> TrustStatement:
    state = AuthorityState(
        generation=generation, fingerprint="f", root="r", not_after=datetime.now(UTC), is_active=True
    )
    return TrustStatement(
        cluster=cluster,
        sequence=1,
        bundle="b",
        authorities=(state,),
        proxies=0,
        trusting=0,
        renewed=0,
        enforcing=0,
        at=datetime.now(UTC),
    )


async def test_documents_statements_and_grants_reach_whom_they_are_for(
    tmp_path: Path, mesh: tuple[RootUnderTest, Mapping[ClusterName, Issuer]]
) -> None:
    root, issuers = mesh
    async with AsyncExitStack() as stack:
        found = {name: await stack.enter_async_context(start_cluster(tmp_path, issuers[name])) for name in issuers}
        # East and south meet west alone: there is no way between them.
        away = {EAST: {SOUTH: NOWHERE}, WEST: {}, SOUTH: {EAST: NOWHERE}}
        east, west, south = [
            await stack.enter_async_context(
                cluster.control(*exported_service(), pod(f"cart-{n}"), documents=root.said, peer_gateways=away[name])
            )
            for n, (name, cluster) in enumerate(found.items(), 1)
        ]
        await east.introduce(west.member)
        await south.introduce(west.member)
        await eventually(lambda: west.is_live(EAST) and west.is_live(SOUTH))
        newest = root.announce()
        assert await east.keeper.take_bundles((newest,)) == ""
        await eventually(lambda: south.keeper.documents()[-1] == newest, "the document came over west")
        await eventually(
            lambda: (
                [said.bundle if (said := said_by(west, each)) else "" for each in (EAST, SOUTH)]
                == [bundle_digest(newest)] * 2
            )
        )
        await eventually(lambda: said_by(south, WEST) == west.keeper.statement() or _same(south, west))
        assert said_by(south, EAST) is None, "a member speaks for itself alone"

        assert await west.keeper.pass_on(grant_for(SOUTH, root)) == ""
        await eventually(lambda: len(south.keeper.taken_grants) == 1)
        await eventually(lambda: not trust_records.grants_for(west.replica.records, SOUTH), "it is kept no longer")
        assert not east.keeper.taken_grants
        assert not west.keeper.taken_grants
        said = said_by(west, SOUTH)
        assert said is not None
        assert [one.generation for one in said.authorities] == [2]
        assert not [one.rejections for one in (*west.peers.status(), *south.peers.status()) if one.rejections]


def _same(listener: ControlUnderTest, speaker: ControlUnderTest) -> bool:
    heard, own = said_by(listener, speaker.name), speaker.keeper.statement()
    return heard is not None and own is not None and msgspec.structs.replace(heard, at=own.at) == own


async def test_who_was_away_catches_up_by_all_that_was_missed(
    east: ClusterUnderTest, mesh: tuple[RootUnderTest, Mapping[ClusterName, Issuer]], tmp_path: Path
) -> None:
    root, issuers = mesh
    missed = [root.say(), root.say(), root.announce(), root.say()]
    async with (
        start_cluster(tmp_path, issuers[WEST]) as west_cluster,
        east.control(*exported_service(), documents=root.said[:1]) as away,
        west_cluster.control(*exported_service(), documents=root.said) as west,
    ):
        await away.introduce(west.member)
        await eventually(lambda: away.keeper.documents()[-1] == missed[-1])
        assert not away.peer(WEST).rejections


async def test_a_lying_peer_moves_nobodys_trust(
    east: ClusterUnderTest, mesh: tuple[RootUnderTest, Mapping[ClusterName, Issuer]]
) -> None:
    root, issuers = mesh
    other, _ = make_mesh(now=datetime.now(UTC))
    forged = [other.say(), other.say(), other.say()][1:]
    own = [root.say(), root.say()]
    truth = list(trust_records.document_resources(own[:1]).values())
    lies = [
        *trust_records.document_resources(forged).values(),
        make_resource("7.torn", encode_bundle(own[1])[:-9]),
        make_resource("2.another-name", encode_bundle(own[0])),
        make_resource("9.huge", b" " * (LARGEST + 1)),
    ]
    async with AsyncExitStack() as stack:
        svid = issuers[WEST].issue(control_identity(WEST), now=datetime.now(UTC))
        liar, west = await start_liar(stack, issuers[WEST], svid)
        liar.say(exported={}, members={})
        liar.add(
            {
                TypeUrl.TRUST_BUNDLE: _by_name(*truth, *lies),
                TypeUrl.TRUST_STATEMENT: {
                    **_by_name(trust_records.statement_resource(statement(SOUTH))),
                    "west": make_resource("west", b"{" + b" " * 70_000),
                },
                TypeUrl.TRUST_GRANT: {
                    "south": make_resource("south", encode_message(grant_for(SOUTH, root))),
                    "east": make_resource("east", encode_message(grant_for(EAST, root, answers="b" * 32))),
                },
            }
        )
        control = await stack.enter_async_context(east.control(*exported_service(), documents=root.said[:1]))
        await control.introduce(west)
        names_of_lies = {one.name for one in lies} | {"south", "west", "east"}
        await eventually(lambda: liar.refused() == names_of_lies, "the liar is told")
        shown = {rejection.resource: rejection.message for rejection in control.peer(WEST).rejections}
        assert {resource.partition(" ")[2] for resource in shown} == names_of_lies
        assert {resource.partition(" ")[0] for resource in shown} == {"TrustBundle", "TrustStatement", "Grant"}
        assert "may not speak of the trust of south" in shown["TrustStatement south"]
        assert "the grant is for south" in shown["Grant south"]
        assert "answers no request" in shown["Grant east"]
        assert "too large" in shown["TrustBundle 9.huge"]
        assert control.keeper.documents()[-1] == own[0], "the truth beside the lies was taken"
        assert not control.keeper.taken_grants
        assert not trust_records.heard_statements(control.replica.records)
        assert await control.client.get(names.statement_key(SOUTH)) is None
        # The truth replaces a lie, and then nothing of it is shown any more.
        liar.add({TypeUrl.TRUST_STATEMENT: _by_name(trust_records.statement_resource(statement(WEST)))})
        await eventually(lambda: said_by(control, WEST) is not None)
        assert not [one for one in control.peer(WEST).rejections if one.resource.startswith("TrustStatement")]


async def test_documents_without_end_are_not_kept(
    east: ClusterUnderTest, mesh: tuple[RootUnderTest, Mapping[ClusterName, Issuer]]
) -> None:
    root, issuers = mesh
    old = [msgspec.structs.replace(root.said[0], issued=datetime.fromtimestamp(n, UTC)) for n in range(100)]
    named: dict[str, Resource] = {}
    for one in old:
        named |= trust_records.document_resources((one,))
    async with AsyncExitStack() as stack:
        svid = issuers[WEST].issue(control_identity(WEST), now=datetime.now(UTC))
        liar, west = await start_liar(stack, issuers[WEST], svid)
        liar.say(exported={}, members={})
        liar.add({TypeUrl.TRUST_BUNDLE: named})
        root.say()
        control = await stack.enter_async_context(east.control(*exported_service(), documents=root.said))
        await control.introduce(west)
        await eventually(lambda: len(liar.refused()) == 100 - trust_records.MOST_DOCUMENTS)
        assert len(control.peer(WEST).rejections) <= 32
        assert control.keeper.documents()[-1] == root.said[-1]


def test_members_of_different_age_understand_each_other() -> None:
    root, _ = make_mesh(now=datetime.now(UTC))
    says = {
        TypeUrl.BEAT: _by_name(make_resource("west", b"{}")),
        TypeUrl.TRUST_BUNDLE: trust_records.document_resources((root.say(),)),
    }
    older_client, stream = DeltaClient((TypeUrl.BEAT,)), DeltaStream(Order.NONE)
    stream.offer(says)
    for request in older_client.open({}, Node(id="east")):
        stream.receive(request)
    assert [push.type_url for push in stream.due()] == [TypeUrl.BEAT], "who did not ask for documents is told none"
    newer_client, stream = DeltaClient((TypeUrl.BEAT, TypeUrl.TRUST_BUNDLE)), DeltaStream(Order.NONE)
    stream.offer(says)
    beat, documents = newer_client.open({}, Node(id="east"))
    documents.type_url += "FromTheFuture"  # as an older server sees it
    assert isinstance(stream.receive(beat), Subscribed)
    assert isinstance(stream.receive(documents), Ignored)
    assert [push.type_url for push in stream.due()] == [TypeUrl.BEAT]


def test_of_very_many_documents_the_newest_are_told() -> None:
    root, _ = make_mesh(now=datetime.now(UTC))
    first = root.say()
    documents = [msgspec.structs.replace(first, sequence=n) for n in range(1, 200)]
    told = [trust_records.read_document(one) for one in trust_records.document_resources(documents).values()]
    assert [one.sequence for one in told] == list(range(200 - trust_records.MOST_DOCUMENTS, 200))


def test_grants_are_kept_until_their_addressee_has_them() -> None:
    root, _ = make_mesh(now=datetime.now(UTC))
    root.say()
    now, grant = datetime.now(UTC), grant_for(WEST, root)
    key = names.grant_key(WEST)
    records = {key: encode_message(grant)}
    assert trust_records.grants_for(records, WEST) == (grant,)
    assert not trust_records.grants_for(records, EAST)
    for generation, is_done in ((1, False), (2, True)):
        records[names.statement_key(WEST)] = trust_records.encode_heard(statement(WEST, generation=generation), now)
        assert bool(trust_records.delivered_grants(records, now=now)) is is_done
    del records[names.statement_key(WEST)]
    assert trust_records.delivered_grants(records, now=grant.expires) == (key,)
    assert trust_records.delivered_grants({key: b"torn"}, now=now) == (key,)
    assert not trust_records.grants_for({names.grant_key(EAST): records[key]}, EAST), "it is another's"


def test_a_statement_is_the_same_at_another_moment() -> None:
    said = statement(WEST)
    later = msgspec.structs.replace(said, at=said.at + timedelta(hours=1))
    assert trust_records.statement_resource(said).version == trust_records.statement_resource(later).version
    other = msgspec.structs.replace(later, proxies=1, enforcing=1)
    assert trust_records.statement_resource(said).version != trust_records.statement_resource(other).version
    assert trust_records.read_statement(trust_records.statement_resource(said), WEST) == said
    assert encode_statement(said) == trust_records.statement_resource(said).body


def _by_name(*resources: Resource) -> dict[str, Resource]:
    return {one.name: one for one in resources}
