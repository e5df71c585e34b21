"""What is said of etcd's health: by the clock of the test, and by a real etcd in real trouble."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.etcd import EtcdClient, EtcdFull, EtcdUnavailable
from federation.etcd.health import Ailment, EtcdProblem, Exchange, Health
from tests.federation.test_etcd_faults import following
from tests.support.etcd import QUOTA, Etcd, fill, start_etcd, start_etcd_cluster
from tests.support.waiting import eventually

START = datetime(2026, 1, 1, tzinfo=UTC)
QUICK, LATE = timedelta(milliseconds=5), timedelta(milliseconds=800)
LASTS = timedelta(seconds=3)
"""After which what is wrong is told. By the clock of the test this is shown; nobody waits for it with a real etcd."""
WINDOW = 15
"""Seconds after which nothing is said of a late answer any more."""


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def ailments(health: Health, now: datetime) -> list[Ailment]:
    return [problem.ailment for problem in health.problems(now, missing=0)]


def test_a_failure_that_passes_is_no_problem() -> None:
    health = Health()
    health.failed(Exchange.WATCH, "reset", timedelta(), now=at(0))
    assert ailments(health, at(2)) == []
    health.answered(Exchange.WATCH, QUICK, now=at(2.5))
    assert ailments(health, at(10)) == []


def test_failures_that_last_are_told_with_their_beginning_and_the_latest_reason() -> None:
    health = Health()
    health.answered(Exchange.WATCH, QUICK, now=at(0))
    health.failed(Exchange.WATCH, "silent", timedelta(seconds=4), now=at(5))
    health.failed(Exchange.WATCH, "connection refused", timedelta(), now=at(7))
    expected = (EtcdProblem(Ailment.UNREACHABLE, "connection refused", at(1)),)
    assert health.problems(at(7), missing=0) == health.problems(at(500), missing=0) == expected
    health.answered(Exchange.WATCH, None, now=at(501))
    assert ailments(health, at(502)) == []


def test_one_kind_of_exchange_that_fails_while_others_succeed_is_named() -> None:
    health = Health()
    for second in range(10):
        health.failed(Exchange.WRITE, "no answer", timedelta(), now=at(second))
        health.answered(Exchange.WATCH, QUICK, now=at(second + 0.5))
    (problem,) = health.problems(at(10), missing=0)
    assert problem == EtcdProblem(Ailment.UNREACHABLE, "writes fail: no answer", at(0))
    assert ailments(health, at(60)) == []  # nobody tries any more


def test_an_outage_that_is_over_for_one_kind_of_exchange_is_over_for_all() -> None:
    health = Health()
    for second in range(5):
        health.failed(Exchange.WATCH, "failed to connect", timedelta(), now=at(second))
        health.failed(Exchange.RENEWAL, "failed to connect", timedelta(), now=at(second))
    assert ailments(health, at(5)) == [Ailment.UNREACHABLE]
    health.answered(Exchange.WATCH, None, now=at(6))
    assert ailments(health, at(6)) == []  # who led before may have nothing to renew now
    health.failed(Exchange.RENEWAL, "no answer", timedelta(), now=at(7))
    health.answered(Exchange.WATCH, None, now=at(8))
    (problem,) = health.problems(at(8), missing=0)
    assert problem.message == "renewals fail: no answer"


def test_a_full_etcd_is_read_only_and_not_unreachable_until_a_write_is_taken() -> None:
    health = Health()
    for second in range(10):
        health.refused_for_space("full", now=at(second))
        health.answered(Exchange.RENEWAL, QUICK, now=at(second))
    (problem,) = health.problems(at(10), missing=0)
    assert (problem.ailment, problem.since) == (Ailment.READ_ONLY, at(0))
    health.answered(Exchange.WRITE, QUICK, now=at(11))
    assert ailments(health, at(11)) == []


def test_many_late_answers_are_slowness_and_single_ones_are_not() -> None:
    health = Health()
    for second in range(20):
        health.answered(Exchange.WATCH, LATE if second % 8 == 0 else QUICK, now=at(second))
        assert ailments(health, at(second)) == []
    for second in range(20, 30):
        health.answered(Exchange.WATCH, LATE, now=at(second))
    (problem,) = health.problems(at(30), missing=0)
    assert problem.ailment is Ailment.SLOW
    assert problem.message == "watches take up to 0.8 s"
    since = problem.since
    health.answered(Exchange.WATCH, LATE, now=at(31))
    assert health.problems(at(31), missing=0)[0].since == since
    for second in range(32, 37):
        health.answered(Exchange.WATCH, QUICK, now=at(second))
    assert ailments(health, at(37)) == []
    health.answered(Exchange.WATCH, LATE, now=at(37))
    for second in range(38, 60):
        assert ailments(health, at(second)) == []  # what was slow before does not count again
        health.answered(Exchange.WATCH, QUICK, now=at(second))


SEEDS = st.integers(0, 2**32)


def exchanges(seed: int) -> list[float]:
    """Returns the seconds at which there are exchanges, one in each second or so."""
    chance = Random(seed)
    return list(accumulate(chance.uniform(0.5, 1.5) for _ in range(40)))


@given(SEEDS, st.integers(0, 9), st.booleans())
def test_three_late_answers_in_ten_are_told_soon(seed: int, first: int, is_healthy_before: bool) -> None:
    health, slow_since = Health(), None
    for number, moment in enumerate(exchanges(seed)):
        is_slow = (number + first) % 10 in (0, 3, 7) and (number >= 20 or not is_healthy_before)
        if is_slow and slow_since is None:
            slow_since = moment
        health.answered(Exchange.WATCH, LATE if is_slow else QUICK, now=at(moment))
        if slow_since is None:
            assert ailments(health, at(moment)) == []
        elif Ailment.SLOW in ailments(health, at(moment)):
            assert timedelta(seconds=moment - slow_since) >= LASTS
            return
        else:
            assert moment - slow_since < 20


@given(st.lists(SEEDS, min_size=1, max_size=3), st.floats(0, 30), st.floats(0.6, 4))
def test_one_stall_is_never_told(seeds: list[int], begins: float, lasts: float) -> None:
    health, ends = Health(), begins + lasts
    asked = sorted(moment for seed in seeds for moment in exchanges(seed))
    answers = sorted((ends if begins <= moment < ends else moment + 0.005, moment) for moment in asked)
    for answered, moment in answers:
        health.answered(Exchange.READ, timedelta(seconds=answered - moment), now=at(answered))
        assert ailments(health, at(answered)) == []


@given(st.lists(st.tuples(st.floats(0.01, 4), st.booleans()), min_size=1), st.lists(st.floats(0.01, 8)))
def test_slowness_ends_with_the_window_whether_anybody_asks_or_not(
    answers: list[tuple[float, bool]], later: list[float]
) -> None:
    health, moment = Health(), 0.0
    for gap, is_slow in (*answers, (1.0, True)):
        moment += gap
        health.answered(Exchange.WRITE, LATE if is_slow else QUICK, now=at(moment))
    for after in accumulate(later):
        if after > WINDOW:
            break
        health.answered(Exchange.WRITE, QUICK, now=at(moment + after))
    assert ailments(health, at(moment + WINDOW + 1)) == []


def test_a_loss_is_told_until_all_is_written_again() -> None:
    health = Health()
    health.lost(now=at(1))
    health.lost(now=at(2))
    (problem,) = health.problems(at(9), missing=3)
    assert (problem.ailment, problem.since) == (Ailment.LOST_DATA, at(1))
    assert "3 records" in problem.message
    assert health.problems(at(10), missing=0) == health.problems(at(11), missing=3) == ()


@asynccontextmanager
async def watched(etcd: Etcd, *others: Etcd) -> AsyncIterator[tuple[EtcdClient, Callable[[], list[Ailment]]]]:
    """A client that follows a prefix, as each control plane does, and what it finds wrong, should it last."""
    async with EtcdClient(tuple(each.url for each in (etcd, *others)), timeout=timedelta(seconds=2)) as client:
        await client.put("/a/x", b"1")
        async with following(client):
            yield client, lambda: ailments(client.health, datetime.now(UTC) + LASTS)


async def test_an_etcd_that_is_away_is_unreachable_until_it_is_back(tmp_path: Path) -> None:
    async with start_etcd(tmp_path) as etcd, watched(etcd) as (_, found):
        assert found() == []
        etcd.pause()
        await eventually(lambda: found() == [Ailment.UNREACHABLE])
        etcd.resume()
        await eventually(lambda: found() == [])
        await etcd.kill()
        await eventually(lambda: found() == [Ailment.UNREACHABLE])
        await etcd.start()
        await eventually(lambda: found() == [])


async def test_an_etcd_whose_quota_is_used_up_is_read_only_until_there_is_room(tmp_path: Path) -> None:
    async with start_etcd(tmp_path, arguments=QUOTA) as etcd, watched(etcd) as (client, found):
        await fill(etcd)
        with pytest.raises(EtcdFull):
            await client.put("/a/x", b"2")
        assert found() == [Ailment.READ_ONLY]
        await etcd.make_room()
        await client.put("/a/x", b"3")
        assert found() == []


async def test_an_etcd_that_answers_late_is_slow(tmp_path: Path) -> None:
    async with start_etcd(tmp_path) as etcd, EtcdClient((etcd.url,)) as client, asyncio.timeout(60):
        async with etcd.slowed(1.0):
            while ailments(client.health, datetime.now(UTC) + LASTS) != [Ailment.SLOW]:
                await client.put("/a/x", b"1")
                await asyncio.sleep(0.1)  # longer than it is awake: the next put finds it asleep
        while ailments(client.health, datetime.now(UTC) + LASTS):
            await client.put("/a/x", b"2")
            await asyncio.sleep(0.1)


async def test_one_lost_member_of_three_is_no_problem_and_two_are(tmp_path: Path) -> None:
    async with start_etcd_cluster(tmp_path) as members, watched(*members) as (client, found):
        await members[0].kill()
        async with asyncio.timeout(60):
            while True:
                try:
                    await client.put("/a/x", b"2")
                    break
                except EtcdUnavailable:
                    await asyncio.sleep(0.1)
        await eventually(lambda: found() == [])
        await members[1].kill()
        await eventually(lambda: Ailment.UNREACHABLE in found())
        await members[1].start()
        await client.put("/a/x", b"3")
        await eventually(lambda: found() == [])
