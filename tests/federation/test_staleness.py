"""What the clock adds to the picture: which silences have passed, and that we vouch; never more than was measured."""

import asyncio
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from federation.model import (
    ExportedService,
    Freshness,
    Liveness,
    MemberCluster,
    NetworkName,
    ServiceKey,
    ServicePolicy,
    WhenStale,
)
from federation.peering.silences import Silences
from federation.snapshot import EMPTY, VOUCHED_KEY, Change, Section, Snapshot, apply
from federation.staleness import silences, spans_that_matter, vouching_period
from federation.store import MeshStore
from tests.support import virtual_time
from tests.support.trust import EAST, WEST
from trust.spiffe import Namespace

THEN = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
CART, PAY = (ServiceKey(Namespace("shop"), name) for name in ("cart", "pay"))


def drop(key: ServiceKey, seconds: float) -> Change:
    return Change(Section.POLICIES, key, ServicePolicy(WhenStale.DROP, timedelta(seconds=seconds)))


def silent(cluster: str, seconds: float, state: Liveness = Liveness.STALE) -> Change:
    lasts = timedelta(seconds=seconds)
    return Change(Section.FRESHNESS, cluster, Freshness(state, since=THEN, heard=THEN, silent=lasts))


def imported(key: ServiceKey) -> list[Change]:
    west = MemberCluster(WEST, NetworkName("w"), "eu", ())
    offer = ExportedService(WEST, key, (), (), changed_at=THEN)
    return [Change(Section.MEMBERS, WEST, west), Change(Section.IMPORTS, (WEST, key), offer)]


def test_only_the_longest_span_that_has_passed_is_told_of_a_silent_member() -> None:
    picture = apply(EMPTY, [drop(CART, 30), drop(PAY, 5), silent(WEST, 20), silent(EAST, 90, Liveness.GONE)])
    assert spans_that_matter(picture) == (5 * SECOND, 30 * SECOND)
    assert silences(picture) == {WEST: 5 * SECOND, EAST: 30 * SECOND}


def test_who_is_heard_or_was_never_heard_is_silent_for_nobody() -> None:
    for state in (Liveness.LIVE, Liveness.UNKNOWN):
        assert silences(apply(EMPTY, [drop(CART, 5), silent(WEST, 99, state)])) == {}


def test_without_a_service_that_drops_no_silence_matters() -> None:
    local = Change(Section.POLICIES, CART, ServicePolicy(WhenStale.PREFER_LOCAL))
    picture = apply(EMPTY, [local, silent(WEST, 99), *imported(CART)])
    assert silences(picture) == {}
    assert vouching_period(picture) is None


def test_we_vouch_three_times_within_the_shortest_span_and_at_most_once_a_second() -> None:
    assert vouching_period(apply(EMPTY, [drop(CART, 30)])) is None  # nobody else offers it
    assert vouching_period(apply(EMPTY, [drop(CART, 30), *imported(CART)])) == 10 * SECOND
    assert vouching_period(apply(EMPTY, [drop(CART, 30), drop(PAY, 12), *imported(PAY)])) == 4 * SECOND
    assert vouching_period(apply(EMPTY, [drop(CART, 2), *imported(CART)])) == SECOND


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(2, 60), max_size=3),
    st.dictionaries(
        st.sampled_from([EAST, WEST]), st.tuples(st.sampled_from(list(Liveness)), st.integers(0, 90)), max_size=2
    ),
)
def test_nothing_is_dropped_before_that_much_silence_was_measured(
    spans: dict[str, int], members: dict[str, tuple[Liveness, int]]
) -> None:
    policies = [drop(ServiceKey(Namespace("shop"), name), seconds) for name, seconds in spans.items()]
    picture = apply(EMPTY, [*policies, *(silent(name, seconds, state) for name, (state, seconds) in members.items())])
    found = silences(picture)
    for name, (state, seconds) in members.items():
        is_silent = state in (Liveness.STALE, Liveness.GONE)
        for span in spans.values():
            passed = name in found and found[name] >= timedelta(seconds=span)
            assert passed == (is_silent and seconds >= span)


def test_every_replica_follows_what_the_leader_measured_and_no_clock_of_its_own() -> None:
    async def scenario() -> None:
        store = MeshStore(frozenset())
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(Silences(store).run())
            store.apply([drop(CART, 30), silent(WEST, 29)])
            await asyncio.sleep(100_000)  # a leader that is away, an etcd that is: nothing more was measured
            assert store.snapshot.silences == {}
            store.apply([silent(WEST, 30)])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.sleep(1)
            assert store.snapshot.silences == {WEST: 30 * SECOND}
            store.apply([silent(WEST, 0, Liveness.LIVE)])
            await asyncio.sleep(1)
            assert store.snapshot.silences == {}
            running.cancel()

    virtual_time.run(scenario())


def test_we_vouch_as_often_as_somebody_needs_and_never_count_as_a_change() -> None:
    async def scenario() -> tuple[int, ...]:
        store = MeshStore(frozenset())
        counts: list[int] = []

        def count(picture: Snapshot) -> None:
            if (now := picture.vouched.get(VOUCHED_KEY, 0)) and now not in counts:
                counts.append(now)

        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(Silences(store).run())
            await asyncio.sleep(100)
            assert store.snapshot.revision == 0  # nobody needs it
            store.apply([drop(CART, 30), *imported(CART)])
            revision = store.snapshot.revision
            for _ in range(95):
                await asyncio.sleep(1)
                count(store.snapshot)
            assert store.changed_since(revision) is None
            store.apply([Change(Section.POLICIES, CART, None)])
            stopped = store.snapshot.revision
            await asyncio.sleep(100)
            assert store.snapshot.revision == stopped
            running.cancel()
        return tuple(counts)

    first = virtual_time.run(scenario())
    assert len(first) == 10  # at once, and every ten seconds
    assert first == tuple(range(first[0], first[0] + 10))
    assert virtual_time.run(scenario())[0] != first[0]  # another life is no repetition
