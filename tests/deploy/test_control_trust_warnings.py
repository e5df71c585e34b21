"""What a control plane warns of before anything of its trust breaks, and the seconds that it measures."""

from collections.abc import Mapping
from datetime import datetime, timedelta

import pytest
from cryptography import x509

from deploy.control.trust_warnings import Standing, certificates_left, trust_warnings
from tests.support.members import (
    ANNOUNCED,
    DOMAIN,
    EAST,
    IDLE,
    NOW,
    RETIRING,
    ROOTS,
    SIGNING,
    WEST,
    authority,
    document,
    statement,
)
from trust.bundle import TrustBundle
from trust.certificates import make_intermediate, make_root, new_key
from trust.joining import Introduction, make_join_request
from trust.statements import AuthorityState, TrustStatement, Waiting

HOUR, DAY, YEAR = timedelta(hours=1), timedelta(days=1), timedelta(days=365)


def certificate(made: datetime = NOW, lifetime: timedelta = YEAR) -> x509.Certificate:
    key = new_key()
    root = make_root(key, DOMAIN, now=made, lifetime=10 * YEAR)
    return make_intermediate(
        root, key, public_key=new_key().public_key(), cluster=EAST, domain=DOMAIN, now=made, lifetime=lifetime
    )


YEARLY = certificate()


def standing(
    *documents: TrustBundle,
    own: TrustStatement | None = None,
    intermediate: x509.Certificate = YEARLY,
    own_leaf: timedelta = 24 * HOUR,
    proxies: Mapping[str, timedelta] | None = None,
    peers: tuple[TrustStatement, ...] = (),
    now: datetime = NOW,
) -> Standing:
    documents = documents or (IDLE,)
    return Standing(
        documents=documents,
        authority=intermediate,
        statement=own or statement(EAST, documents[-1]),
        leaf_lifetime=24 * HOUR,
        own_leaf=now + own_leaf,
        proxies={node: now + left for node, left in (proxies or {}).items()},
        peers=peers,
    )


def test_a_young_mesh_warns_of_nothing() -> None:
    quiet = standing(proxies={"east/shop/cart-1": 24 * HOUR}, peers=(statement(WEST, IDLE),))
    assert trust_warnings(quiet, NOW) == ()


@pytest.mark.parametrize(
    ("left", "is_warned"),
    [(181 * DAY, False), (179 * DAY, True), (-DAY, True)],
)
def test_the_root_is_warned_of_half_a_year_ahead(left: timedelta, is_warned: bool) -> None:
    now = ROOTS[0].not_valid_after_utc - left
    warnings = trust_warnings(standing(intermediate=certificate(now), now=now), now)
    assert [f"{'expired' if left < DAY * 0 else 'expires'} at" in one for one in warnings] == [True] * is_warned
    assert all("isthmus trust rotate root" in one for one in warnings)


@pytest.mark.parametrize(
    ("lifetime", "left", "is_warned"),
    [(YEAR, 31 * DAY, False), (YEAR, 29 * DAY, True), (HOUR, timedelta(minutes=7), False), (HOUR, HOUR / 12, True)],
)
def test_an_authority_is_warned_of_a_month_ahead_or_in_the_last_tenth_of_a_short_life(
    lifetime: timedelta, left: timedelta, is_warned: bool
) -> None:
    intermediate = certificate(NOW, lifetime)
    now = intermediate.not_valid_after_utc - left
    warnings = trust_warnings(standing(intermediate=intermediate, now=now), now)
    assert len(warnings) == is_warned
    assert all("isthmus trust rotate intermediate east" in one for one in warnings)


def test_a_leaf_that_is_not_renewed_is_warned_of_in_its_last_quarter() -> None:
    late = {f"east/shop/cart-{number}": 5 * HOUR for number in range(5)}
    own, proxies = trust_warnings(standing(own_leaf=5 * HOUR, proxies={**late, "east/shop/ok": 7 * HOUR}), NOW)
    assert "the control plane's own certificate expires at" in own
    assert "east/shop/cart-0, east/shop/cart-1, east/shop/cart-2 and 2 more" in proxies
    assert "ok" not in proxies


def test_an_authority_below_a_root_that_signs_no_longer_is_warned_of() -> None:
    behind = standing(IDLE, ANNOUNCED, SIGNING)
    assert ["which signs no longer" in one for one in trust_warnings(behind, NOW)] == [True]
    renewed = standing(IDLE, ANNOUNCED, SIGNING, own=statement(EAST, SIGNING, authority(2, root=1)))
    assert trust_warnings(renewed, NOW) == ()


def test_a_cluster_that_no_root_of_the_bundle_signed_is_told_what_to_do() -> None:
    (warning, *_) = trust_warnings(
        standing(SIGNING, RETIRING, own=statement(EAST, RETIRING, authority(1, root=0))), NOW
    )
    assert "nobody believes" in warning
    assert "isthmus trust rotate intermediate east" in warning


def test_a_rotation_of_more_than_a_day_is_warned_of() -> None:
    done: tuple[AuthorityState, ...] = (authority(2, root=1),)
    under_way = (IDLE, ANNOUNCED, document(3, 1, 0, issued=NOW + 3 * DAY, generation=2))
    now = NOW + 2 * DAY
    assert ["being rotated since 2026-11-22" in one for one in _said(standing(*under_way, now=now), now)] == [True]
    own = statement(EAST, RETIRING, *done)
    assert trust_warnings(standing(*under_way, RETIRING, own=own, now=now), now) == ()


def _said(one: Standing, now: datetime) -> list[str]:
    own = statement(EAST, one.bundle, authority(2, root=1))
    return list(trust_warnings(standing(*one.documents, own=own, now=now), now))


def test_a_request_that_nobody_grants_and_an_old_authority_that_stays_are_warned_of() -> None:
    about = Introduction(name=EAST, network="east", region="eu")
    asks = make_join_request(new_key(), about, domain=DOMAIN, now=NOW, generation=2)
    now = NOW + 2 * DAY
    (waiting,) = trust_warnings(standing(own=statement(EAST, IDLE, asks=asks), now=now), now)
    assert "east asks for a new authority since 2026-11-22" in waiting
    old = statement(
        EAST,
        IDLE,
        authority(2),
        authority(1, is_active=False),
        waiting=(Waiting("east/shop/cart-1", "not connected"),),
    )
    (kept,) = trust_warnings(standing(own=old, now=now), now)
    assert kept.endswith("east/shop/cart-1")


def test_a_cluster_that_the_root_revoked_and_one_left_behind_are_told() -> None:
    revoked = document(2, 0, revoked=("east", "shop/cart@east"))
    (warning,) = trust_warnings(standing(IDLE, revoked), NOW)
    assert warning.startswith("the root has revoked this cluster (stolen)")
    (behind,) = trust_warnings(standing(IDLE, peers=(statement(WEST, ANNOUNCED), statement(WEST, IDLE))), NOW)
    assert "follows the trust bundle 1, west follows 2" in behind


def test_the_least_of_each_kind_is_measured_in_seconds() -> None:
    left = certificates_left(standing(proxies={"east/shop/cart-1": HOUR}), NOW)
    assert left["leaf"] == 3600
    assert left["intermediate"] == pytest.approx(YEAR.total_seconds(), abs=600)
    assert left["root"] == pytest.approx(10 * YEAR.total_seconds(), abs=600)
