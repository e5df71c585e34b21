"""When a rotation may go on: never past a proxy that would be left behind."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trust.bundle import TrustBundle, bundle_digest, make_bundle, make_revocation, root_fingerprints
from trust.certificates import make_root, new_key
from trust.joining import GatewayAddress, Introduction, JoinRequest, make_join_request
from trust.rotation import (
    Action,
    RootStage,
    authority_holdups,
    due_requests,
    newest_known,
    root_step,
    trust_holdups,
)
from trust.spiffe import ClusterName, MeshDomain
from trust.statements import AuthorityState, TrustStatement, Waiting, decode_statement, encode_statement

NOW = datetime(2026, 11, 22, tzinfo=UTC)
DOMAIN = MeshDomain("mesh.test")
OLD, NEW = new_key(), new_key()
OLD_ROOT, NEW_ROOT = (make_root(key, DOMAIN, now=NOW, lifetime=timedelta(days=3650)) for key in (OLD, NEW))
EAST, WEST = ClusterName("east"), ClusterName("west")


def document(sequence: int, *roots: object, generation: int = 1, revoked: Sequence[str] = ()) -> TrustBundle:
    return make_bundle(
        OLD,
        domain=DOMAIN,
        sequence=sequence,
        roots=roots,  # type: ignore[arg-type]
        generations={EAST: generation, WEST: generation},
        revoked=tuple(make_revocation(one, at=NOW) for one in revoked),
        now=NOW,
    )


IDLE = document(1, OLD_ROOT)
ANNOUNCED = document(2, OLD_ROOT, NEW_ROOT)
SIGNING = document(3, NEW_ROOT, OLD_ROOT, generation=2)
RETIRING = document(4, NEW_ROOT, generation=2)


def request(cluster: ClusterName, generation: int = 2) -> JoinRequest:
    about = Introduction(name=cluster, network="net", region="eu", gateways=(GatewayAddress("10.0.0.1", 15443),))
    made = make_join_request(new_key(), about, domain=DOMAIN, now=NOW)
    return msgspec.structs.replace(made, generation=generation)


def statement(
    cluster: ClusterName,
    follows: TrustBundle,
    *,
    generation: int = 1,
    root: int = 0,
    proxies: int = 4,
    trusting: int = 4,
    renewed: int = 4,
    asks: JoinRequest | None = None,
    waiting: tuple[Waiting, ...] = (),
) -> TrustStatement:
    roots = root_fingerprints(ANNOUNCED)
    active = AuthorityState(
        generation=generation, fingerprint="f", root=roots[root], not_after=NOW + timedelta(days=300), is_active=True
    )
    return TrustStatement(
        cluster=cluster,
        sequence=follows.sequence,
        bundle=bundle_digest(follows),
        authorities=(active,),
        proxies=proxies,
        trusting=trusting,
        renewed=renewed,
        enforcing=proxies,
        waiting=waiting,
        request=asks,
        at=NOW,
    )


def test_a_root_is_announced_without_waiting_for_anybody() -> None:
    assert root_step(RootStage.IDLE, IDLE, {EAST: None}) == root_step(RootStage.IDLE, IDLE, {})
    assert root_step(RootStage.IDLE, IDLE, {}).action is Action.ANNOUNCE


def test_the_new_root_signs_once_every_proxy_trusts_it() -> None:
    late = (Waiting("west/shop/cart-1", "not connected since 12:00"),)
    slow = statement(WEST, ANNOUNCED, trusting=3, waiting=late)
    step = root_step(RootStage.ANNOUNCED, ANNOUNCED, {EAST: statement(EAST, ANNOUNCED), WEST: slow})
    assert step.action is Action.SIGN
    [holdup] = step.holdups
    assert (holdup.cluster, holdup.proxies) == (WEST, late)
    assert holdup.reason == "1 of 4 proxies has not acknowledged the roots"
    done = {name: statement(name, ANNOUNCED) for name in (EAST, WEST)}
    assert root_step(RootStage.ANNOUNCED, ANNOUNCED, done).holdups == ()


def test_a_member_that_is_away_holds_up_and_is_named() -> None:
    step = root_step(RootStage.ANNOUNCED, ANNOUNCED, {EAST: statement(EAST, ANNOUNCED), WEST: statement(WEST, IDLE)})
    assert [(one.cluster, one.reason) for one in step.holdups] == [(WEST, "follows the trust bundle 1, not 2")]
    step = root_step(RootStage.ANNOUNCED, ANNOUNCED, {EAST: None, WEST: statement(WEST, ANNOUNCED)})
    assert [(one.cluster, one.reason) for one in step.holdups] == [(EAST, "nothing was ever heard of its trust")]


def test_the_old_root_goes_once_nobody_holds_a_certificate_below_it() -> None:
    asks = request(WEST)
    members = {
        EAST: statement(EAST, SIGNING, generation=2, root=1, renewed=3),
        WEST: statement(WEST, SIGNING, asks=asks),
    }
    step = root_step(RootStage.SIGNING, SIGNING, members)
    assert step.action is Action.RETIRE
    assert [one.cluster for one in step.holdups] == [EAST, WEST]
    assert due_requests(SIGNING, members) == (asks,)
    members = {name: statement(name, SIGNING, generation=2, root=1) for name in (EAST, WEST)}
    assert root_step(RootStage.SIGNING, SIGNING, members).holdups == ()


def test_a_right_generation_below_the_wrong_root_is_not_enough() -> None:
    members = {EAST: statement(EAST, SIGNING, generation=2, root=0)}
    assert [one.cluster for one in authority_holdups(SIGNING, members)] == [EAST]


def test_the_key_of_the_old_root_goes_last() -> None:
    members = {EAST: statement(EAST, RETIRING, generation=2, root=1), WEST: statement(WEST, SIGNING)}
    step = root_step(RootStage.RETIRING, RETIRING, members)
    assert step.action is Action.FINISH
    assert [one.cluster for one in step.holdups] == [WEST]


def test_a_revoked_cluster_holds_nothing_up_and_gets_nothing() -> None:
    revoked = document(3, NEW_ROOT, OLD_ROOT, generation=2, revoked=["west"])
    members = {EAST: statement(EAST, SIGNING, generation=2, root=1), WEST: statement(WEST, IDLE, asks=request(WEST))}
    assert (
        authority_holdups(revoked, members) == trust_holdups(revoked, members) == due_requests(revoked, members) == ()
    )


def test_a_request_that_is_not_due_or_for_somebody_else_is_not_granted() -> None:
    done = statement(EAST, SIGNING, generation=2, root=1, asks=request(EAST, 3))
    for said in (done, statement(EAST, SIGNING, asks=request(EAST, 1)), statement(EAST, SIGNING, asks=request(WEST))):
        assert due_requests(SIGNING, {EAST: said}) == ()


def test_one_member_alone_can_be_waited_for() -> None:
    members = {EAST: statement(EAST, SIGNING), WEST: statement(WEST, SIGNING)}
    assert [one.cluster for one in authority_holdups(SIGNING, members, only=WEST)] == [WEST]


def test_an_old_copy_of_the_root_is_noticed() -> None:
    assert newest_known({EAST: statement(EAST, SIGNING), WEST: None}) == SIGNING.sequence
    assert newest_known({}) == 0


@given(
    progress=st.lists(
        st.tuples(st.sampled_from([IDLE, ANNOUNCED]), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=4
    )
)
@settings(max_examples=100, deadline=None)
def test_nothing_is_signed_by_a_root_that_one_proxy_does_not_trust(
    progress: list[tuple[TrustBundle, int, int]],
) -> None:
    members = {
        ClusterName(f"c{n}"): statement(ClusterName(f"c{n}"), follows, proxies=proxies, trusting=min(trusting, proxies))
        for n, (follows, proxies, trusting) in enumerate(progress)
    }
    is_trusted = all(follows is ANNOUNCED and trusting >= proxies for follows, proxies, trusting in progress)
    assert (not root_step(RootStage.ANNOUNCED, ANNOUNCED, members).holdups) == is_trusted


@pytest.mark.parametrize("asks", [None, request(WEST)])
def test_a_statement_is_printed_and_parsed(asks: JoinRequest | None) -> None:
    said = statement(WEST, ANNOUNCED, asks=asks, waiting=(Waiting("west/shop/cart-1", "rejected the bundle: no"),))
    assert decode_statement(encode_statement(said)) == said
