"""What proxies acknowledged, shared by all replicas through a real etcd, and what may happen to it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from federation import names
from federation.acknowledgements import MOST_RECORDS, Acknowledgements
from federation.etcd import EtcdClient
from federation.etcd.election import Election
from federation.model import PodKey
from federation.peering.replica import ORIGIN
from federation.proxy_trust import ProxyTrust, is_over
from federation.snapshot import Change, Section
from federation.store import MeshStore
from tests.support.etcd import Etcd, start_etcd
from tests.support.federation import SHOP, pod
from tests.support.waiting import eventually

NODE = "east/shop/cart-1"
THEN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Etcd]:
    async with start_etcd(tmp_path) as server:
        yield server


@asynccontextmanager
async def replica(etcd: Etcd, *, sweeps: MeshStore | None = None) -> AsyncIterator[Acknowledgements]:
    """Runs the acknowledgements of one replica, which may lead."""
    async with EtcdClient((etcd.url,), timeout=timedelta(seconds=1)) as client, asyncio.TaskGroup() as tasks:
        acknowledgements = Acknowledgements(client)
        parts = [tasks.create_task(acknowledgements.run())]
        if sweeps is not None:
            election = Election(client, "control-1")
            parts.append(tasks.create_task(election.run(lambda leadership: acknowledgements.sweep(leadership, sweeps))))
        yield acknowledgements
        for part in parts:
            part.cancel()


def record(
    node: str = NODE, *, since: int = 0, lost: bool = False, life: int = 3600, authority: str = "a"
) -> ProxyTrust:
    """What a proxy acknowledged that came `since` seconds after the first moment; its certificate lives `life` s."""
    now = datetime.now(UTC)
    return ProxyTrust(
        node=node,
        identity="shop/cart",
        bundle="b",
        authority=authority,
        revoked_at=THEN,
        expires=now + timedelta(seconds=life),
        since=THEN + timedelta(seconds=since),
        lost=now if lost else None,
        at=now,
    )


async def test_what_one_replica_notes_all_of_them_know(etcd: Etcd) -> None:
    async with replica(etcd) as one, replica(etcd) as other:
        noted = [record(f"east/shop/cart-{n}") for n in range(250)]
        for each in noted:
            one.note(each)
        assert len(one.records) == 250, "known here at once"
        await eventually(lambda: other.records == one.records == {each.node: each for each in noted})
        one.forget(noted[0].node)
        await eventually(lambda: noted[0].node not in other.records and noted[0].node not in one.records)
    async with replica(etcd) as later:
        await eventually(lambda: len(later.records) == 249)


async def test_while_etcd_is_away_it_is_kept_and_written_later(etcd: Etcd) -> None:
    async with replica(etcd) as one, replica(etcd) as other:
        one.note(record())
        await eventually(lambda: NODE in other.records)
        await etcd.kill()
        one.note(record(authority="new"))
        assert one.records[NODE].authority == "new"
        await etcd.start()
        await eventually(lambda: other.records[NODE].authority == "new")
        await etcd.kill()
        etcd.wipe()
        await etcd.start()
        await eventually(lambda: other.records == one.records and NODE in one.records)
        async with EtcdClient((etcd.url,)) as client:
            found: list[bool] = []
            while not any(found):
                found.append(await client.get(names.proxy_key(NODE)) is not None)


async def test_a_replica_that_hears_late_of_a_loss_does_not_speak_for_who_has_come_back(etcd: Etcd) -> None:
    async with replica(etcd) as one, replica(etcd) as other:
        one.note(record(since=1))
        await eventually(lambda: NODE in other.records)
        other.note(record(since=2, authority="new"))
        one.note(record(since=1, lost=True))  # before or after it knows of the other's
        await eventually(lambda: one.records == other.records and one.records[NODE].is_connected)
        assert one.records[NODE].authority == "new"
        one.note(record(since=1, lost=True))
        assert one.records[NODE].is_connected
        other.note(record(since=2, authority="new", lost=True))
        await eventually(lambda: not one.records[NODE].is_connected)


async def test_a_stream_that_begins_before_etcd_was_read_wipes_nothing(etcd: Etcd) -> None:
    async with replica(etcd) as one, replica(etcd) as other:
        one.note(record())
        await eventually(lambda: NODE in other.records)
    blank = ProxyTrust(node=NODE, identity="shop/cart", since=THEN + timedelta(seconds=9), at=datetime.now(UTC))
    async with EtcdClient((etcd.url,)) as client:
        acknowledgements = Acknowledgements(client)
        acknowledgements.note(blank)
        async with replica(etcd) as other, asyncio.TaskGroup() as tasks:
            running = tasks.create_task(acknowledgements.run())
            await eventually(lambda: NODE in other.records and other.records[NODE].since == blank.since)
            acknowledgements.note(msgspec.structs.replace(blank, lost=blank.at))
            assert (acknowledgements.records[NODE].authority, acknowledgements.records[NODE].bundle) == ("a", "b")
            assert acknowledgements.records[NODE].expires is not None
            await eventually(lambda: not other.records[NODE].is_connected)
            running.cancel()
        async with replica(etcd) as later:
            await eventually(lambda: NODE in later.records)
            assert later.records[NODE].authority == "a"
            assert not later.records[NODE].is_connected


async def test_the_end_of_an_older_stream_does_not_end_a_newer_one(etcd: Etcd) -> None:
    async with replica(etcd) as one:
        one.note(record(since=1))
        one.note(record(since=2))
        one.note(record(since=1, lost=True))
        await eventually(lambda: one.records[NODE].is_connected)
        async with EtcdClient((etcd.url,)) as client:
            await client.delete(names.proxy_key(NODE))
            await eventually(lambda: NODE in one.records, "who is connected is written again")


async def test_what_nobody_can_read_is_nothing(etcd: Etcd) -> None:
    async with replica(etcd) as one, EtcdClient((etcd.url,)) as client:
        one.note(record("east/shop/cart-2"))
        await client.put(names.proxy_key(NODE), b"torn")
        await client.put(names.proxy_key("east/shop/cart-3"), msgspec.json.encode(record()))
        await client.put(names.proxy_key("east/shop/cart-4"), msgspec.json.encode(record("east/shop/cart-4")))
        await eventually(lambda: one.records.keys() == {"east/shop/cart-2", "east/shop/cart-4"})


async def test_the_leader_removes_who_is_no_more(etcd: Etcd) -> None:
    store = MeshStore(frozenset({ORIGIN}))
    store.apply([pod("cart-1"), pod("cart-2")])
    store.mark_listed(ORIGIN)
    # A replica that was killed cannot say that its proxies are lost.
    async with replica(etcd) as killed, replica(etcd) as other:
        killed.note(record("east/shop/cart-1"))
        killed.note(record("east/shop/cart-7"))
        await eventually(lambda: len(other.records) == 2)
    async with replica(etcd) as other, replica(etcd, sweeps=store) as leader:
        other.note(record("east/shop/cart-2", lost=True))
        other.note(record("east/shop/cart-3", lost=True))
        other.note(record("east/shop/cart-4"))
        other.note(record("east/gateway-1", lost=True))
        other.note(record("east/gateway-2", lost=True, life=-1))
        leader.note(record("east/shop/cart-5", life=-1))
        stays = {f"east/shop/cart-{n}" for n in (1, 2, 4, 5)} | {"east/gateway-1"}
        await eventually(lambda: leader.records.keys() == stays)
        await eventually(lambda: other.records.keys() == stays)
        store.apply([Change(Section.PODS, PodKey(SHOP, "cart-1"), None)])
        await eventually(lambda: other.records.keys() == stays - {"east/shop/cart-1"})


async def test_the_number_is_bounded() -> None:
    async with EtcdClient(("http://127.0.0.1:1",)) as client:
        acknowledgements = Acknowledgements(client)
        one = record()
        for n in range(MOST_RECORDS + 10):
            acknowledgements.note(msgspec.structs.replace(one, node=f"east/shop/cart-{n}"))
        assert len(acknowledgements.records) == MOST_RECORDS
        assert acknowledgements.record(f"east/shop/cart-{MOST_RECORDS}") is None
        again = msgspec.structs.replace(one, node="east/shop/cart-0", authority="new")
        acknowledgements.note(again)
        assert acknowledgements.record("east/shop/cart-0") == again, "who is known may change"


def test_when_a_proxy_is_no_more() -> None:
    now = datetime.now(UTC)
    here, lost = record(), record(lost=True)
    bare = msgspec.structs.replace(here, expires=None)
    later = now + timedelta(minutes=1)
    assert not is_over(here, gone_since=None, now=later)
    assert not is_over(lost, gone_since=None, now=later)
    assert is_over(lost, gone_since=now, now=later)
    assert is_over(here, gone_since=later, now=later), "nobody has confirmed it since its pod is gone"
    assert not is_over(here, gone_since=here.at - timedelta(seconds=1), now=later), "somebody has"
    assert is_over(here, gone_since=None, now=now + timedelta(days=1))
    assert not is_over(bare, gone_since=None, now=later)
    assert is_over(bare, gone_since=None, now=now + timedelta(days=1))
    assert is_over(msgspec.structs.replace(bare, lost=now), gone_since=None, now=later)
