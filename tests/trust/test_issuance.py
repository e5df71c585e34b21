"""Leaves are issued within one slice, are renewed in time, and never printed with their keys."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from tests.support.trust import DOMAIN, EAST, WEST, bundle_of, make_authorities, make_issuer
from trust.audit import AuditEvent, AuditKind, encode
from trust.certificates import certificate_pem, describe, key_fingerprint, load_key
from trust.issuance import IssuanceRefused, Issuer, X509Svid
from trust.spiffe import (
    Identity,
    Namespace,
    ServiceAccount,
    control_identity,
    gateway_identity,
)

NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
AUTHORITY = make_authorities(EAST, now=NOW)[EAST]
CART = Identity(cluster=EAST, namespace=Namespace("shop"), account=ServiceAccount("cart"))


def leaf_of(svid: X509Svid) -> x509.Certificate:
    return x509.load_pem_x509_certificates(svid.certificate_chain_pem)[0]


@given(st.timedeltas(min_value=MINUTE, max_value=timedelta(days=3)), st.timedeltas(timedelta(0), timedelta(hours=23)))
def test_a_leaf_is_renewed_at_half_of_its_life_give_or_take_a_tenth(lifetime: timedelta, later: timedelta) -> None:
    now = NOW + later
    svid = make_issuer(AUTHORITY, leaf_lifetime=lifetime).issue(CART, now=now)
    left = svid.not_after - now
    assert left <= min(lifetime, AUTHORITY.certificate.not_valid_after_utc - now)
    assert left * 0.45 - timedelta(seconds=1) <= svid.renew_at - now <= left * 0.55 + timedelta(seconds=1)


def test_leaves_that_are_issued_together_are_not_renewed_together() -> None:
    issuer = make_issuer(AUTHORITY)
    moments = [issuer.issue(CART, now=NOW).renew_at for _ in range(20)]
    assert max(moments) - min(moments) > timedelta(minutes=10)


def test_renewals_before_the_end_of_the_intermediate_do_not_become_a_storm() -> None:
    end = AUTHORITY.certificate.not_valid_after_utc
    svid = make_issuer(AUTHORITY).issue(CART, now=end - timedelta(seconds=2))
    assert svid.not_after == end
    assert svid.renew_at == end + timedelta(seconds=3)
    with pytest.raises(IssuanceRefused, match="expired") as refusal:
        make_issuer(AUTHORITY).issue(CART, now=svid.renew_at)
    assert refusal.value.hint


def test_a_chain_is_the_leaf_and_then_the_intermediate_with_the_leafs_key() -> None:
    issuer = make_issuer(AUTHORITY)
    svid = issuer.issue(CART, now=NOW)
    leaf, intermediate = x509.load_pem_x509_certificates(svid.certificate_chain_pem)
    assert intermediate == AUTHORITY.certificate
    assert load_key(svid.key_pem).public_key() == leaf.public_key()
    assert (svid.not_before, svid.not_after) == (leaf.not_valid_before_utc, leaf.not_valid_after_utc)
    assert issuer.trust_bundle_pem == certificate_pem(AUTHORITY.root)
    assert issuer.intermediate_pem == certificate_pem(AUTHORITY.certificate)
    assert (issuer.cluster, issuer.domain) == (EAST, DOMAIN)


def test_no_two_leaves_share_a_key() -> None:
    issuer = make_issuer(AUTHORITY)
    assert issuer.issue(CART, now=NOW).key_pem != issuer.issue(CART, now=NOW).key_pem


def test_the_system_gets_its_names_and_a_workload_gets_none_of_them() -> None:
    issuer = make_issuer(AUTHORITY)
    names = {
        identity.account: describe(leaf_of(issuer.issue(identity, now=NOW))).dns_names
        for identity in (control_identity(EAST), gateway_identity(EAST), CART)
    }
    assert names == {
        "control": ("control.isthmus-system.east.mesh.test", "control.east.mesh.test"),
        "gateway": ("gateway.isthmus-system.east.mesh.test", "gateway.east.mesh.test"),
        "cart": ("cart.shop.east.mesh.test",),
    }
    impostor = Identity(cluster=EAST, namespace=Namespace("shop"), account=ServiceAccount("control"))
    assert describe(leaf_of(issuer.issue(impostor, now=NOW))).dns_names == ("control.shop.east.mesh.test",)


def test_names_beside_are_kept_within_the_slice() -> None:
    issuer = make_issuer(AUTHORITY)
    svid = issuer.issue(CART, ("www.east.mesh.test", "www.east.mesh.test"), now=NOW)
    assert describe(leaf_of(svid)).dns_names == ("cart.shop.east.mesh.test", "www.east.mesh.test")
    with pytest.raises(IssuanceRefused, match="not a DNS name within"):
        issuer.issue(CART, ("www.west.mesh.test",), now=NOW)


def test_the_identity_of_another_cluster_is_refused() -> None:
    with pytest.raises(IssuanceRefused, match=r"west\.mesh\.test.* is not in the slice of east"):
        make_issuer(AUTHORITY).issue(control_identity(WEST), now=NOW)


def test_a_lifetime_below_a_minute_is_refused() -> None:
    assert make_issuer(AUTHORITY, leaf_lifetime=MINUTE)
    with pytest.raises(IssuanceRefused, match="too short"):
        make_issuer(AUTHORITY, leaf_lifetime=timedelta(seconds=59))


def test_two_roots_are_told_to_trust_while_one_of_them_signed() -> None:
    other = make_authorities(EAST, now=NOW)[EAST]
    issuer = Issuer(AUTHORITY, bundle_of(other.root, AUTHORITY.root))
    assert issuer.trust_bundle_pem == certificate_pem(other.root) + certificate_pem(AUTHORITY.root)
    assert issuer.authority == key_fingerprint(AUTHORITY.key.public_key()) != make_issuer(other).authority


def test_every_certificate_and_every_refusal_is_an_event() -> None:
    events: list[AuditEvent] = []
    issuer = make_issuer(AUTHORITY, on_event=events.append)
    svid = issuer.issue(CART, now=NOW, asked_by="east/shop/cart-1", proof="join-token 3fa9c1d27b60")
    with pytest.raises(IssuanceRefused):
        issuer.issue(control_identity(WEST), now=NOW, asked_by="east/shop/cart-1")
    with pytest.raises(IssuanceRefused):
        issuer.issue(CART, ("www.west.mesh.test",), now=NOW)
    issued, foreign, misnamed = events
    assert issued == AuditEvent(
        kind=AuditKind.ISSUED,
        at=NOW,
        subject="spiffe://east.mesh.test/ns/shop/sa/cart",
        asked_by="east/shop/cart-1",
        proof="join-token 3fa9c1d27b60",
        serial=f"{leaf_of(svid).serial_number:x}",
        expires=svid.not_after,
        authority=issuer.authority,
    )
    assert (foreign.kind, foreign.subject) == ("refused", "spiffe://west.mesh.test/ns/isthmus-system/sa/control")
    assert "not in the slice of east" in foreign.reason
    assert misnamed.kind is AuditKind.REFUSED
    assert all(b"PRIVATE KEY" not in encode(event) for event in events)


def test_a_key_is_not_printed() -> None:
    svid = make_issuer(AUTHORITY).issue(CART, now=NOW)
    secret = svid.key_pem.decode().splitlines()[1]
    assert secret not in repr(svid)
    assert secret not in str([svid])
    assert secret not in f"{svid}"
