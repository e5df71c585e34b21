"""What a drain decides: ramps, counters, when to give up, when nothing is carried."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.cli import draining
from deploy.cli.draining import FULL, Errors, Lane, Mark, Scope, Tally, climb, parse_abort_rule, ramp
from federation.reports import DrainReport, LoadReport, ServiceLoad
from tests.support.model_callers import CART, EPOCH, REDIS, service_report

WEST = Scope(cluster="west")
SPANS = st.integers(0, 100_000).map(lambda seconds: timedelta(seconds=seconds))
TO_WEST, TO_EAST = Lane("east", CART, "west"), Lane("east", CART, "east")


def report(
    issued: int,
    *,
    failed: int = 0,
    opened: int = 0,
    at: float = 0.0,
    started: int = 0,
    replica: str = "one",
    member: str = "west",
    service: str = CART,
) -> LoadReport:
    return LoadReport(
        cluster="east",
        replica=replica,
        interval=1.0,
        reporting=1,
        silent=(),
        at=EPOCH + timedelta(seconds=at),
        started=EPOCH + timedelta(seconds=started),
        loads=(ServiceLoad(service, 80, member, opened, issued, failed),),
    )


@given(SPANS, st.integers(0, FULL))
def test_a_ramp_falls_to_nothing_and_is_never_too_fast(over: timedelta, since: int) -> None:
    steps = ramp(over, since=since)
    weights = [step.weight for step in steps]
    assert weights == sorted(set(weights), reverse=True)
    assert all(0 <= weight < since for weight in weights)
    assert bool(weights) is (since > 0)
    assert not weights or weights[-1] == 0
    assert len(steps) <= draining.MOST_STEPS
    assert len(steps) <= 1 or all(step.span >= draining.SHORTEST_STEP for step in steps)
    assert sum((step.span for step in steps), timedelta()) <= over


@given(SPANS, st.integers(0, FULL))
def test_a_climb_rises_to_all(over: timedelta, since: int) -> None:
    weights = [step.weight for step in climb(over, since=since)]
    assert weights == sorted(set(weights))
    assert all(since < weight <= FULL for weight in weights)
    assert bool(weights) is (since < FULL)
    assert not weights or weights[-1] == FULL


def test_a_ramp_of_five_minutes_has_ten_steps_of_half_a_minute() -> None:
    steps = ramp(timedelta(minutes=5))
    assert [step.weight for step in steps] == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]
    assert {step.span for step in steps} == {timedelta(seconds=30)}


@given(st.decimals(0, "99.9999", places=4).map(float))
def test_a_rule_is_read_back_from_its_own_words(percent: float) -> None:
    rule = parse_abort_rule(f"error-rate>{percent:f}%")
    assert parse_abort_rule(str(rule)).above == pytest.approx(rule.above, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("words", ["error-rate>1%", "error-rate > 1 %", " error-rate>1.0% "])
def test_one_percent_may_be_written_with_spaces(words: str) -> None:
    assert parse_abort_rule(words).above == 0.01


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("error-rate", "in quotes, or the shell takes"),
        ("error-rate>", "in quotes"),
        ("errors>1%", "is no rule"),
        ("error-rate>1", "is no rule"),
        ("error-rate>=1%", "is no rule"),
        ("error-rate<1%", "is no rule"),
        ("error-rate>-1%", "is no rule"),
        ("error-rate>1e3%", "is no rule"),
        ("error-rate>\u0661%", "is no rule"),  # a digit, but none of ours
        ("error-rate>100%", "never holds"),
        ("", "is no rule"),
    ],
)
def test_what_is_no_rule_is_refused_with_the_right_form(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_abort_rule(words)


@pytest.mark.parametrize(
    ("errors", "is_broken"),
    [
        (Errors(1000, 11), True),
        (Errors(1000, 10), False),  # just 1 %
        (Errors(4, 4), False),  # too few to say anything
        (Errors(20, 2), False),  # may be an accident
        (Errors(20, 3), True),
        (Errors(), False),
    ],
)
def test_a_rule_wants_enough_requests(errors: Errors, is_broken: bool) -> None:
    assert parse_abort_rule("error-rate>1%").is_broken_by(errors) is is_broken


def test_counting_begins_with_the_first_report() -> None:
    tally = draining.count(Tally(), [report(500, failed=7, opened=3)])
    assert (tally.issued[TO_WEST], tally.failed[TO_WEST], tally.open[TO_WEST]) == (0, 0, 3)
    tally = draining.count(tally, [report(520, failed=8, opened=1)])
    assert (tally.issued[TO_WEST], tally.failed[TO_WEST], tally.open[TO_WEST]) == (20, 1, 1)


def test_a_replica_that_restarted_counts_from_nothing() -> None:
    tally = draining.count(Tally(), [report(500)])
    tally = draining.count(tally, [report(30, started=9)])
    assert tally.issued[TO_WEST] == 30
    assert draining.count(tally, [report(35, started=9)]).issued[TO_WEST] == 35


def test_a_replica_that_was_silent_for_a_while_is_counted_on_and_its_open_calls_are_not_invented() -> None:
    tally = draining.count(Tally(), [report(500, opened=2)])
    tally = draining.count(tally, [])
    assert tally.open.get(TO_WEST, 0) == 0
    assert draining.count(tally, [report(510)]).issued[TO_WEST] == 10


def test_replicas_and_ports_add_up() -> None:
    tally = draining.count(Tally(), [report(0), report(0, replica="two")])
    assert draining.count(tally, [report(3), report(4, replica="two")]).issued[TO_WEST] == 7


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=30))
def test_sums_are_those_of_the_calls_however_often_it_restarts(calls: list[tuple[int, bool]]) -> None:
    tally = draining.count(Tally(), [report(100)])
    held, started = 100, 0
    for count, is_restarted in calls:
        held, started = (count, started + 1) if is_restarted else (held + count, started)
        tally = draining.count(tally, [report(held, started=started)])
    assert tally.issued[TO_WEST] == sum(count for count, _ in calls)


def test_errors_are_those_of_a_window() -> None:
    marks: tuple[Mark, ...] = ()
    tally = Tally()
    for second in range(30):
        failed = min(second, 10)  # all in the first ten seconds
        tally = draining.count(tally, [report(10 * second, failed=failed, member="east")])
        marks = (*draining.recent(marks, second), Mark(second, tally))
        if second == 10:
            assert draining.errors_since(marks, [TO_EAST]) == Errors(100, 10)
    assert draining.errors_since(marks, [TO_EAST]).failed == 0
    assert draining.rate(marks, [TO_EAST]) == pytest.approx(10)
    assert len(marks) <= draining.WINDOW + 2
    assert draining.rate(marks[:1], [TO_EAST]) is None


def test_what_leaves_and_where_it_goes() -> None:
    lanes = [TO_WEST, TO_EAST, Lane("west", CART, "west"), Lane("west", CART, "east"), Lane("east", REDIS, "west")]
    tally = Tally(issued=dict.fromkeys(lanes, 1))
    assert draining.leaving(WEST, tally) == {TO_WEST, lanes[4]}
    assert draining.leaving(WEST, tally, kept=[REDIS]) == {TO_WEST}
    assert draining.leaving(Scope(cluster="west", service=CART, clients=True), tally) == {TO_WEST, lanes[2]}
    assert draining.diverted(WEST, tally, [CART]) == {TO_EAST}
    assert draining.diverted(Scope(cluster="west", clients=True), tally, [CART]) == {TO_EAST, lanes[3]}


def settled(*reports: LoadReport, scope: Scope = WEST) -> int:
    quiet = draining.settle({}, [], scope)
    for one in reports:
        quiet = draining.settle(quiet, [one], scope)
    return quiet["east", "one"].reports


def test_two_fresh_reports_without_a_call_prove_it() -> None:
    assert settled(report(5, at=0)) == 0
    assert settled(report(5, at=0), report(5, at=1)) == 1
    assert settled(report(5, at=0), report(5, at=1), report(5, at=2)) == 2


@pytest.mark.parametrize(
    "reports",
    [
        [report(5, at=0), report(5, at=0), report(5, at=0)],  # nobody has spoken since
        [report(5, at=0), report(5, at=0.4), report(5, at=0.8)],  # one has, another may not have
        [report(5, at=0), report(5, at=1), report(6, at=2)],
        [report(5, at=0), report(5, at=1), report(5, at=2, opened=1)],
        [report(5, at=0), report(5, at=1), report(5, at=2, started=1)],
    ],
)
def test_what_proves_nothing(reports: list[LoadReport]) -> None:
    assert settled(*reports) == 0


def test_a_call_to_another_member_or_service_proves_nothing_either_way() -> None:
    others = [report(1, at=0, member="east"), report(2, at=1, member="east"), report(3, at=2, member="east")]
    assert settled(*others) == 2
    redis = [report(1, at=0, service=REDIS), report(2, at=1, service=REDIS), report(3, at=2, service=REDIS)]
    assert settled(*redis, scope=Scope(cluster="west", service=CART)) == 2
    assert settled(*redis) == 0


def test_the_lowest_weight_holds() -> None:
    def drain(weight: int, service: str = "", *, clients: bool = False) -> DrainReport:
        return DrainReport(
            cluster="west",
            service=service,
            weight=weight,
            clients=clients,
            sever=False,
            since=EPOCH,
            asked_of="west",
        )

    of_cart = Scope(cluster="west", service=CART)
    assert draining.weight_at("east", [drain(40), drain(20)], WEST) == 20
    assert draining.weight_at("east", [drain(40), drain(20, CART)], WEST) == 40
    assert draining.weight_at("east", [drain(40), drain(20, CART)], of_cart) == 20
    assert draining.weight_at("west", [drain(40)], WEST) == FULL
    assert draining.weight_at("west", [drain(40, clients=True)], WEST) == 40
    assert draining.weight_at("east", [drain(40)], Scope(cluster="south")) == FULL


def test_services_that_only_the_drained_member_has() -> None:
    services = [service_report(CART, "east", "west"), service_report(REDIS, "west"), service_report("shop/web", "east")]
    assert draining.only_there(WEST, services) == {REDIS}
    assert draining.only_there(Scope(cluster="west", service=CART), services) == frozenset()
    assert draining.offered("west", services) == {CART, REDIS}
