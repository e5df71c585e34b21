"""The sum of what proxies acknowledged: who counts, who holds something up, and how it is said."""

from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from federation.model import PodKey
from federation.names import gateway_node, sidecar_node
from federation.peering.statements import make_statement
from federation.proxy_trust import ProxyTrust
from tests.support.federation import SHOP
from tests.support.trust import DOMAIN, EAST
from trust.bundle import Revocation, TrustBundle, bundle_digest, make_revocation, revoked_digest
from trust.statements import (
    MOST_WAITING,
    AuthorityState,
    TrustStatement,
    decode_statement,
    encode_statement,
)

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
PODS = frozenset(PodKey(SHOP, f"cart-{n}") for n in range(5))
REVOKED = (make_revocation("west", at=NOW), make_revocation("shop/thief", at=NOW))


BUNDLE = TrustBundle(domain=DOMAIN, sequence=3, roots=("a root",), issued=NOW)
ACTIVE = AuthorityState(generation=2, fingerprint="new", root="r", not_after=NOW, is_active=True)
OLD = AuthorityState(generation=1, fingerprint="old", root="r", not_after=NOW, is_active=False)

moments = st.integers(-100, 100).map(lambda minutes: NOW + timedelta(minutes=minutes))
past = st.integers(0, 100).map(lambda minutes: NOW - timedelta(minutes=minutes))


@st.composite
def records(draw: st.DrawFn) -> dict[str, ProxyTrust]:
    nodes = st.integers(0, 40).map(lambda n: sidecar_node(EAST, PodKey(SHOP, f"cart-{n}")))
    found = draw(st.sets(nodes | st.just(gateway_node(EAST, "gateway-1")), max_size=40))
    return {node: draw(record(node)) for node in sorted(found)}


def record(node: str) -> st.SearchStrategy[ProxyTrust]:
    return st.builds(
        ProxyTrust,
        node=st.just(node),
        identity=st.sampled_from(["shop/cart", "shop/thief"]),
        bundle=st.sampled_from([bundle_digest(BUNDLE), "other"]),
        authority=st.sampled_from(["new", "old"]),
        revoked=st.sampled_from([revoked_digest(REVOKED), ""]),
        revoked_at=past,
        expires=moments | st.none(),
        since=past,
        lost=past | st.none(),
        problem=st.sampled_from(["", "rejected Secret workload: no"]),
        at=past,
    )


def state(
    held: dict[str, ProxyTrust], connected: frozenset[str] = frozenset(), revoked: tuple[Revocation, ...] = REVOKED
) -> TrustStatement:
    return make_statement(
        EAST,
        BUNDLE,
        authorities=(ACTIVE, OLD),
        records=held,
        pods=PODS,
        connected=connected,
        revoked=revoked,
        request=None,
        now=NOW,
    )


@given(records(), st.sets(st.integers(0, 45)))
def test_nobody_is_counted_who_did_not_say_so_and_nobody_is_forgotten(
    held: dict[str, ProxyTrust], here: set[int]
) -> None:
    connected = frozenset(sidecar_node(EAST, PodKey(SHOP, f"cart-{n}")) for n in here)
    said = state(held, connected)
    assert max(said.trusting, said.renewed, said.enforcing) <= said.proxies
    is_done = said.trusting == said.renewed == said.enforcing == said.proxies
    assert bool(said.waiting) is not is_done, "whoever is waited for is named, and nobody else"
    assert len(said.waiting) <= MOST_WAITING
    assert (said.enforced_since is not None) is (said.enforcing == said.proxies)
    living = [one for one in held.values() if one.node in connected or (one.expires and one.expires > NOW)]
    assert said.proxies <= len(living) + len(connected) + sum(one.expires is None for one in held.values())
    silent = connected - held.keys()
    assert said.proxies >= len(silent)
    assert decode_statement(encode_statement(said)) == said
    assert state(dict(reversed(held.items())), connected) == said


@given(records())
def test_a_proxy_more_never_brings_a_proof_nearer(held: dict[str, ProxyTrust]) -> None:
    def missing(said: TrustStatement) -> tuple[int, int, int]:
        return said.proxies - said.trusting, said.proxies - said.renewed, said.proxies - said.enforcing

    whole = missing(state(held))
    for node in held:
        fewer = missing(state({other: one for other, one in held.items() if other != node}))
        assert all(mine >= theirs for mine, theirs in zip(whole, fewer, strict=True))


def cart(n: int, **changed: object) -> dict[str, ProxyTrust]:
    node = sidecar_node(EAST, PodKey(SHOP, f"cart-{n}"))
    good = ProxyTrust(
        node=node,
        identity="shop/cart",
        bundle=bundle_digest(BUNDLE),
        authority="new",
        revoked=revoked_digest(REVOKED),
        revoked_at=NOW - timedelta(minutes=n),
        expires=NOW + timedelta(hours=3),
        since=NOW - timedelta(hours=1),
        at=NOW - timedelta(minutes=1),
    )
    return {node: msgspec.structs.replace(good, **changed)}


def test_who_counts_and_why_it_is_waited_for() -> None:
    lost = NOW - timedelta(minutes=57)
    held = {
        **cart(0),
        **cart(1, authority="old", lost=lost),
        **cart(2, bundle="old", problem="rejected Secret trust-bundle: no certificate"),
        **cart(3, revoked=""),
        **cart(4, authority="old", lost=lost, expires=NOW),  # its certificate has expired
        **cart(5, authority="old", lost=lost),  # its pod is gone
        **cart(6, authority="old", identity="shop/thief"),  # it is revoked, and may never answer
    }
    said = state(held, frozenset({sidecar_node(EAST, PodKey(SHOP, "cart-9"))}))
    assert (said.proxies, said.trusting, said.renewed, said.enforcing) == (5, 3, 3, 3)
    assert said.enforced_since is None
    assert {one.node.rpartition("/")[2]: one.reason for one in said.waiting} == {
        "cart-1": "not connected since 2026-01-01 11:03 UTC; its certificate expires at 2026-01-01 15:00 UTC",
        "cart-2": "rejected Secret trust-bundle: no certificate",
        "cart-3": "has yet to acknowledge the newest; its last answer came at 2026-01-01 11:59:00 UTC",
        "cart-9": "is connected, and nothing is noted of it yet",
    }


def test_since_when_all_of_them_enforce_is_when_the_last_one_did() -> None:
    said = state({**cart(1), **cart(3)})
    assert said.enforced_since == NOW - timedelta(minutes=1)
    assert said.revoked == ("shop/thief", "west")
    assert state({}).enforced_since == NOW, "where nobody is, it is so at once"
    assert state({**cart(1, revoked="")}, revoked=()).enforced_since is None


def test_very_many_revocations_fit_into_a_statement() -> None:
    many = tuple(make_revocation(f"{'n' * 60}/{'a' * 60}.{'b' * 60}.c{n}", at=NOW) for n in range(1000))
    said = state(cart(1), revoked=many)
    assert decode_statement(encode_statement(said)) == said
    assert 0 < len(said.revoked) < 1000


def test_others_understand_who_has_more_to_say_than_fits() -> None:
    revoked = tuple(make_revocation(f"s/a{n}", at=NOW) for n in range(2500))
    said = make_statement(
        EAST,
        BUNDLE,
        authorities=(ACTIVE, *(msgspec.structs.replace(OLD, generation=n) for n in range(20))),
        records={},
        pods=PODS,
        connected=frozenset(),
        revoked=revoked,
        request=None,
        now=NOW,
    )
    assert decode_statement(encode_statement(said)) == said
    assert said.active == ACTIVE
