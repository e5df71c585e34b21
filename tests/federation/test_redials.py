"""How often peers are dialled again, and how many at once."""

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from federation.model import Thresholds
from federation.peering.freshness import SHORTEST_ANSWER, answer_limit, longest_silence
from federation.peering.redials import FEW, Turns, back_off, draw
from federation.xds.server import SERVER_OPTIONS, patient_options

_MINUTE = timedelta(minutes=1)
_FAILURES = st.integers(0, 10**9)
_MISSED = st.integers(0, 10_000)


@given(_FAILURES, st.integers(0, FEW))
def test_a_small_mesh_waits_two_seconds_at_most(failures: int, missed: int) -> None:
    shortest, longest = back_off(failures, missed)
    assert longest == 2 * shortest == min(timedelta(seconds=2), timedelta(milliseconds=100) * 2 ** min(failures, 10))


@given(st.integers(5, 10**9), st.integers(1, 120))
def test_peers_missed_are_dialled_eight_times_a_second_all_together_however_many_they_are(
    failures: int, missed: int
) -> None:
    shortest, longest = back_off(failures, missed)
    assert missed / ((shortest + longest) / 2).total_seconds() <= FEW


@given(_FAILURES, _MISSED)
def test_a_wait_grows_with_failures_and_with_those_missed_and_ends_at_half_a_minute(failures: int, missed: int) -> None:
    shortest, longest = back_off(failures, missed)
    assert timedelta(milliseconds=50) <= shortest <= longest <= timedelta(seconds=30)
    for more in (back_off(failures + 1, missed), back_off(failures, missed + 1)):
        assert more[0] >= shortest
        assert more[1] >= longest
    assert shortest.total_seconds() <= draw(failures, missed) <= longest.total_seconds()


@given(st.timedeltas(min_value=timedelta(seconds=2), max_value=timedelta(days=9)))
def test_who_stands_silence_waits_longer_for_an_answer_and_never_less_than_five_seconds(stale: timedelta) -> None:
    limit = answer_limit(Thresholds(stale_after=stale, gone_after=None))
    assert SHORTEST_ANSWER <= limit <= timedelta(seconds=15)
    assert limit == SHORTEST_ANSWER or limit <= longest_silence(Thresholds(stale_after=stale, gone_after=None))


def test_pings_of_a_patient_server_may_stay_unanswered_as_long_and_nothing_else_is_another() -> None:
    usual, patient = dict(SERVER_OPTIONS), dict(patient_options(timedelta(seconds=15)))
    assert patient == {**usual, "grpc.keepalive_timeout_ms": 15_000, "grpc.http2.ping_timeout_ms": 15_000}
    assert patient_options(SHORTEST_ANSWER) == SERVER_OPTIONS


async def _settle() -> None:
    """Lets all tasks go on until each of them waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_eight_are_dialled_at_once_and_each_that_ends_gives_way_to_the_next() -> None:
    turns, dialling, dialled, ends = Turns(), set[int](), list[int](), [asyncio.Event() for _ in range(20)]

    async def dial(number: int) -> None:
        async with turns.take(_MINUTE) as end:
            dialling.add(number)
            dialled.append(number)
            await ends[number].wait()
            if number % 2:  # it is heard, and goes on listening
                end()
                end()
                dialling.remove(number)
                await asyncio.Event().wait()
            dialling.remove(number)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(dial(number)) for number in range(20)]
        for ended in range(20):
            await _settle()
            assert len(dialling) == min(FEW, 20 - ended)
            ends[ended].set()
        await _settle()
        assert not dialling
        assert dialled == list(range(20))
        for task in tasks:
            task.cancel()
    async with asyncio.timeout(60), AsyncExitStack() as taken:
        for _ in range(FEW):
            await taken.enter_async_context(turns.take(_MINUTE))


async def test_who_answers_nothing_does_not_keep_its_turn_nor_does_who_gives_up_waiting() -> None:
    turns, turned = Turns(), asyncio.Event()

    async def hang(longest: timedelta) -> None:
        async with turns.take(longest):
            turned.set()
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        hanging = [group.create_task(hang(timedelta(milliseconds=10))) for _ in range(FEW)]
        await _settle()
        waiting = [group.create_task(hang(_MINUTE)) for _ in range(3)]
        await _settle()
        for task in waiting:
            task.cancel()
        await _settle()
        turned.clear()
        last = group.create_task(hang(_MINUTE))
        async with asyncio.timeout(60):
            await turned.wait()
        for task in (*hanging, last):
            task.cancel()
