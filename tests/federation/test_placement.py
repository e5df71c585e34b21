"""Who is called, in which order and how often: properties that hold for any mesh, policy and drain."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from fractions import Fraction
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.model import (
    Audience,
    Endpoint,
    Locality,
    MemberCluster,
    NetworkName,
    Protocol,
    ProxyRole,
    ServicePolicy,
    ServicePort,
    WhenStale,
)
from federation.offers import Offer, Path, Reach
from federation.placement import Fate, Placement, fates, place
from trust.spiffe import ClusterName, Namespace, ServiceAccount

OWN = ClusterName("a")
NAMES = tuple(ClusterName(name) for name in "abcde")
HERE = Audience(ProxyRole.SIDECAR, OWN, NetworkName("a"), Locality("r0", "z0", "c0"), Namespace("shop"))
PORTS = (ServicePort(80, Protocol.HTTP),)
LATER = timedelta(seconds=30)
Shares = dict[str, Fraction]


def offer(name: str, endpoints: int = 1, *, region: int = 0, is_stale: bool = False, zones: int = 1) -> Offer:
    """Returns what a member offers. Region 0 is here, 1 in the same cloud; the zones of its endpoints take turns."""
    member = MemberCluster(
        ClusterName(name), NetworkName(name), region=f"r{region}", gateways=(), cloud=f"c{region // 2}"
    )
    is_own = name == OWN
    path = Path.DIRECT if is_own else Path.TUNNEL
    pods = tuple(
        Endpoint(f"10.{NAMES.index(member.name)}.0.{n}", f"p{n}", ServiceAccount("s"), Locality("", f"z{n % zones}"))
        for n in range(endpoints)
    )
    return Offer(Reach(member, path, is_stale=is_stale and not is_own, is_own=is_own), PORTS, pods)


@st.composite
def meshes(draw: st.DrawFn) -> list[Offer]:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    return [
        offer(
            name,
            draw(st.integers(0, 4)),
            region=draw(st.integers(0, 2)),
            is_stale=draw(st.booleans()),
            zones=draw(st.integers(1, 2)),
        )
        for name in names
    ]


drains = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 99))
member_weights = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 100)).map(
    lambda found: tuple(sorted(found.items()))
)
policies = st.builds(
    ServicePolicy, when_stale=st.sampled_from([WhenStale.KEEP, WhenStale.PREFER_LOCAL]), weights=member_weights
)


def shares(placement: Placement, priority: int = 0) -> Shares:
    """Returns the part of the calls that each member gets while a priority is used."""
    placed = [one for one in placement.endpoints if one.priority == priority and not one.is_draining]
    total = sum(one.weight for one in placed)
    found: Shares = {}
    for one in placed:
        found[one.member] = found.get(one.member, Fraction(0)) + Fraction(one.weight, total)
    return found


def tiers(placement: Placement) -> list[list[str]]:
    """Returns the members of each priority that are called."""
    called = [one for one in placement.endpoints if not one.is_draining]
    return [
        sorted({one.member for one in called if one.priority == n}) for n in sorted({one.priority for one in called})
    ]


@given(meshes(), policies, drains)
def test_no_drain_and_no_silence_that_is_not_waited_for_empties_a_service(
    offers: list[Offer], policy: ServicePolicy, drained: Mapping[ClusterName, int]
) -> None:
    placed = place(offers, HERE, policy=policy, drains=drained).endpoints
    called = [one for one in placed if not one.is_draining]
    assert bool(called) == any(offer.endpoints for offer in offers)
    heard = {offer.cluster for offer in offers if offer.endpoints and not offer.reach.is_stale}
    # Nor does it leave a service to members that are silent.
    assert not heard or heard & {one.member for one in called}


@given(meshes(), policies, drains)
def test_priorities_have_no_gaps_and_weights_are_whole_and_small(
    offers: list[Offer], policy: ServicePolicy, drained: Mapping[ClusterName, int]
) -> None:
    placed = place(offers, HERE, policy=policy, drains=drained).endpoints
    priorities = [one.priority for one in placed]
    assert priorities == sorted(priorities)
    assert set(priorities) == set(range(len(set(priorities))))
    assert all(1 <= one.weight <= 1_000_000 for one in placed)
    # Of what is drained away, nothing shares a priority with what is called, and nothing comes before it.
    draining = {one.priority for one in placed if one.is_draining}
    assert draining <= {max(priorities, default=0)}
    assert not draining & {one.priority for one in placed if not one.is_draining}
    assert len({(one.member, one.endpoint) for one in placed}) == len(placed)


@given(meshes(), policies, drains, st.randoms(use_true_random=False))
def test_the_order_of_offers_does_not_matter(
    offers: list[Offer], policy: ServicePolicy, drained: Mapping[ClusterName, int], random: Random
) -> None:
    shuffled = random.sample(offers, len(offers))
    assert place(shuffled, HERE, policy=policy, drains=drained) == place(offers, HERE, policy=policy, drains=drained)


@given(meshes())
def test_without_policy_and_drain_all_weights_are_one(offers: list[Offer]) -> None:
    placement = place(offers, HERE)
    assert {one.weight for one in placement.endpoints} <= {1}
    assert placement.overprovisioning == 0


@given(meshes(), member_weights)
def test_each_weighted_member_gets_its_share(offers: list[Offer], weights: tuple[tuple[ClusterName, int], ...]) -> None:
    serving = {offer.cluster for offer in offers if offer.endpoints and not offer.reach.is_stale}
    wanted = {name: weight for name, weight in weights if weight and name in serving}
    placement = place(offers, HERE, policy=ServicePolicy(weights=weights))
    if wanted:
        total = sum(wanted.values())
        assert shares(placement) == {name: Fraction(weight, total) for name, weight in wanted.items()}
    else:
        assert placement == place(offers, HERE)
    # The rest follows by distance, as without weights.
    others = [one.endpoint for one in placement.endpoints if one.member not in wanted]
    assert others == [one.endpoint for one in place(offers, HERE).endpoints if one.member not in wanted]


@given(meshes(), member_weights, st.dictionaries(st.sampled_from(NAMES), st.integers(1, 99), min_size=1))
def test_a_drained_member_gets_just_the_part_of_what_it_would_get(
    offers: list[Offer], weights: tuple[tuple[ClusterName, int], ...], drained: Mapping[ClusterName, int]
) -> None:
    policy = ServicePolicy(weights=weights)
    before, after = place(offers, HERE, policy=policy), place(offers, HERE, policy=policy, drains=drained)
    would, gets = shares(before), shares(after)
    are_all_silent = all(offer.reach.is_stale for offer in offers if offer.endpoints)
    others = {
        offer.cluster
        for offer in offers
        if offer.endpoints and offer.cluster not in drained and (are_all_silent or not offer.reach.is_stale)
    }
    if not others:  # there is nobody to take over: the drained share what there is
        assert gets.keys() == would.keys()
        return
    for name, weight in drained.items():
        part = Fraction(weight, 100)
        if name in would:
            assert gets.get(name, 0) == would[name] * part
        else:  # it may be of the tier that takes over, and has its part there
            assert gets.get(name, 0) <= part
    for name in others & would.keys():
        assert gets[name] >= would[name]


@given(st.integers(1, 99), st.integers(1, 5), st.integers(1, 5))
def test_a_tier_that_is_drained_shares_with_the_next_one(weight: int, near: int, far: int) -> None:
    offers = [offer("b", near), offer("c", far, region=1), offer("d", 1, region=2)]
    placement = place(offers, HERE, drains={ClusterName("b"): weight})
    assert tiers(placement) == [["b", "c"], ["d"]]
    assert shares(placement) == {"b": Fraction(weight, 100), "c": Fraction(100 - weight, 100)}


def test_a_tier_of_a_drained_member_is_not_brought_forward() -> None:
    offers = [offer("a", 2, zones=2), offer("b", 1)]
    placement = place(offers, HERE, drains={OWN: 40})
    # The other zone of the drained member got nothing before, and gets nothing now.
    assert tiers(placement) == [["a", "b"], ["a"]]
    assert shares(placement) == {"a": Fraction(40, 100), "b": Fraction(60, 100)}


def test_what_is_drained_away_is_known_to_envoy_as_draining() -> None:
    placement = place([offer("a"), offer("b", 2)], HERE, drains={ClusterName("b"): 0})
    assert [(one.member, one.priority, one.is_draining) for one in placement.endpoints] == [
        ("a", 0, False),
        ("b", 1, True),
        ("b", 1, True),
    ]


@pytest.mark.parametrize(
    ("offers", "drained", "expected"),
    [
        ([offer("b")], {"b": 0}, {"b": Fate.KEPT}),
        ([offer("b"), offer("c", 0)], {"b": 0}, {"b": Fate.KEPT, "c": Fate.CALLED}),
        ([offer("b"), offer("c")], {"b": 0, "c": 0}, {"b": Fate.KEPT, "c": Fate.KEPT}),
        ([offer("b"), offer("c", is_stale=True)], {"b": 0}, {"b": Fate.KEPT, "c": Fate.CALLED}),
        ([offer("b", is_stale=True), offer("c", is_stale=True)], {"b": 0}, {"b": Fate.DRAINED, "c": Fate.CALLED}),
        ([offer("b"), offer("c")], {"b": 0, "c": 1}, {"b": Fate.DRAINED, "c": Fate.CALLED}),
    ],
)
def test_who_must_stay_though_drained(
    offers: Sequence[Offer], drained: Mapping[ClusterName, int], expected: Mapping[ClusterName, Fate]
) -> None:
    assert fates(offers, drains=drained) == expected


def test_nobody_takes_over_with_an_address_that_another_has() -> None:
    drained, thief = (
        msgspec.structs.replace(one.reach, path=Path.DIRECT) for one in (offer("b"), offer("c", region=1))
    )
    pods = offer("b").endpoints
    offers = [Offer(drained, PORTS, pods), Offer(thief, PORTS, pods)]
    assert tiers(place(offers, HERE, drains={ClusterName("b"): 0})) == [["b"]]


def test_a_stale_member_comes_last_and_leaves_the_weighted_ones() -> None:
    policy = ServicePolicy(weights=((ClusterName("b"), 90), (ClusterName("c"), 10)))
    offers = [offer("a"), offer("b", is_stale=True), offer("c", region=2), offer("d", region=1)]
    assert tiers(place(offers, HERE, policy=policy)) == [["c"], ["a"], ["d"], ["b"]]


def test_the_first_priority_keeps_its_calls_while_one_of_its_members_is_whole() -> None:
    policy = ServicePolicy(weights=((ClusterName("b"), 90), (ClusterName("c"), 10)))
    placement = place([offer("a"), offer("b", 4), offer("c", 1)], HERE, policy=policy)
    assert placement.overprovisioning == 140 * 5


def test_local_endpoints_are_preferred_only_while_there_are_any() -> None:
    policy = ServicePolicy(when_stale=WhenStale.PREFER_LOCAL)
    stale, heard = offer("b", is_stale=True), offer("c", region=1)
    assert tiers(place([offer("a"), stale, heard], HERE, policy=policy)) == [["a"], ["c"]]
    assert tiers(place([offer("a", 0), stale, heard], HERE, policy=policy)) == [["c"], ["b"]]
    # While the own cluster is drained, its endpoints are no reason to leave others out.
    assert tiers(place([offer("a"), stale], HERE, policy=policy, drains={OWN: 0})) == [["a"], ["b"]]


@pytest.mark.parametrize(("silence", "is_called"), [(None, True), (LATER - timedelta(seconds=1), True), (LATER, False)])
def test_a_silent_member_is_dropped_when_the_policy_says_so(silence: timedelta | None, is_called: bool) -> None:
    policy = ServicePolicy(when_stale=WhenStale.DROP, drop_after=LATER)
    silences = {} if silence is None else {ClusterName("b"): silence}
    placed = place([offer("b", is_stale=True)], HERE, policy=policy, silences=silences).endpoints
    assert bool(placed) == is_called
    assert place([offer("b", is_stale=True)], HERE, silences=silences).endpoints, "without the policy it stays"


def test_shares_hold_for_thousands_of_endpoints_within_what_envoy_takes() -> None:
    policy = ServicePolicy(weights=((ClusterName("b"), 97), (ClusterName("c"), 3)))
    big = offer("b", 4999)
    placement = place([big, offer("c", 251)], HERE, policy=policy)
    assert sum(one.weight for one in placement.endpoints) < 2**32
    assert abs(shares(placement)["b"] - Fraction(97, 100)) < Fraction(1, 1000)
