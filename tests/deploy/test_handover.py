"""When a replica leaves its proxies to others: by a clock of the test's own."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from deploy.control.handover import CUT_OFF, STEADY, Handover, Sight
from federation.etcd.health import Exchange, Health
from tests.federation.test_etcd_health import at

NEVER = timedelta()
LONG = timedelta(minutes=5)
STEP = 0.5  # seconds between looks


def follow(handover: Handover, sight: Sight, start: float, seconds: float) -> bool:
    """Looks twice a second; the time of being cut off, or following, runs."""
    is_over = handover.is_over
    for number in range(int(seconds / STEP) + 1):
        passed = timedelta(seconds=number * STEP)
        cut_off = sight.cut_off + passed if sight.cut_off else NEVER
        following = sight.following + passed if sight.following else NEVER
        is_over = handover.look(Sight(cut_off, following, sight.is_vouched), start + number * STEP)
    return is_over


def test_one_that_is_cut_off_hands_over_to_one_that_is_not() -> None:
    handover = Handover()
    assert not follow(handover, Sight(NEVER, LONG, False), 0, 60)
    assert not follow(handover, Sight(CUT_OFF, NEVER, True), 60, 0.5), "one look may be an accident"
    assert follow(handover, Sight(CUT_OFF, NEVER, True), 61, 0.5)


def test_a_break_that_is_short_moves_nobody() -> None:
    handover = Handover()
    assert not follow(handover, Sight(timedelta(seconds=0.1), NEVER, True), 0, CUT_OFF.total_seconds() - 0.5)
    assert not follow(handover, Sight(NEVER, timedelta(seconds=0.1), True), 10, 60)


@given(st.lists(st.tuples(st.timedeltas(NEVER, LONG), st.timedeltas(NEVER, LONG))))
def test_where_no_replica_has_etcd_nobody_moves(seen: list[tuple[timedelta, timedelta]]) -> None:
    handover = Handover()
    for number, (cut_off, following) in enumerate(seen):
        assert not handover.look(Sight(cut_off, following, is_vouched=False), number * STEP)


def test_proxies_come_back_when_etcd_is_followed_steadily() -> None:
    handover = Handover()
    follow(handover, Sight(CUT_OFF, NEVER, True), 0, 5)
    assert follow(handover, Sight(NEVER, timedelta(seconds=0.1), True), 10, STEADY.total_seconds() - 1)
    assert follow(handover, Sight(timedelta(seconds=0.1), NEVER, True), 20, 1), "it flaps"
    assert not follow(handover, Sight(NEVER, timedelta(seconds=0.1), True), 30, STEADY.total_seconds())


def test_proxies_come_back_when_nobody_else_is_left() -> None:
    handover = Handover()
    follow(handover, Sight(CUT_OFF, NEVER, True), 0, 5)
    assert follow(handover, Sight(LONG, NEVER, False), 10, 0.5), "one answer may get lost"
    assert not follow(handover, Sight(LONG, NEVER, False), 11, 0.5)
    assert follow(handover, Sight(LONG, NEVER, True), 20, 1.5)


def test_following_is_told_from_the_answers_of_watches() -> None:
    health = Health()
    assert (health.cut_off_for(at(1)), health.followed_for(at(1))) == (NEVER, NEVER)
    for second in range(10):
        health.answered(Exchange.WATCH, None, now=at(second))
    assert health.followed_for(at(9.5)) == timedelta(seconds=9.5)
    assert health.followed_for(at(11.5)) == NEVER, "etcd has not been heard for two seconds"
    health.failed(Exchange.WATCH, "silent", timedelta(seconds=4), now=at(13))
    health.answered(Exchange.READ, None, now=at(14))
    assert (health.cut_off_for(at(15)), health.followed_for(at(15))) == (timedelta(seconds=6), NEVER)
    health.answered(Exchange.WATCH, None, now=at(20))
    assert (health.cut_off_for(at(21)), health.followed_for(at(21))) == (NEVER, timedelta(seconds=1))
