"""How much of one peer is kept: whatever it says, in whatever order, never more than the bounds."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.model import Endpoint, ExportedService, Locality, Protocol, ServiceKey, ServicePort
from federation.peering.allowance import MOST, Allowance, Weight, weigh
from trust.spiffe import ClusterName, Namespace, ServiceAccount

KEY = ServiceKey(Namespace("shop"), "cart")


def test_a_service_weighs_what_it_costs_every_sidecar() -> None:
    ports = tuple(ServicePort(number, Protocol.HTTP) for number in (80, 81, 82))
    endpoints = tuple(Endpoint(f"10.0.0.{n}", f"cart-{n}", ServiceAccount("cart"), Locality()) for n in (1, 2))
    exported = ExportedService(ClusterName("west"), KEY, ports, endpoints, datetime.now(UTC))
    assert weigh(exported, size=700) == Weight(exports=1, ports=3, hosts=6, size=700)
    assert weigh(None, size=700) == Weight(exports=1, size=700)


@pytest.mark.parametrize("word", Weight._fields)
def test_nothing_beyond_a_bound_is_taken(word: str) -> None:
    most = MOST._asdict()[word]
    allowance = Allowance([("one", Weight(**{word: most - 1}))])
    assert allowance.take("two", Weight(**{word: 1})) == ""
    assert f"{most} are the most" in allowance.take("three", Weight(**{word: 1}))
    assert "three" not in allowance
    assert allowance.take("one", Weight(**{word: most - 1})) == "", "what costs no more than before may come again"
    allowance.drop("two")
    assert allowance.take("three", Weight(**{word: 1})) == ""


def test_what_is_there_may_shrink_though_all_of_it_is_too_much() -> None:
    allowance = Allowance([("one", Weight(hosts=MOST.hosts)), ("two", Weight(hosts=5))])
    assert allowance.take("two", Weight(hosts=4)) == ""
    assert allowance.take("two", Weight(hosts=5)) != ""


weights = st.builds(Weight, *(st.integers(0, most) for most in MOST))
steps = st.lists(st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), weights)), max_size=30)


@given(steps)
def test_what_was_taken_never_exceeds_the_bounds(taken: list[tuple[str, Weight | None]]) -> None:
    allowance, kept = Allowance(), dict[str, Weight]()
    for key, weight in taken:
        if weight is None:
            allowance.drop(key)
            kept.pop(key, None)
        elif not allowance.take(key, weight):
            kept[key] = weight
        assert (key in allowance) == (key in kept)
        sums = [sum(column) for column in zip(*kept.values(), strict=True)]
        assert all(total <= most for total, most in zip(sums, MOST, strict=False))
