"""The trust bundle: who can say whom to trust, and in which order it is believed."""

import base64
import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from trust.bundle import (
    MOST_REVOKED,
    BundleRefused,
    Revocation,
    TrustBundle,
    bundle_digest,
    bundle_pem,
    catch_up,
    check_bundle,
    decode_bundle,
    encode_bundle,
    is_revoked,
    make_bundle,
    make_revocation,
    parse_subject,
    revoked_clusters,
    revoked_digest,
    root_certificates,
    spiffe_document,
    worth_keeping,
)
from trust.certificates import make_root, new_key
from trust.spiffe import ClusterName, Identity, MeshDomain, Namespace, ServiceAccount

NOW = datetime(2026, 11, 22, tzinfo=UTC)
DOMAIN = MeshDomain("mesh.test")
KEYS = [new_key() for _ in range(4)]
ROOTS = [make_root(key, DOMAIN, now=NOW, lifetime=timedelta(days=3650)) for key in KEYS]


def bundle(sequence: int, *roots: int, signed_by: int, revoked: tuple[Revocation, ...] = ()) -> TrustBundle:
    return make_bundle(
        KEYS[signed_by],
        domain=DOMAIN,
        sequence=sequence,
        roots=[ROOTS[one] for one in roots],
        generations={},
        revoked=revoked,
        now=NOW,
    )


ROTATION = (
    bundle(1, 0, signed_by=0),
    bundle(2, 0, 1, signed_by=0),
    bundle(3, 1, 0, signed_by=0),
    bundle(4, 1, signed_by=1),
    bundle(5, 1, signed_by=1, revoked=(make_revocation("west", at=NOW),)),
    bundle(6, 1, 2, signed_by=1),
    bundle(7, 2, 1, signed_by=1),
    bundle(8, 2, signed_by=2),
    bundle(9, 2, signed_by=2, revoked=(make_revocation("shop/cart", at=NOW, sever=True),)),
    bundle(10, 2, signed_by=2),
)


def identity(cluster: str, namespace: str, account: str) -> Identity:
    return Identity(ClusterName(cluster), Namespace(namespace), ServiceAccount(account))


@given(since=st.integers(0, len(ROTATION) - 1), order=st.permutations(ROTATION), pruned=st.booleans())
@settings(max_examples=60, deadline=None)
def test_who_was_away_catches_up_from_any_document_in_any_order(
    since: int, order: list[TrustBundle], pruned: bool
) -> None:
    offered = worth_keeping(order) if pruned else order
    followed = catch_up(ROTATION[since], offered, now=NOW)
    assert (followed[-1] if followed else ROTATION[since]) == ROTATION[-1]


def test_only_what_changed_the_roots_and_the_newest_is_worth_keeping() -> None:
    assert [one.sequence for one in worth_keeping(ROTATION)] == [1, 2, 3, 4, 6, 7, 8, 10]


def test_nobody_is_led_back() -> None:
    assert catch_up(ROTATION[4], ROTATION[:5], now=NOW) == ()


def test_a_document_that_skips_its_root_is_refused() -> None:
    with pytest.raises(BundleRefused, match="not signed by a root that is trusted here"):
        catch_up(ROTATION[0], [ROTATION[3]], now=NOW)


def test_a_retired_root_says_nothing_any_more() -> None:
    forged = bundle(11, 0, signed_by=0)
    with pytest.raises(BundleRefused, match="not signed"):
        catch_up(ROTATION[-1], [forged], now=NOW)


def test_a_number_that_says_two_things_is_refused() -> None:
    other = bundle(3, 1, 0, signed_by=1, revoked=(make_revocation("west", at=NOW),))
    with pytest.raises(BundleRefused, match="two different trust bundles with the number 3"):
        catch_up(ROTATION[2], [other], now=NOW)
    with pytest.raises(BundleRefused, match="two different trust bundles"):
        catch_up(ROTATION[0], [*ROTATION[:3], other], now=NOW)


def test_the_next_document_ends_the_doubt_which_of_two_with_one_number_is_right() -> None:
    other = bundle(3, 1, 0, signed_by=1, revoked=(make_revocation("west", at=NOW),))
    assert catch_up(ROTATION[2], [other, ROTATION[3]], now=NOW) == (ROTATION[3],)


def test_a_document_with_another_good_signature_is_the_same_document() -> None:
    # ECDSA: of (r, s) anybody can make (r, n - s). Who passed it on in that form would bar what comes after it.
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    r, s = decode_dss_signature(base64.b64decode(ROTATION[1].signature))
    signature = base64.b64encode(encode_dss_signature(r, order - s)).decode()
    twin = msgspec.structs.replace(ROTATION[1], signature=signature)
    assert twin != ROTATION[1]
    assert catch_up(ROTATION[0], [twin], now=NOW) == (twin,)
    assert catch_up(twin, [ROTATION[1]], now=NOW) == ()
    assert catch_up(twin, ROTATION, now=NOW)[-1] == ROTATION[-1]
    assert catch_up(ROTATION[0], [twin, *ROTATION], now=NOW)[-1] == ROTATION[-1]


@pytest.mark.parametrize(
    "change",
    [
        {"sequence": 99},
        {"domain": "mesh.evil"},
        {"roots": ROTATION[3].roots},
        {"generations": {"west": 7}},
        {"revoked": (make_revocation("east", at=NOW),)},
        {"issued": NOW + timedelta(seconds=1)},
        {"signature": ""},
        {"signature": "!"},
        {"signature": ROTATION[2].signature},
        {"version": 2},
    ],
)
def test_a_changed_document_is_refused(change: dict[str, object]) -> None:
    changed = msgspec.structs.replace(ROTATION[1], **change)
    with pytest.raises(BundleRefused):
        check_bundle(changed, ROOTS[:1], domain=DOMAIN, now=NOW)


def test_a_root_of_another_mesh_or_one_twice_is_refused() -> None:
    key = new_key()
    strange = make_root(key, MeshDomain("other.test"), now=NOW, lifetime=timedelta(days=1))
    with_it = make_bundle(
        KEYS[0], domain=DOMAIN, sequence=2, roots=[ROOTS[0], strange], generations={}, revoked=(), now=NOW
    )
    for refused in (with_it, bundle(2, 0, 0, signed_by=0)):
        with pytest.raises(BundleRefused):
            check_bundle(refused, ROOTS[:1], domain=DOMAIN, now=NOW)


def test_a_grant_or_certificate_signature_is_not_taken_for_a_document() -> None:
    """The signed part begins with words of its own."""
    plain = msgspec.structs.replace(ROTATION[1], signature="")
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    signature = KEYS[0].sign(encode_bundle(plain), ec.ECDSA(hashes.SHA256()))
    forged = msgspec.structs.replace(plain, signature=base64.b64encode(signature).decode())
    with pytest.raises(BundleRefused):
        check_bundle(forged, ROOTS[:1], domain=DOMAIN, now=NOW)


def test_an_expired_root_does_not_keep_the_next_one_away() -> None:
    check_bundle(ROTATION[1], ROOTS[:1], domain=DOMAIN, now=NOW + timedelta(days=5000))


@given(sequence=st.integers(1, 1 << 40), revoked=st.lists(st.sampled_from(["west", "shop/cart@west", "a/b.c"])))
@settings(max_examples=30, deadline=None)
def test_printing_and_parsing_are_inverse(sequence: int, revoked: list[str]) -> None:
    made = bundle(sequence, 0, signed_by=0, revoked=tuple(make_revocation(one, at=NOW) for one in sorted(set(revoked))))
    assert decode_bundle(encode_bundle(made)) == made
    check_bundle(decode_bundle(encode_bundle(made)), ROOTS[:1], domain=DOMAIN, now=NOW)


@pytest.mark.parametrize("text", [b"", b"{}", b"[" * 100_000, b"\xff", b'{"kind":"TrustBundle"}', b" " * (1 << 21)])
def test_what_is_no_document_is_refused(text: bytes) -> None:
    with pytest.raises(BundleRefused):
        decode_bundle(text)


def test_the_digest_is_that_of_the_roots_alone() -> None:
    assert bundle_digest(ROTATION[1]) == bundle_digest(ROTATION[2])
    assert bundle_digest(ROTATION[3]) == bundle_digest(ROTATION[4]) != bundle_digest(ROTATION[2])


@pytest.mark.parametrize(
    ("subject", "covered", "not_covered"),
    [
        ("west", ("west", "shop", "cart"), ("westerly", "shop", "cart")),
        ("shop/cart@west", ("west", "shop", "cart"), ("east", "shop", "cart")),
        ("shop/cart@west", ("west", "shop", "cart"), ("west", "shop", "client")),
        ("shop/cart", ("south", "shop", "cart"), ("south", "shops", "cart")),
    ],
)
def test_a_revocation_is_about_whom_it_names(
    subject: str, covered: tuple[str, str, str], not_covered: tuple[str, str, str]
) -> None:
    made = make_revocation(subject, at=NOW, reason="key lost")
    assert made.subject == subject
    assert make_revocation(made.subject, at=NOW, reason="key lost") == made
    assert is_revoked([made], identity(*covered))
    assert not is_revoked([made], identity(*not_covered))


def test_clusters_and_digests_of_the_revoked() -> None:
    made = [make_revocation(one, at=NOW) for one in ("west", "shop/cart@south")]
    assert revoked_clusters(made) == {"west"}
    assert revoked_digest(made) == revoked_digest(reversed(made)) != revoked_digest(made[:1])
    assert revoked_digest([]) == ""


@pytest.mark.parametrize(
    "text", ["", "@", "@west", "/", "shop/", "/cart", "shop/cart@", "West", "a b", "a/b/c", "x" * 64]
)
def test_a_subject_that_names_nobody_is_refused(text: str) -> None:
    with pytest.raises(BundleRefused):
        parse_subject(text)


def test_a_reason_that_is_no_line_of_text_is_refused() -> None:
    for reason in ("x" * 300, "two\nlines"):
        with pytest.raises(BundleRefused):
            make_revocation("west", at=NOW, reason=reason)


def test_too_many_revocations_are_refused() -> None:
    many = [make_revocation(f"c{n}", at=NOW) for n in range(MOST_REVOKED + 1)]
    with pytest.raises(BundleRefused):
        bundle(2, 0, signed_by=0, revoked=tuple(many))


def test_the_spiffe_document_holds_each_root() -> None:
    document = json.loads(msgspec.json.encode(spiffe_document(ROTATION[1])))
    assert document["spiffe_sequence"] == 2
    assert len(document["keys"]) == 2
    for key, root in zip(document["keys"], root_certificates(ROTATION[1]), strict=True):
        assert (key["use"], key["kty"], key["crv"]) == ("x509-svid", "EC", "P-256")
        [der] = key["x5c"]
        assert x509.load_der_x509_certificate(base64.b64decode(der)) == root
        assert len(base64.urlsafe_b64decode(key["x"] + "=")) == len(base64.urlsafe_b64decode(key["y"] + "=")) == 32


def test_the_pem_holds_each_root() -> None:
    found = x509.load_pem_x509_certificates(bundle_pem(ROTATION[1]))
    assert tuple(found) == root_certificates(ROTATION[1]) == tuple(ROOTS[:2])
