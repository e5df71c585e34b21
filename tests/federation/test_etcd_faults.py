"""Following etcd through everything that happens to it: no change is lost, and none is made up."""

import asyncio
import logging
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest

from federation.etcd import EtcdClient, EtcdUnavailable, Event, Listing
from tests.support.addresses import free_address
from tests.support.etcd import Etcd, start_etcd
from tests.support.relay import Relay, start_relay

DEADLINE = 90.0  # seconds, for a slow machine; what is waited for takes 0.1 to 5


class Follower:
    """What a follower was told, and what it believes etcd to hold."""

    def __init__(self) -> None:
        self.told: list[Listing | Event] = []
        self.state: dict[str, bytes] = {}
        self._news = asyncio.Condition()

    async def run(self, client: EtcdClient, prefix: str) -> None:
        async with aclosing(client.follow(prefix)) as changes:
            async for change in changes:
                match change:
                    case Listing(items=items):
                        self.state = {item.key: item.value for item in items}
                    case Event(key=key, item=None):
                        del self.state[key]  # a KeyError here: told to forget what was never told
                    case Event(key=key, item=item):
                        assert item is not None
                        self.state[key] = item.value
                async with self._news:
                    self.told.append(change)
                    self._news.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE), self._news:
            await self._news.wait_for(condition)

    async def until_state(self, expected: dict[str, bytes]) -> None:
        try:
            await self.until(lambda: self.state == expected)
        except TimeoutError:
            assert self.state == expected

    @property
    def losses(self) -> int:
        return sum(isinstance(change, Listing) and change.is_after_loss for change in self.told)

    @property
    def listings(self) -> int:
        return sum(isinstance(change, Listing) for change in self.told)


@asynccontextmanager
async def following(client: EtcdClient, prefix: str = "/a/") -> AsyncIterator[Follower]:
    follower = Follower()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(follower.run(client, prefix))
        await follower.until(lambda: follower.listings == 1)
        yield follower
        task.cancel()


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Etcd]:
    async with start_etcd(tmp_path) as server:
        yield server


@pytest.fixture
async def writer(etcd: Etcd) -> AsyncIterator[EtcdClient]:
    """A client with an undisturbed way to etcd."""
    async with EtcdClient((etcd.url,)) as client:
        yield client


@pytest.fixture
async def relay(etcd: Etcd) -> AsyncIterator[Relay]:
    async with start_relay((etcd.address, 2379)) as running:
        yield running


@pytest.fixture
async def client(relay: Relay) -> AsyncIterator[EtcdClient]:
    """A client whose way to etcd can be disturbed."""
    async with EtcdClient((f"http://{relay.address}:{relay.port}",)) as connected:
        yield connected


async def put(client: EtcdClient, key: str, value: bytes = b"") -> None:
    """Writes as an owner does who knows what should be there: until it is done."""
    async with asyncio.timeout(DEADLINE):
        while True:
            with suppress(EtcdUnavailable):
                await client.put(key, value)
                return
            await asyncio.sleep(0.05)


async def until_logged(caplog: pytest.LogCaptureFixture, message: str) -> None:
    async with asyncio.timeout(DEADLINE):
        while message not in caplog.messages:  # noqa: ASYNC110 - a log has nothing to wait for
            await asyncio.sleep(0.02)


async def test_changes_under_the_prefix_are_told_in_order(writer: EtcdClient) -> None:
    await writer.put("/a/before", b"0")
    async with following(writer) as follower:
        await writer.put("/a/x", b"1")
        await writer.put("/ab", b"not ours")
        await writer.put("/a/x", b"2")
        await writer.delete("/a/before")
        await follower.until(lambda: len(follower.told) == 4)
    revisions = [change.revision for change in follower.told]
    assert revisions == [2, 3, 5, 6]
    assert follower.state == {"/a/x": b"2"}


async def test_a_broken_connection_costs_no_change_and_no_new_listing(
    writer: EtcdClient, client: EtcdClient, relay: Relay
) -> None:
    await writer.put("/a/first", b"")
    async with following(client) as follower:
        for index in range(120):
            await writer.put(f"/a/{index % 7}", str(index).encode())
            if index % 3 == 0:
                await writer.delete(f"/a/{index % 7}")
            if index % 30 == 10:
                relay.drop()
        await follower.until_state({item.key: item.value for item in (await writer.list("/a/")).items})
    revisions = [change.revision for change in follower.told]
    assert revisions == list(range(revisions[0], revisions[0] + 161))
    assert follower.listings == 1


async def test_changes_made_while_cut_off_arrive(writer: EtcdClient, client: EtcdClient, relay: Relay) -> None:
    await writer.put("/a/first", b"")
    async with following(client) as follower:
        await relay.cut()
        await writer.put("/a/x", b"meanwhile")
        await writer.delete("/a/first")
        await relay.open()
        await follower.until_state({"/a/x": b"meanwhile"})
    assert follower.listings == 1


async def test_a_killed_etcd_is_followed_again(etcd: Etcd, writer: EtcdClient) -> None:
    await writer.put("/a/x", b"1")
    async with following(writer) as follower:
        for value in (b"2", b"3"):
            await etcd.restart()
            await put(writer, "/a/x", value)
            await follower.until_state({"/a/x": value})
    assert follower.losses == 0


async def test_an_outage_is_told_once_in_the_log(
    etcd: Etcd, writer: EtcdClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "federation.etcd")
    async with following(writer) as follower:
        await etcd.kill()
        await until_logged(caplog, "etcd watch interrupted")
        await etcd.start()
        await put(writer, "/a/x", b"1")
        await follower.until_state({"/a/x": b"1"})
    assert caplog.messages == ["etcd watch interrupted", "etcd watch goes on"]


async def test_an_etcd_that_starts_late_is_waited_for(tmp_path: Path) -> None:
    address = free_address()
    async with EtcdClient((f"http://{address}:2379",)) as client, asyncio.TaskGroup() as group:
        follower = Follower()
        task = group.create_task(follower.run(client, "/a/"))
        with pytest.raises(EtcdUnavailable):
            await client.get("/a/x")
        async with start_etcd(tmp_path, address=address):
            await put(client, "/a/x", b"1")
            await follower.until_state({"/a/x": b"1"})
            task.cancel()


async def test_a_frozen_etcd_is_noticed_and_followed_again(
    etcd: Etcd, writer: EtcdClient, caplog: pytest.LogCaptureFixture
) -> None:
    await writer.put("/a/x", b"1")
    async with following(writer) as follower:
        etcd.pause()
        await until_logged(caplog, "etcd watch interrupted")
        etcd.resume()
        await put(writer, "/a/x", b"2")
        await follower.until_state({"/a/x": b"2"})
    assert follower.listings == 1


async def test_a_quiet_watch_is_not_taken_for_a_frozen_etcd(
    writer: EtcdClient, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(writer) as follower, following(writer, "/clock") as clock:
        longer_than_a_stall = await writer.grant_lease(timedelta(seconds=6))
        await writer.put("/clock", b"", lease=longer_than_a_stall)
        await clock.until(lambda: clock.state == {"/clock": b""})
        await clock.until_state({})
        assert len(follower.told) == 1
    assert caplog.messages == []


async def test_a_member_that_turned_silent_is_left_for_another(etcd: Etcd, writer: EtcdClient, relay: Relay) -> None:
    await writer.put("/a/x", b"1")
    async with EtcdClient((f"http://{relay.address}:{relay.port}", etcd.url)) as client, following(client) as follower:
        relay.freeze()
        await writer.put("/a/x", b"2")
        await follower.until_state({"/a/x": b"2"})


async def test_after_a_compaction_while_away_all_is_listed_again(
    etcd: Etcd, writer: EtcdClient, client: EtcdClient, relay: Relay
) -> None:
    await writer.put("/a/gone", b"1")
    await writer.put("/a/stays", b"1")
    async with following(client) as follower:
        await relay.cut()
        await writer.delete("/a/gone")
        await etcd.compact(await writer.put("/a/new", b"1"))
        await relay.open()
        await follower.until_state({"/a/stays": b"1", "/a/new": b"1"})
    assert isinstance(follower.told[-1], Listing)
    assert follower.losses == 0


async def test_a_compaction_does_not_disturb_one_who_is_up_to_date(etcd: Etcd, writer: EtcdClient) -> None:
    async with following(writer) as follower:
        await etcd.compact(await writer.put("/a/x", b"1"))
        await writer.put("/a/x", b"2")
        await follower.until_state({"/a/x": b"2"})
    assert follower.listings == 1


async def test_an_etcd_that_came_back_empty_is_told_as_an_empty_listing(etcd: Etcd, writer: EtcdClient) -> None:
    await writer.put("/a/x", b"1")
    async with following(writer) as follower:
        await etcd.kill()
        etcd.wipe()
        await etcd.start()
        await follower.until_state({})
        assert follower.losses == 1
        await put(writer, "/a/y", b"2")
        await follower.until_state({"/a/y": b"2"})


async def test_another_history_of_the_same_length_is_not_taken_for_ours(
    etcd: Etcd, writer: EtcdClient, client: EtcdClient, relay: Relay
) -> None:
    """While we are cut off etcd is replaced by an empty one, with the same ids and term, and overtakes our revision."""
    for index in range(3):
        await writer.put(f"/a/old-{index}", b"")
    async with following(client) as follower:
        await relay.cut()
        await etcd.kill()
        etcd.wipe()
        await etcd.start()
        for index in range(10):
            await put(writer, f"/a/new-{index}")
        await relay.open()
        await follower.until_state({f"/a/new-{index}": b"" for index in range(10)})
    assert (follower.listings, follower.losses) == (2, 1)


async def test_acknowledged_writes_that_etcd_lost_are_forgotten(
    etcd: Etcd, writer: EtcdClient, client: EtcdClient, relay: Relay, tmp_path: Path
) -> None:
    """What a kill may do to etcd 3.5.1: the last writes are gone, and their revisions are given to others."""
    await writer.put("/a/safe", b"")
    await etcd.kill()
    shutil.copytree(tmp_path / "data", tmp_path / "earlier")
    await etcd.start()
    async with following(client) as follower:
        for index in range(3):
            await put(writer, f"/a/lost-{index}")
        await follower.until(lambda: len(follower.state) == 4)
        await relay.cut()
        await etcd.kill()
        etcd.wipe()
        shutil.move(tmp_path / "earlier", tmp_path / "data")
        await etcd.start()
        for index in range(10):
            await put(writer, f"/a/new-{index}")
        await relay.open()
        await follower.until_state({"/a/safe": b""} | {f"/a/new-{index}": b"" for index in range(10)})
    assert follower.losses == 1


async def test_lost_revisions_are_noticed_even_when_the_last_write_was_repeated_in_its_place(
    etcd: Etcd, writer: EtcdClient, client: EtcdClient, relay: Relay, tmp_path: Path
) -> None:
    await writer.put("/a/safe", b"")
    await etcd.kill()
    shutil.copytree(tmp_path / "data", tmp_path / "earlier")
    await etcd.start()
    async with following(client) as follower:
        await put(writer, "/a/lost")
        await put(writer, "/a/repeated")
        await follower.until(lambda: len(follower.state) == 3)
        await relay.cut()
        await etcd.kill()
        etcd.wipe()
        shutil.move(tmp_path / "earlier", tmp_path / "data")
        await etcd.start()
        await etcd.restart()  # the election after a crash: a term that the follower has not seen
        await put(writer, "/a/other")
        await put(writer, "/a/repeated")
        await relay.open()
        await follower.until_state({"/a/safe": b"", "/a/other": b"", "/a/repeated": b""})


@pytest.mark.parametrize("seed", range(2))
async def test_any_sequence_of_faults_ends_in_what_etcd_holds(
    etcd: Etcd, writer: EtcdClient, client: EtcdClient, relay: Relay, seed: int
) -> None:
    chance = random.Random(seed)

    async def compact() -> None:
        await etcd.compact((await writer.list("/a/")).revision)

    async def drop() -> None:
        relay.drop()

    async def freeze_shortly() -> None:
        relay.freeze()
        await put(writer, "/a/frozen", b"meanwhile")
        await relay.open()

    faults = [compact, drop, relay.cut, relay.open, etcd.restart, freeze_shortly]
    async with following(client) as follower:
        for step in range(12):
            for _ in range(chance.randrange(8)):
                key = f"/a/{chance.randrange(5)}"
                if chance.random() < 0.3:
                    await put(writer, key)
                    await writer.delete(key)
                else:
                    await put(writer, key, str(step).encode())
            await chance.choice(faults)()
        await relay.open()
        await put(writer, "/a/last")
        await follower.until_state({item.key: item.value for item in (await writer.list("/a/")).items})
