"""The verdict on a silent peer, and when it is worth a write to etcd."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from federation.model import Freshness, Liveness
from federation.peering.freshness import STALE_AFTER, TELL_EVERY, is_worth_telling, judge

THEN = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def test_a_peer_that_was_never_heard_is_unknown_however_long_it_is_silent() -> None:
    verdict = judge(None, heard=None, silence=timedelta(days=1), now=THEN)
    assert verdict == Freshness(Liveness.UNKNOWN, since=THEN)


def test_a_peer_is_live_when_heard_and_stale_after_four_seconds_of_silence() -> None:
    live = judge(None, heard=THEN, silence=timedelta(0), now=THEN)
    assert live == Freshness(Liveness.LIVE, since=THEN, heard=THEN)
    still = judge(live, heard=THEN, silence=STALE_AFTER - SECOND, now=THEN + 3 * SECOND)
    assert still == live
    stale = judge(live, heard=THEN, silence=STALE_AFTER, now=THEN + STALE_AFTER)
    assert stale == Freshness(Liveness.STALE, since=THEN + STALE_AFTER, heard=THEN)
    back = judge(stale, heard=THEN + 9 * SECOND, silence=timedelta(0), now=THEN + 9 * SECOND)
    assert back == Freshness(Liveness.LIVE, since=THEN + 9 * SECOND, heard=THEN + 9 * SECOND)


def test_a_new_leader_lets_the_old_verdict_stand_until_it_has_listened_long_enough() -> None:
    told = Freshness(Liveness.LIVE, since=THEN, heard=THEN)
    assert judge(told, heard=None, silence=SECOND, now=THEN + SECOND) == told
    assert judge(told, heard=None, silence=STALE_AFTER, now=THEN + 5 * SECOND).state is Liveness.STALE


def test_a_stale_peer_is_not_revived_by_a_new_leader_that_has_not_heard_it() -> None:
    told = Freshness(Liveness.STALE, since=THEN, heard=THEN)
    assert judge(told, heard=None, silence=timedelta(0), now=THEN + SECOND) == told


def test_etcd_is_told_changes_of_state_at_once_and_signs_of_life_now_and_then() -> None:
    live = Freshness(Liveness.LIVE, since=THEN, heard=THEN)
    assert is_worth_telling(None, live)
    assert is_worth_telling(live, Freshness(Liveness.STALE, since=THEN, heard=THEN))
    assert not is_worth_telling(live, Freshness(Liveness.LIVE, since=THEN, heard=THEN + SECOND))
    assert is_worth_telling(live, Freshness(Liveness.LIVE, since=THEN, heard=THEN + TELL_EVERY))


@given(st.lists(st.tuples(st.booleans(), st.integers(min_value=0, max_value=9)), max_size=20))
def test_since_is_the_moment_of_the_last_change_of_state(steps: list[tuple[bool, int]]) -> None:
    verdict, now, heard = None, THEN, None
    for is_heard, seconds in steps:
        now += seconds * SECOND
        heard = now if is_heard else heard
        following = judge(verdict, heard=heard, silence=now - (heard or THEN), now=now)
        if verdict is None or following.state is not verdict.state:
            assert following.since == now
        else:
            assert following.since == verdict.since
        verdict = following
