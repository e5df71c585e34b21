"""One leader at a time, and writes that only the leader's word can do: against real etcd."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from datetime import timedelta
from pathlib import Path

import pytest

from federation.etcd import EtcdClient, EtcdUnavailable, Event, Fenced, LeaseExpired, LeaseId
from federation.etcd.election import Election, Leadership
from federation.names import LEADER_KEY
from tests.support.etcd import Etcd, start_etcd
from tests.support.relay import Relay, start_relay
from tests.support.waiting import eventually

DEADLINE = 90.0  # seconds, for a slow machine
TTL = timedelta(seconds=2)


class Office:
    """What became of the leaders: `began` and `ended` by name, in order, and the latest leadership."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.leadership: Leadership | None = None
        self._news = asyncio.Condition()

    async def lead(self, leadership: Leadership) -> None:
        await self._note(leadership.holder, "began")
        self.leadership = leadership
        try:
            await asyncio.Event().wait()
        finally:
            await self._note(leadership.holder, "ended")

    async def _note(self, holder: str, what: str) -> None:
        async with self._news:
            self.events.append((holder, what))
            self._news.notify_all()

    async def until(self, *events: tuple[str, str]) -> None:
        try:
            async with asyncio.timeout(DEADLINE), self._news:
                await self._news.wait_for(lambda: self.events == list(events))
        except TimeoutError:
            assert self.events == list(events)


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Etcd]:
    async with start_etcd(tmp_path) as server:
        yield server


@pytest.fixture
async def client(etcd: Etcd) -> AsyncIterator[EtcdClient]:
    async with EtcdClient((etcd.url,)) as connected:
        yield connected


@pytest.fixture
async def relay(etcd: Etcd) -> AsyncIterator[Relay]:
    async with start_relay((etcd.address, 2379)) as running:
        yield running


async def test_one_leads_and_another_takes_over_when_it_stops(client: EtcdClient) -> None:
    office, first, second = Office(), Election(client, "one", ttl=TTL), Election(client, "two", ttl=TTL)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(first.run(office.lead))
        await office.until(("one", "began"))
        heir = group.create_task(second.run(office.lead))
        await eventually(lambda: first.leader == second.leader == "one")
        task.cancel()
        await office.until(("one", "began"), ("one", "ended"), ("two", "began"))
        await eventually(lambda: second.leader == "two")
        heir.cancel()
    assert await client.get(LEADER_KEY) is None
    assert first.leader is None


async def test_a_leader_outlives_its_lease_by_renewing_it(client: EtcdClient) -> None:
    office, election = Office(), Election(client, "one", ttl=TTL)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(election.run(office.lead))
        await office.until(("one", "began"))
        bystander = await client.grant_lease(TTL + timedelta(seconds=1))
        await client.put("/bystander", b"", lease=bystander)
        async with asyncio.timeout(DEADLINE), aclosing(client.follow("/bystander")) as changes:
            async for change in changes:
                if isinstance(change, Event):
                    break  # its lease, longer than the leader's and not renewed, has expired
        assert office.events == [("one", "began")]
        task.cancel()


@pytest.mark.parametrize("fault", ["cut", "freeze"])
async def test_a_leader_that_is_cut_off_stops_before_another_begins(
    client: EtcdClient, relay: Relay, fault: str
) -> None:
    office = Office()
    async with (
        EtcdClient((f"http://{relay.address}:{relay.port}",)) as disturbed,
        asyncio.TaskGroup() as group,
    ):
        tasks = [group.create_task(Election(disturbed, "one", ttl=TTL).run(office.lead))]
        await office.until(("one", "began"))
        old = office.leadership
        assert old is not None
        tasks.append(group.create_task(Election(client, "two", ttl=TTL).run(office.lead)))
        if fault == "cut":
            await relay.cut()
        else:
            relay.freeze()
        await office.until(("one", "began"), ("one", "ended"), ("two", "began"))

        await relay.open()  # the old leader's late writes arrive now
        with pytest.raises(Fenced):
            await client.put("/data", b"late", guard=old.guard)
        assert office.leadership is not None
        await client.put("/data", b"in time", guard=office.leadership.guard)
        for task in tasks:
            task.cancel()


async def test_who_gave_up_while_it_was_cut_off_gives_its_lease_back_when_it_is_not(
    client: EtcdClient, relay: Relay
) -> None:
    office = Office()

    async def keep_alive(lease: LeaseId) -> None:
        """As an etcd does that was away itself, and counts the leases anew."""
        with suppress(LeaseExpired):
            while True:
                await client.keep_alive(lease)
                await asyncio.sleep(0.2)

    async with (
        EtcdClient((f"http://{relay.address}:{relay.port}",)) as disturbed,
        asyncio.TaskGroup() as group,
    ):
        task = group.create_task(Election(disturbed, "one", ttl=TTL).run(office.lead))
        await office.until(("one", "began"))
        held = await client.get(LEADER_KEY)
        assert held is not None
        group.create_task(keep_alive(held.lease))
        await relay.cut()
        await office.until(("one", "began"), ("one", "ended"))
        assert await client.get(LEADER_KEY) == held
        await relay.open()
        await office.until(("one", "began"), ("one", "ended"), ("one", "began"))
        task.cancel()


async def test_who_leads_by_a_key_that_somebody_removed_stops(client: EtcdClient) -> None:
    office = Office()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(Election(client, "one", ttl=TTL).run(office.lead))
        await office.until(("one", "began"))
        old = office.leadership
        await client.delete(LEADER_KEY)
        await office.until(("one", "began"), ("one", "ended"), ("one", "began"))
        assert old is not None
        with pytest.raises(Fenced):
            await client.put("/data", b"", guard=old.guard)
        task.cancel()


async def test_a_leader_stays_over_a_restart_of_etcd(etcd: Etcd, client: EtcdClient) -> None:
    office = Office()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(Election(client, "one", ttl=timedelta(seconds=30)).run(office.lead))
        await office.until(("one", "began"))
        await etcd.restart()
        leadership = office.leadership
        assert leadership is not None
        async with asyncio.timeout(DEADLINE):
            while True:
                with suppress(EtcdUnavailable):
                    await client.put("/data", b"still leading", guard=leadership.guard)
                    break
                await asyncio.sleep(0.05)
        assert office.events == [("one", "began")]
        task.cancel()


async def test_after_etcd_lost_everything_the_leader_is_elected_anew(etcd: Etcd, client: EtcdClient) -> None:
    office = Office()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(Election(client, "one", ttl=timedelta(seconds=30)).run(office.lead))
        await office.until(("one", "began"))
        await etcd.kill()
        etcd.wipe()
        await etcd.start()
        await office.until(("one", "began"), ("one", "ended"), ("one", "began"))
        assert office.leadership is not None
        await client.put("/data", b"", guard=office.leadership.guard)
        task.cancel()


@pytest.mark.parametrize("failure", [Fenced("somebody else leads"), EtcdUnavailable("no answer")])
async def test_a_leader_that_cannot_write_campaigns_again(client: EtcdClient, failure: Exception) -> None:
    attempts = 0

    async def lead(leadership: Leadership) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            async with asyncio.TaskGroup():  # as it comes from the tasks of a real leader
                raise failure

    async with asyncio.timeout(DEADLINE):
        await Election(client, "one", ttl=TTL).run(lead)
    assert attempts == 2
    assert await client.get(LEADER_KEY) is None


async def test_a_bug_of_the_leader_is_raised_and_the_leadership_given_back(client: EtcdClient) -> None:
    async def lead(leadership: Leadership) -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:
        await Election(client, "one", ttl=TTL).run(lead)
    assert raised.group_contains(ZeroDivisionError)
    assert await client.get(LEADER_KEY) is None


async def test_a_campaign_waits_for_an_etcd_that_is_away(etcd: Etcd, client: EtcdClient) -> None:
    office = Office()
    await etcd.kill()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(Election(client, "one", ttl=TTL).run(office.lead))
        with pytest.raises(EtcdUnavailable):
            await client.get(LEADER_KEY)
        await etcd.start()
        await office.until(("one", "began"))
        task.cancel()


async def test_many_candidates_never_lead_together(etcd: Etcd, client: EtcdClient) -> None:
    """Each leads and resigns; the key's guards are all different, and one leads at a time."""
    leading: set[str] = set()
    guards: list[int] = []

    def candidate(name: str) -> Callable[[Leadership], Awaitable[None]]:
        async def lead(leadership: Leadership) -> None:
            assert not leading
            leading.add(name)
            await client.put("/data", name.encode(), guard=leadership.guard)
            guards.append(leadership.guard.create_revision)
            leading.remove(name)

        return lead

    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
        for index in range(5):
            group.create_task(Election(client, f"control-{index}", ttl=TTL).run(candidate(f"control-{index}")))
    assert len(set(guards)) == 5
    assert guards == sorted(guards)
