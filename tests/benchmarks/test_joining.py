"""To join a mesh of many causes as much in each member as to join one of few: counted, not timed."""

import pytest

from tests.benchmarks.joining import NEWCOMERS, OldMember, done_anew, events, joining, measure, picture_of, tables
from tests.benchmarks.plan import Plan

_PLAN = Plan()


def test_the_fiftieth_member_causes_as_much_as_the_third() -> None:
    in_few, in_many = (
        done_anew(OldMember(_PLAN, picture_of(_PLAN, members)), joining(_PLAN, newcomer))
        for members, newcomer in ((2, NEWCOMERS[-1]), (49, NEWCOMERS[-2]))
    )

    assert in_few == in_many
    assert in_few["services placed"] == _PLAN.services, "those of the newcomer, once"
    assert in_few["gateways compiled"] == 1, "it lets one more in"


def test_what_happens_in_a_large_mesh_causes_no_more_than_in_a_small_one() -> None:
    small, large = (picture_of(_PLAN, members) for members in (10, 50))
    in_small, in_large = (events(_PLAN, picture, newcomer=NEWCOMERS[-3]) for picture in (small, large))

    for event in in_small.keys() - {"a member joins"}:
        done = done_anew(OldMember(_PLAN, large), in_large[event])
        assert done == done_anew(OldMember(_PLAN, small), in_small[event]), event
        assert done["services placed"] <= _PLAN.services
        assert done["gateways compiled"] == 0


def test_costs_are_measured_and_printed() -> None:
    found = dict(measure(Plan(services=5), (2, 3), tries=1))

    assert len(tables(found)) == len(found[2])


@pytest.mark.parametrize("members", [3, 50])
def test_a_member_that_was_only_heard_again_causes_nothing(members: int) -> None:
    picture = picture_of(_PLAN, members)

    heard = joining(_PLAN, members)[2:3]

    assert not any(done_anew(OldMember(_PLAN, picture), heard).values())
