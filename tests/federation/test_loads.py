"""Sums of what proxies carry."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from federation.loads import (
    DRAIN_INTERVAL,
    USUAL_INTERVAL,
    Load,
    Tally,
    Target,
    known_targets,
    patience,
    report_interval,
)
from federation.model import (
    EPOCH,
    Drain,
    ExportedService,
    MemberCluster,
    NetworkName,
    Protocol,
    Service,
    ServiceKey,
    ServicePort,
)
from federation.snapshot import EMPTY, Replace, Section, Snapshot, apply
from trust.spiffe import ClusterName, Namespace

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EAST, WEST = ClusterName("east"), ClusterName("west")
CART = ServiceKey(Namespace("shop"), "cart")
TARGETS = [Target(CART, 80, EAST), Target(CART, 80, WEST), Target(CART, 6379, WEST)]
DRAIN = Drain(WEST, 50, NOW)


def picture() -> Snapshot:
    ports = (ServicePort(80, Protocol.HTTP),)
    return apply(
        EMPTY,
        [
            Replace(Section.SERVICES, {CART: Service(CART, ports)}),
            Replace(Section.IMPORTS, {(WEST, CART): ExportedService(WEST, CART, ports, (), EPOCH)}),
        ],
    )


def member(*drains: Drain, introduced_by: str = "") -> MemberCluster:
    return MemberCluster(WEST, NetworkName("w"), "us", (), drains=drains, introduced_by=introduced_by)


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.dictionaries(st.sampled_from(TARGETS), st.builds(Load, *[st.integers(0, 9)] * 3), max_size=3),
        )
    )
)
def test_what_is_open_is_what_each_said_last_and_the_rest_adds_up(
    reports: list[tuple[str, dict[Target, Load]]],
) -> None:
    tally = Tally()
    for node, loads in reports:
        tally.take(node, loads, NOW)
    last = dict(reports)
    for load in tally.loads():
        target = Target(CART, load.port, ClusterName(load.member))
        said = [loads[target] for _, loads in reports if target in loads]
        assert load.open == sum(loads[target].open for loads in last.values() if target in loads)
        assert (load.issued, load.failed) == (sum(one.issued for one in said), sum(one.failed for one in said))
    assert {(load.port, load.member) for load in tally.loads()} == {
        (target.port, target.member) for _, loads in reports for target in loads
    }


def test_no_proxy_counts_beyond_what_readers_of_json_can_hold() -> None:
    tally, target = Tally(), Target(CART, 80, WEST)
    for _ in range(3):
        tally.take("east/shop/a", {target: Load(0, 1 << 53, 1 << 53)}, NOW)
    [load] = tally.loads()
    assert load.issued == load.failed == 1 << 53


def test_what_was_open_at_a_proxy_that_went_counts_for_a_while() -> None:
    tally = Tally()
    tally.take("a", {TARGETS[1]: Load(open=3)}, NOW)
    just = NOW + patience(DRAIN_INTERVAL)
    tally.tidy((), just, interval=DRAIN_INTERVAL)
    assert [load.open for load in tally.loads()] == [3]
    tally.tidy(("a",), just + timedelta(seconds=1), interval=DRAIN_INTERVAL)
    assert [load.open for load in tally.loads()] == [3]
    tally.tidy((), just + timedelta(seconds=1), interval=DRAIN_INTERVAL)
    assert [load.open for load in tally.loads()] == [0]
    assert tally.reporters() == {}


def test_only_known_targets_are_kept() -> None:
    known = known_targets(picture(), EAST)
    assert set(known) == {f"outbound|80|cart.shop.svc.{suffix}.local" for suffix in ("cluster", "clusterset")}
    assert all(set(targets.values()) == set(TARGETS[:2]) for targets in known.values())
    tally = Tally()
    tally.take("a", dict.fromkeys(TARGETS, Load(0, 1, 0)), NOW)
    tally.forget(TARGETS[:2])
    assert len(tally.loads()) == 2


def test_reports_come_sooner_while_somebody_is_drained() -> None:
    assert report_interval(picture(), 10) == USUAL_INTERVAL
    asked_here = apply(picture(), [Replace(Section.DRAINS, {(WEST, None): DRAIN})])
    assert report_interval(asked_here, 10) == DRAIN_INTERVAL
    told = apply(picture(), [Replace(Section.MEMBERS, {WEST: member(DRAIN)})])
    assert report_interval(told, 10) == DRAIN_INTERVAL
    hearsay = apply(picture(), [Replace(Section.MEMBERS, {WEST: member(DRAIN, introduced_by="north")})])
    assert report_interval(hearsay, 10) == USUAL_INTERVAL


def test_a_replica_with_many_proxies_asks_each_less_often() -> None:
    drained = apply(picture(), [Replace(Section.DRAINS, {(WEST, None): DRAIN})])
    assert report_interval(drained, 1000) == timedelta(seconds=4)
    assert report_interval(drained, 100_000) == timedelta(seconds=60)
