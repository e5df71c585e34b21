"""The verdict on a silent peer, and when it is worth a write to etcd."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.model import Freshness, Liveness, Thresholds
from federation.peering.freshness import LOOK_EVERY, TELL_EVERY, Silence, is_worth_telling, judge, tell_period

THEN = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
NONE = timedelta()
DAY = timedelta(days=1)
USUAL = Thresholds()
QUICK = Thresholds(stale_after=4 * SECOND, gone_after=60 * SECOND)


def test_a_peer_that_was_never_heard_is_unknown_however_long_it_is_silent() -> None:
    verdict = judge(None, heard=None, silence=9 * DAY, thresholds=USUAL, now=THEN)
    assert verdict == Freshness(Liveness.UNKNOWN, since=THEN)


def test_a_peer_is_live_when_heard_then_stale_then_gone_and_back_with_the_first_sign() -> None:
    live = judge(None, heard=THEN, silence=NONE, thresholds=USUAL, now=THEN)
    assert live == Freshness(Liveness.LIVE, since=THEN, heard=THEN)
    still = judge(live, heard=THEN, silence=3 * SECOND, thresholds=USUAL, now=THEN + 3 * SECOND)
    assert still == live
    stale = judge(live, heard=THEN, silence=4 * SECOND, thresholds=USUAL, now=THEN + 4 * SECOND)
    assert stale == Freshness(Liveness.STALE, since=THEN + 4 * SECOND, heard=THEN, silent=4 * SECOND)
    gone = judge(stale, heard=THEN, silence=DAY, thresholds=USUAL, now=THEN + DAY)
    assert gone == Freshness(Liveness.GONE, since=THEN + DAY, heard=THEN, silent=DAY)
    back = judge(gone, heard=THEN + 2 * DAY, silence=NONE, thresholds=USUAL, now=THEN + 2 * DAY)
    assert back == Freshness(Liveness.LIVE, since=THEN + 2 * DAY, heard=THEN + 2 * DAY)


def test_with_no_second_threshold_nobody_is_ever_gone() -> None:
    never = Thresholds(gone_after=None)
    stale = Freshness(Liveness.STALE, since=THEN, heard=THEN, silent=DAY)
    assert judge(stale, heard=THEN, silence=999 * DAY, thresholds=never, now=THEN).state is Liveness.STALE


def test_a_new_leader_lets_the_old_verdict_stand_until_it_has_listened_long_enough() -> None:
    told = Freshness(Liveness.LIVE, since=THEN, heard=THEN)
    assert judge(told, heard=None, silence=SECOND, thresholds=USUAL, now=THEN + SECOND) == told
    verdict = judge(told, heard=None, silence=4 * SECOND, thresholds=USUAL, now=THEN + 5 * SECOND)
    assert verdict.state is Liveness.STALE


@pytest.mark.parametrize("state", [Liveness.STALE, Liveness.GONE])
def test_a_silent_peer_is_not_revived_by_a_new_leader_that_has_not_heard_it(state: Liveness) -> None:
    told = Freshness(state, since=THEN, heard=THEN, silent=90 * SECOND)
    verdict = judge(told, heard=None, silence=NONE, thresholds=QUICK, now=THEN + SECOND, known=told.silent)
    assert verdict == told


def test_a_new_leader_goes_on_counting_where_the_old_one_stopped() -> None:
    told = Freshness(Liveness.STALE, since=THEN, heard=THEN, silent=50 * SECOND)
    verdict = judge(told, heard=None, silence=9 * SECOND, thresholds=QUICK, now=THEN, known=told.silent)
    assert (verdict.state, verdict.silent) == (Liveness.STALE, 59 * SECOND)
    verdict = judge(verdict, heard=None, silence=10 * SECOND, thresholds=QUICK, now=THEN, known=told.silent)
    assert (verdict.state, verdict.silent) == (Liveness.GONE, 60 * SECOND)


def test_hours_without_any_leader_make_nobody_gone() -> None:
    """The silence of our own control plane is not that of the peer."""
    told = Freshness(Liveness.STALE, since=THEN, heard=THEN, silent=10 * SECOND)
    verdict = judge(told, heard=None, silence=5 * SECOND, thresholds=QUICK, now=THEN + 9 * DAY, known=told.silent)
    assert verdict.state is Liveness.STALE


def test_a_peer_that_is_gone_only_by_an_old_threshold_is_back_at_once() -> None:
    told = Freshness(Liveness.GONE, since=THEN, heard=THEN, silent=90 * SECOND)
    verdict = judge(told, heard=None, silence=NONE, thresholds=USUAL, now=THEN + SECOND, known=told.silent)
    assert verdict.state is Liveness.STALE


def test_time_in_which_the_process_stood_still_is_no_silence_of_the_peer() -> None:
    silence = Silence(NONE)
    assert silence.look(LOOK_EVERY) == LOOK_EVERY
    assert silence.look(DAY) == 3 * LOOK_EVERY  # paused: at most two looks count
    assert silence.look(DAY - SECOND) == 3 * LOOK_EVERY
    silence.end(DAY)
    assert silence.look(DAY + LOOK_EVERY) == LOOK_EVERY


def test_etcd_is_told_changes_of_state_at_once_and_signs_of_life_now_and_then() -> None:
    live = Freshness(Liveness.LIVE, since=THEN, heard=THEN)
    assert is_worth_telling(None, live)
    assert is_worth_telling(live, Freshness(Liveness.STALE, since=THEN, heard=THEN))
    assert not is_worth_telling(live, Freshness(Liveness.LIVE, since=THEN, heard=THEN + SECOND))
    assert is_worth_telling(live, Freshness(Liveness.LIVE, since=THEN, heard=THEN + TELL_EVERY))


@given(st.integers(2, 7 * 86_400))
def test_signs_of_life_are_told_each_five_seconds_or_twice_in_the_silence_of_a_live_peer(stale_after: int) -> None:
    period = tell_period(Thresholds(stale_after=stale_after * SECOND, gone_after=None))
    assert period == max(5 * SECOND, stale_after * SECOND / 2)
    live = Freshness(Liveness.LIVE, since=THEN, heard=THEN)
    almost = Freshness(Liveness.LIVE, since=THEN, heard=THEN + period - LOOK_EVERY)
    assert not is_worth_telling(live, almost, renew_after=period)
    assert is_worth_telling(live, Freshness(Liveness.LIVE, since=THEN, heard=THEN + period), renew_after=period)
    stale = Freshness(Liveness.STALE, since=THEN, heard=THEN)
    assert is_worth_telling(live, stale, renew_after=period)
    assert is_worth_telling(stale, live, renew_after=period)


def test_etcd_is_told_a_silence_when_a_span_passes_that_matters_and_else_ever_more_seldom() -> None:
    def silent(lasts: timedelta) -> Freshness:
        return Freshness(Liveness.STALE, since=THEN, heard=THEN, silent=lasts)

    assert not is_worth_telling(silent(4 * SECOND), silent(6 * SECOND))
    assert is_worth_telling(silent(4 * SECOND), silent(6 * SECOND), spans=(5 * SECOND,))
    assert is_worth_telling(silent(4 * SECOND), silent(6 * SECOND), spans=(6 * SECOND,))
    assert not is_worth_telling(silent(6 * SECOND), silent(7 * SECOND), spans=(6 * SECOND,))
    assert is_worth_telling(silent(4 * SECOND), silent(9 * SECOND))
    told, writes = silent(4 * SECOND), 0
    for seconds in range(4, 86_400):
        if is_worth_telling(told, silent(seconds * SECOND)):
            told, writes = silent(seconds * SECOND), writes + 1
    assert writes < 120
    assert told.silent > 0.9 * DAY


@given(st.lists(st.tuples(st.booleans(), st.integers(min_value=0, max_value=90)), max_size=20))
def test_since_is_the_moment_of_the_last_change_of_state(steps: list[tuple[bool, int]]) -> None:
    verdict, now, heard = None, THEN, None
    for is_heard, seconds in steps:
        now += seconds * SECOND
        heard = now if is_heard else heard
        following = judge(verdict, heard=heard, silence=now - (heard or THEN), thresholds=QUICK, now=now)
        if verdict is None or following.state is not verdict.state:
            assert following.since == now
        else:
            assert following.since == verdict.since
        verdict = following


_STEPS = st.lists(
    st.one_of(
        st.just("heard"),
        st.just("new leader"),
        st.tuples(st.just("wait"), st.integers(0, 120)),
        st.tuples(st.just("stand still"), st.integers(0, 100_000)),
        st.tuples(st.just("clock"), st.integers(-100_000, 100_000)),
    ),
    max_size=25,
)


@given(_STEPS)
def test_nobody_is_called_silent_for_longer_than_he_was_listened_to_in_vain(steps: list[object]) -> None:
    """Whatever pauses, clocks and leaders do: neither stale nor gone before that much was really listened to."""
    at, wall, listened = NONE, THEN, NONE
    silence, told, heard, known = Silence(at), None, None, NONE
    verdict: Freshness | None = None
    for step in steps:
        looks = 0
        match step:
            case "heard":
                heard, listened = wall, NONE
                silence.end(at)
            case "new leader":
                silence, heard, told = Silence(at), None, verdict
                known = told.silent if told else NONE
            case ("wait", int(seconds)):
                looks = 2 * seconds
            case ("stand still", int(seconds)):
                at += seconds * SECOND
                listened += 2 * LOOK_EVERY
            case ("clock", int(seconds)):
                wall += seconds * SECOND
        for _ in range(looks + 1):
            if looks:
                at, wall, listened = at + LOOK_EVERY, wall + LOOK_EVERY, listened + LOOK_EVERY
            lasts = silence.look(at)
            verdict = judge(verdict, heard=heard, silence=lasts, thresholds=QUICK, now=wall, known=known)
            assert verdict.silent <= listened
            if verdict.state is Liveness.GONE:
                assert listened >= 60 * SECOND
            if verdict.state is Liveness.STALE:
                assert listened >= 4 * SECOND
