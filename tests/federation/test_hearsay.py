"""Who tells whom of a member: few, the same ones everywhere, and each stream begins with all."""

from collections import Counter

from msgspec.structs import replace

from federation.model import MemberCluster, NetworkName
from federation.peering.exports import learn
from federation.peering.hearsay import TELLERS, Tellers, Told
from federation.xds.resources import Resource, make_resource
from trust.spiffe import ClusterName

MEMBERS = tuple(ClusterName(f"m{number}") for number in range(1, 51))
NEWCOMER = ClusterName("newcomer")


def records(*names: ClusterName, edition: str = "1") -> dict[str, Resource]:
    return {name: make_resource(name, edition.encode()) for name in names}


def test_every_member_draws_the_same_tellers_in_whatever_order_it_knows_them() -> None:
    assert Tellers(MEMBERS).of(NEWCOMER) == Tellers(reversed(MEMBERS)).of(NEWCOMER)
    assert len(Tellers(MEMBERS).of(NEWCOMER)) == TELLERS


def test_nobody_is_drawn_to_tell_of_itself() -> None:
    assert all(member not in Tellers(MEMBERS).of(member) for member in MEMBERS)


def test_to_tell_is_shared_out_among_the_members() -> None:
    drawn = Counter(teller for number in range(500) for teller in Tellers(MEMBERS).of(f"n{number}"))

    assert drawn.keys() == set(MEMBERS)


def test_a_stream_begins_with_all_that_is_known() -> None:
    known = records(*MEMBERS)

    assert Told(MEMBERS[0], MEMBERS[1]).of(known, Tellers(MEMBERS)) == known


def test_a_newcomer_costs_the_others_a_few_messages_each_and_everybody_is_told_of_it() -> None:
    tellers = Tellers(MEMBERS)
    before = records(*MEMBERS)
    after = {**before, **records(NEWCOMER)}
    told: Counter[ClusterName] = Counter()
    for own in MEMBERS:
        for peer in MEMBERS:
            if own != peer:
                stream = Told(own, peer)
                stream.of(before, tellers)
                told[peer] += NEWCOMER in stream.of(after, tellers)

    assert all(told[member] >= TELLERS - 1 for member in MEMBERS)
    assert told.total() <= 2 * TELLERS * len(MEMBERS)


def test_in_a_small_mesh_everybody_tells_everybody() -> None:
    few = MEMBERS[:3]
    stream = Told(few[0], few[1])
    stream.of(records(*few), Tellers(few))

    assert NEWCOMER in stream.of({**records(*few), **records(NEWCOMER)}, Tellers(few))


def test_what_is_not_told_anew_stays_as_it_was_and_the_own_record_is_always_told() -> None:
    tellers = Tellers(MEMBERS)
    own, peer = _no_tellers(tellers)
    before = records(own, NEWCOMER)
    after = records(own, NEWCOMER, edition="2")
    stream = Told(own, peer)
    stream.of(before, tellers)

    told = stream.of(after, tellers)

    assert told == {own: after[own], NEWCOMER: before[NEWCOMER]}
    assert stream.of(after, tellers) is told
    assert NEWCOMER not in stream.of(records(own, edition="2"), tellers), "who is forgotten is told of no longer"


def _no_tellers(tellers: Tellers) -> tuple[ClusterName, ClusterName]:
    one, other, *_ = (member for member in MEMBERS if member not in tellers.of(NEWCOMER))
    return one, other


def test_the_same_hearsay_of_somebody_else_is_no_news_and_the_own_word_is() -> None:
    said = MemberCluster(NEWCOMER, NetworkName("n"), "eu", (), introduced_by="m1")

    assert learn(said, replace(said, introduced_by="m2")) is None
    assert learn(said, replace(said, introduced_by="m2", region="us")) is not None, "it says something else"
    assert learn(said, replace(said, introduced_by="")) is not None
