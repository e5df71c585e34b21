"""The copy of etcd, and what the leader writes there of its own: against a real etcd, and what etcd may do to it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from federation import names
from federation.etcd import EtcdClient, Fenced, Guard
from federation.etcd.election import Election, Leadership
from federation.model import (
    ClusterSettings,
    Departure,
    Drain,
    Endpoint,
    ExportedService,
    Freshness,
    GatewayAddress,
    Liveness,
    Locality,
    MemberCluster,
    NetworkName,
    Pod,
    PodKey,
    Protocol,
    Service,
    ServiceExport,
    ServiceKey,
    ServicePort,
)
from federation.peering import exports
from federation.peering.decisions import take_back
from federation.peering.exports import export_version
from federation.peering.offer import Offer
from federation.peering.publisher import Publisher
from federation.peering.records import PartlyRefused, restore_records, write_records
from federation.peering.replica import ORIGIN, Replica
from federation.snapshot import Change, Section
from federation.store import MeshStore
from tests.federation.test_etcd_faults import put
from tests.support.etcd import Etcd, start_etcd
from tests.support.trust import make_issuers
from tests.support.trust_keepers import KeeperUnderTest
from tests.support.waiting import eventually
from trust.spiffe import ClusterName, MeshDomain, Namespace, ServiceAccount

EAST, WEST = ClusterName("east"), ClusterName("west")
CART = ServiceKey(Namespace("shop"), "cart")
THEN = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = ClusterSettings(name=EAST, domain=MeshDomain("mesh.test"), network=NetworkName("east"), region="eu")
IMPORT = ExportedService(
    cluster=WEST,
    key=CART,
    ports=(ServicePort(80, Protocol.HTTP),),
    endpoints=(Endpoint("10.0.0.1", "cart-1", ServiceAccount("cart"), Locality("us", "a")),),
    changed_at=THEN,
)
MEMBER = MemberCluster(WEST, NetworkName("west"), "us", (GatewayAddress("10.0.0.9"),))


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Etcd]:
    async with start_etcd(tmp_path) as server:
        yield server


class Control:
    """The parts of one replica that deal with etcd."""

    def __init__(self, client: EtcdClient) -> None:
        self.client = client
        self.store = MeshStore(frozenset({"source", ORIGIN}))
        self.replica = Replica(SETTINGS, self.store)
        issuer = make_issuers(EAST, now=datetime.now(UTC))[EAST]
        self.keeper = KeeperUnderTest(SETTINGS, issuer, store=self.store, etcd=client, replica=self.replica)
        self.offer = Offer(SETTINGS, self.keeper, store=self.store, etcd=client, replica=self.replica)
        self.publisher = Publisher(self.keeper, store=self.store, etcd=client, replica=self.replica, offer=self.offer)


@asynccontextmanager
async def control(server: Etcd, *, leads: bool = False) -> AsyncIterator[Control]:
    async with EtcdClient((server.url,)) as client:
        running = Control(client)
        async with asyncio.TaskGroup() as tasks:
            parts = [tasks.create_task(running.replica.run(client)), tasks.create_task(running.offer.run())]
            if leads:
                parts.append(tasks.create_task(Election(client, "control-1").run(running.publisher.run)))
            yield running
            for part in parts:
                part.cancel()


def cart(*, ready: bool = True) -> list[Change]:
    pod = Pod(
        key=PodKey(CART.namespace, "cart-1"),
        address="10.0.0.1",
        account=ServiceAccount("cart"),
        locality=Locality("eu", "a"),
        ready=ready,
        labels=(("app", "cart"),),
    )
    service = Service(CART, (ServicePort(80, Protocol.HTTP, target=8080),), (("app", "cart"),))
    return [
        Change(Section.SERVICES, CART, service),
        Change(Section.PODS, pod.key, pod),
        Change(Section.EXPORTS, CART, ServiceExport(CART)),
    ]


def own_export(running: Control) -> ExportedService | None:
    body = running.replica.records.get(names.export_key(EAST, CART))
    return exports.decode_export(body) if body else None


async def write_what_peers_said(client: EtcdClient) -> None:
    await client.put(names.member_key(WEST), exports.encode(MEMBER))
    await client.put(names.export_key(WEST, CART), exports.encode(IMPORT))
    await client.put(names.freshness_key(WEST), exports.encode(Freshness(Liveness.LIVE, THEN, THEN)))


async def test_what_is_in_etcd_is_in_the_picture(etcd: Etcd) -> None:
    async with control(etcd) as running:
        await eventually(lambda: ORIGIN not in running.store.missing)
        await write_what_peers_said(running.client)
        await eventually(lambda: bool(running.store.snapshot.freshness))
        picture = running.store.snapshot
        assert picture.members == {WEST: MEMBER}
        assert picture.imports == {(WEST, CART): IMPORT}
        await running.client.delete(names.export_key(WEST, CART))
        await eventually(lambda: not running.store.snapshot.imports)
    async with control(etcd) as restarted:
        await eventually(lambda: ORIGIN not in restarted.store.missing)
        assert restarted.store.snapshot.members == {WEST: MEMBER}
        assert restarted.store.snapshot.freshness[WEST].state is Liveness.LIVE


async def test_own_exports_and_own_freshness_in_etcd_are_no_imports(etcd: Etcd) -> None:
    async with control(etcd) as running:
        await running.client.put(
            names.export_key(EAST, CART), exports.encode(msgspec.structs.replace(IMPORT, cluster=EAST))
        )
        await running.client.put(names.freshness_key(EAST), exports.encode(Freshness(Liveness.LIVE, THEN, THEN)))
        await eventually(lambda: len(running.replica.records) == 2)
        assert not running.store.snapshot.imports
        assert not running.store.snapshot.freshness


async def test_own_records_are_all_but_what_others_offer_and_when_they_were_heard(etcd: Etcd) -> None:
    own = {
        names.member_key(WEST): exports.encode(MEMBER),
        names.export_key(EAST, CART): exports.encode(msgspec.structs.replace(IMPORT, cluster=EAST)),
        names.freshness_key(EAST): exports.encode(Freshness(Liveness.LIVE, THEN, THEN)),
        names.statement_key(WEST): b"a statement",
        names.grant_key(WEST): b"a grant",
        names.departure_key(WEST): exports.encode(Departure(WEST, THEN)),
    }
    others = {names.export_key(WEST, CART), names.freshness_key(WEST)}
    async with control(etcd) as following:
        await eventually(lambda: ORIGIN not in following.store.missing)
        await write_what_peers_said(following.client)
        for key, body in own.items():
            await following.client.put(key, body)
        await eventually(lambda: following.replica.records.keys() == own.keys() | others)
        assert following.replica.own_records == own
        async with control(etcd) as relisted:
            await eventually(lambda: ORIGIN not in relisted.store.missing)
            assert relisted.replica.records == following.replica.records
            assert relisted.replica.own_records == own
        for key in (names.grant_key(WEST), names.export_key(EAST, CART), names.export_key(WEST, CART)):
            await following.client.delete(key)
            own.pop(key, None)
        await eventually(lambda: len(following.replica.records) == len(own) + 1)
        assert following.replica.own_records == own


@pytest.mark.parametrize(
    "body", [b"{", exports.encode(msgspec.structs.replace(IMPORT, cluster=EAST)), b"null", b"\xff"]
)
async def test_a_record_that_cannot_be_read_is_a_finding_and_the_last_good_one_stays(etcd: Etcd, body: bytes) -> None:
    key = names.export_key(WEST, CART)
    async with control(etcd) as running:
        await write_what_peers_said(running.client)
        await eventually(lambda: bool(running.store.snapshot.freshness))
        await running.client.put(key, body)
        await eventually(lambda: bool(running.store.snapshot.findings))
        [(finding,)] = running.store.snapshot.findings.values()
        assert finding.where == f"etcd {key}"
        assert running.store.snapshot.imports == {(WEST, CART): IMPORT}
        await running.client.put(key, exports.encode(IMPORT))
        await eventually(lambda: not running.store.snapshot.findings)


async def test_keys_that_are_no_records_are_left_alone(etcd: Etcd) -> None:
    async with control(etcd) as running:
        for key in ("members/NOT-A-NAME", "exports/west", "tokens/0123", "leader", "later/version"):
            await running.client.put(names.ETCD_PREFIX + key, b"anything")
        await write_what_peers_said(running.client)
        await eventually(lambda: bool(running.store.snapshot.freshness))
        assert not running.store.snapshot.findings
        assert running.store.snapshot.members == {WEST: MEMBER}


async def test_the_leader_publishes_itself_and_its_exports(etcd: Etcd) -> None:
    async with control(etcd, leads=True) as running:
        running.store.apply(cart())
        running.store.mark_listed("source")
        await eventually(lambda: own_export(running) is not None)
        exported = own_export(running)
        assert exported is not None
        assert exported == running.offer.exports[CART]
        assert exported.ports == (ServicePort(80, Protocol.HTTP),)
        await eventually(lambda: EAST in running.store.snapshot.members)
        assert running.store.snapshot.members[EAST] == running.keeper.own_member()
        running.store.apply(cart(ready=False))
        await eventually(lambda: (found := own_export(running)) is not None and found.endpoints == ())
        running.store.apply([Change(Section.EXPORTS, CART, None)])
        await eventually(lambda: own_export(running) is None)


async def test_nothing_is_taken_back_before_the_source_is_listed(etcd: Etcd) -> None:
    async with control(etcd, leads=True) as first:
        first.store.apply(cart())
        first.store.mark_listed("source")
        await eventually(lambda: own_export(first) is not None)
        published = own_export(first)
    async with control(etcd, leads=True) as restarted:
        await eventually(lambda: own_export(restarted) is not None)
        restarted.store.apply(cart())
        # The leader is chosen and etcd goes on, but the source has not told all it has.
        async with asyncio.timeout(60):
            while await restarted.client.get(names.LEADER_KEY) is None:  # noqa: ASYNC110 - another's key
                await asyncio.sleep(0.01)
        await write_what_peers_said(restarted.client)
        await eventually(lambda: bool(restarted.store.snapshot.freshness))
        assert own_export(restarted) == published
        restarted.store.mark_listed("source")
        await restarted.offer.wait_ready()
        assert restarted.offer.exports[CART] == published, "the moment of the last change survives a restart"


async def test_what_an_emptied_etcd_lost_stays_in_the_picture_and_is_written_again(etcd: Etcd) -> None:
    async with control(etcd, leads=True) as running:
        running.store.apply(cart())
        running.store.mark_listed("source")
        await write_what_peers_said(running.client)
        await eventually(lambda: own_export(running) is not None and bool(running.store.snapshot.freshness))
        revisions = running.replica.revision
        await etcd.kill()
        etcd.wipe()
        await etcd.start()
        await eventually(lambda: running.replica.losses == 1)
        assert running.store.snapshot.imports == {(WEST, CART): IMPORT}
        await eventually(lambda: own_export(running) is not None)
        await eventually(
            lambda: {names.export_key(WEST, CART), names.member_key(WEST)} <= running.replica.records.keys()
        )
        assert revisions > running.replica.revision, "etcd began anew"
        assert running.store.snapshot.imports == {(WEST, CART): IMPORT}
        assert running.store.snapshot.members[WEST] == MEMBER


async def test_a_deposed_leader_writes_nothing(etcd: Etcd) -> None:
    async with control(etcd) as running:
        running.store.apply(cart())
        running.store.mark_listed("source")
        await running.client.put(names.LEADER_KEY, b"control-2")
        deposed = Leadership("control-1", Guard(names.LEADER_KEY, 1))
        with pytest.RaisesGroup(Fenced):
            async with asyncio.timeout(60):
                await running.publisher.run(deposed)
        listing = await running.client.list(names.export_prefix(EAST))
        assert not listing.items


async def test_replicas_offer_the_same_versions(etcd: Etcd) -> None:
    async with control(etcd) as one, control(etcd) as other:
        for running in (one, other):
            running.store.apply(cart())
            running.store.mark_listed("source")
            await running.offer.wait_ready()
        assert export_version(one.offer.exports[CART]) == export_version(other.offer.exports[CART])


async def test_a_record_that_etcd_refuses_for_good_holds_back_no_other(etcd: Etcd) -> None:
    async with EtcdClient((etcd.url,)) as client:
        await client.put("/leader", b"")
        guard = Guard("/leader", (await client.list("/leader")).items[0].create_revision)
        too_large = {f"/a/{number}": b"" for number in range(300)} | {"/a/150": bytes(2_000_000)}
        with pytest.raises(PartlyRefused, match=r"/a/150: .*too large") as raised:
            await write_records(client, guard, puts=too_large)
        assert list(raised.value.refused) == ["/a/150"]
        assert len((await client.list("/a/")).items) == 299


async def test_what_an_admin_took_back_stays_so_when_etcd_loses_that(etcd: Etcd) -> None:
    key, drain = names.drain_key(WEST, None), Drain(WEST, 50, THEN)
    async with control(etcd, leads=True) as running:
        running.store.mark_listed("source")
        await running.client.put(key, exports.encode(drain))
        await eventually(lambda: bool(running.store.snapshot.drains))
        await etcd.kill()
        etcd.remember()
        await etcd.start()
        await put(running.client, key, exports.encode(msgspec.structs.replace(drain, weight=25)))
        await running.client.delete(key)
        await running.client.put(names.drain_key(EAST, None), exports.encode(Drain(EAST, 10, THEN)))
        await eventually(lambda: [one.weight for one in running.store.snapshot.drains.values()] == [10])
        await etcd.kill()
        etcd.go_back()
        await etcd.start()
        await eventually(lambda: running.replica.losses > 0 and not running.replica.lost)
        assert [one.weight for one in running.store.snapshot.drains.values()] == [10]
        assert [item.key for item in (await running.client.list(names.ETCD_PREFIX + "drains/")).items] == [
            names.drain_key(EAST, None)
        ]


async def test_what_was_decided_while_a_loss_is_repaired_stands(etcd: Etcd) -> None:
    """The leader has found out what is lost, and writes it when an admin has taken back some of it already."""
    key, other = names.drain_key(WEST, None), names.drain_key(EAST, None)
    async with control(etcd) as running:
        for each, of in ((key, WEST), (other, EAST)):
            await running.client.put(each, exports.encode(Drain(of, 50, THEN)))
        await eventually(lambda: len(running.store.snapshot.drains) == 2)
        await etcd.kill()
        etcd.wipe()
        await etcd.start()
        await eventually(lambda: running.replica.lost.keys() == {key, other})
        guard = Guard(names.LEADER_KEY, await running.client.put(names.LEADER_KEY, b""))

        async def held() -> dict[str, int]:
            found = (await running.client.list(names.ETCD_PREFIX + "drains/")).items
            return {item.key: exports.decode_drain(item.value).weight for item in found}

        # It was taken back: not even what was lost beside it is written, until that has been seen.
        lost, taken_back = dict(running.replica.lost), running.replica.taken_back
        await take_back(running.client, key)
        assert await restore_records(running.client, guard, lost, taken_back=taken_back) == 0
        assert await held() == {}
        await eventually(lambda: running.replica.taken_back > taken_back)
        assert running.replica.lost.keys() == {other}
        assert WEST not in {cluster for cluster, _ in running.store.snapshot.drains}

        # It was decided anew: that is not overwritten.
        lost, taken_back = dict(running.replica.lost), running.replica.taken_back
        await running.client.put(other, exports.encode(Drain(EAST, 25, THEN)))
        assert await restore_records(running.client, guard, lost, taken_back=taken_back) == 0
        assert await held() == {other: 25}
        await eventually(lambda: not running.replica.lost)

        # Somebody else leads: that is told apart.
        with pytest.raises(Fenced):
            await restore_records(running.client, Guard(names.LEADER_KEY, 1), lost, taken_back=taken_back)


async def test_another_replica_writes_again_what_the_leader_cannot_know_to_be_lost(etcd: Etcd) -> None:
    async with control(etcd) as old:
        old.store.mark_listed("source")
        await write_what_peers_said(old.client)
        await eventually(lambda: bool(old.store.snapshot.freshness))
        await etcd.kill()
        etcd.wipe()
        await etcd.start()
        await eventually(lambda: len(old.replica.lost) == 3)
        assert old.store.snapshot.imports == {(WEST, CART): IMPORT}
        async with control(etcd, leads=True) as leader, asyncio.TaskGroup() as tasks:
            leader.store.mark_listed("source")
            helping = tasks.create_task(old.publisher.run_helping())
            await eventually(lambda: leader.store.snapshot.imports == {(WEST, CART): IMPORT})
            await eventually(lambda: leader.replica.losses > 0 and not old.replica.lost)
            helping.cancel()
