"""Certificates have our profiles, live within the life of their issuer, and are printed and read in one way."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from tests.support.trust import DOMAIN, EAST, make_authorities
from trust.certificates import (
    BACKDATE,
    CLOCK_SKEW,
    CertificateRefused,
    certificate_pem,
    check_request,
    describe,
    key_pem,
    load_certificate,
    load_key,
    make_intermediate,
    make_leaf,
    make_request,
    make_root,
    new_key,
    root_domain,
)
from trust.enrolment import Intermediate
from trust.spiffe import ClusterName, Identity, MeshDomain, Namespace, ServiceAccount, parse_domain, spiffe_id

NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
DAY = timedelta(days=1)
CART = Identity(cluster=EAST, namespace=Namespace("shop"), account=ServiceAccount("cart"))
KEY = new_key()
AUTHORITY = make_authorities(EAST, now=NOW)[EAST]

labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
short_labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,24}[a-z0-9])?", fullmatch=True)


def leaf(
    identity: Identity = CART,
    *extra_dns: str,
    now: datetime = NOW,
    lifetime: timedelta = timedelta(hours=1),
    authority: Intermediate = AUTHORITY,
) -> x509.Certificate:
    return make_leaf(
        authority.certificate,
        authority.key,
        public_key=KEY.public_key(),
        identity=identity,
        domain=DOMAIN,
        extra_dns=extra_dns,
        now=now,
        lifetime=lifetime,
    )


def test_the_root_signs_intermediates_and_they_sign_leaves_only() -> None:
    basic = [
        certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        for certificate in (AUTHORITY.root, AUTHORITY.certificate, leaf())
    ]
    assert [(it.critical, it.value.ca, it.value.path_length) for it in basic] == [
        (True, True, 1),
        (True, True, 0),
        (True, False, None),
    ]


def test_an_intermediate_is_constrained_to_the_slice_of_its_cluster() -> None:
    constraints = AUTHORITY.certificate.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert constraints.value.excluded_subtrees is None
    assert constraints.value.permitted_subtrees == [
        x509.UniformResourceIdentifier("east.mesh.test"),
        x509.DNSName("east.mesh.test"),
    ]


def test_a_leaf_is_an_x509_svid_that_serves_and_calls() -> None:
    extensions = leaf(CART, "cart.east.mesh.test").extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical, "the subject is empty (RFC 5280 section 4.2.1.6)"
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://east.mesh.test/ns/shop/sa/cart"
    ]
    assert names.value.get_values_for_type(x509.DNSName) == ["cart.shop.east.mesh.test", "cart.east.mesh.test"]
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    ]
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign


def test_authorities_of_one_name_and_two_keys_have_two_subjects() -> None:
    other = make_authorities(EAST, now=NOW)[EAST]
    assert other.certificate.subject != AUTHORITY.certificate.subject
    assert other.root.subject != AUTHORITY.root.subject


@given(
    st.integers(min_value=-300, max_value=86400),
    st.timedeltas(min_value=timedelta(seconds=1), max_value=timedelta(days=900)),
)
def test_no_leaf_lives_outside_the_life_of_its_issuer(seconds: int, lifetime: timedelta) -> None:
    now = NOW.replace(microsecond=0) + timedelta(seconds=seconds)
    made = leaf(now=now, lifetime=lifetime)
    issuer = AUTHORITY.certificate
    assert issuer.not_valid_before_utc <= made.not_valid_before_utc <= now <= made.not_valid_after_utc
    assert made.not_valid_after_utc <= min(issuer.not_valid_after_utc, now + lifetime)


def test_a_certificate_starts_a_little_before_it_is_made() -> None:
    key = new_key()
    root = make_root(key, DOMAIN, now=NOW, lifetime=DAY)
    assert root.not_valid_before_utc == NOW.replace(microsecond=0) - BACKDATE
    assert leaf(now=NOW + DAY / 2).not_valid_before_utc == NOW.replace(microsecond=0) + DAY / 2 - BACKDATE


def test_clocks_may_differ_by_what_is_promised_at_every_step() -> None:
    # The root's clock is right, the control plane's is early by the promise, and the proxy's late by it.
    early, late = NOW - CLOCK_SKEW, NOW - CLOCK_SKEW - timedelta(seconds=2)
    issued = leaf(now=early)
    assert issued.not_valid_before_utc <= late
    assert AUTHORITY.certificate.not_valid_before_utc <= late
    assert leaf(now=NOW).not_valid_before_utc <= late, "a round trip later than the clock says"


@pytest.mark.parametrize("now", [NOW - timedelta(minutes=11), NOW + timedelta(days=2)])
def test_an_issuer_that_is_not_valid_signs_nothing(now: datetime) -> None:
    with pytest.raises(CertificateRefused, match=r"expired|not valid before"):
        leaf(now=now)


@pytest.mark.parametrize("lifetime", [timedelta(0), timedelta(seconds=-1)])
def test_a_certificate_lives_for_a_time_from_now_on(lifetime: timedelta) -> None:
    with pytest.raises(ValueError, match="cannot live"):
        leaf(lifetime=lifetime)


@pytest.mark.parametrize(
    "name",
    ["west.mesh.test", "east.mesh.test.evil.example", "xeast.mesh.test", "", "*.east.mesh.test", "EAST.mesh.test"],
)
def test_a_dns_name_outside_the_slice_is_refused(name: str) -> None:
    with pytest.raises(CertificateRefused, match="not a DNS name within"):
        leaf(CART, name)


def test_a_service_account_too_long_for_dns_is_known_by_its_uri_alone() -> None:
    account = ServiceAccount(".".join(["a" * 63] * 3 + ["b" * 61]))
    identity = Identity(cluster=EAST, namespace=Namespace("shop"), account=account)
    summary = describe(leaf(identity))
    assert summary.dns_names == ()
    assert summary.spiffe_id == spiffe_id(identity, DOMAIN)


@given(st.lists(short_labels, min_size=2, max_size=2).map(".".join).filter(lambda name: len(name) <= 53), labels)
def test_the_longest_names_fit_into_certificates(domain: str, cluster: str) -> None:
    mesh, name = parse_domain(domain), ClusterName(cluster)
    root = make_root(KEY, mesh, now=NOW, lifetime=DAY)
    assert root_domain(root) == mesh
    intermediate = make_intermediate(
        root, KEY, public_key=KEY.public_key(), cluster=name, domain=mesh, now=NOW, lifetime=DAY
    )
    assert f"{cluster}.{domain}" in str(intermediate.extensions.get_extension_for_class(x509.NameConstraints).value)
    assert check_request(make_request(KEY, name, mesh, "f" * 64), name, mesh, "f" * 64) == KEY.public_key()


def test_a_request_is_refused_for_another_name_mesh_or_statement() -> None:
    request = make_request(KEY, EAST, DOMAIN, "said")
    assert check_request(request, EAST, DOMAIN, "said") == KEY.public_key()
    with pytest.raises(CertificateRefused, match="not for west"):
        check_request(request, ClusterName("west"), DOMAIN, "said")
    with pytest.raises(CertificateRefused, match=r"of other\.test"):
        check_request(request, EAST, MeshDomain("other.test"), "said")
    with pytest.raises(CertificateRefused, match="changed after it was made"):
        check_request(request, EAST, DOMAIN, "not said")


def test_a_request_that_its_key_did_not_sign_is_refused() -> None:
    request = bytearray(
        x509.load_pem_x509_csr(make_request(KEY, EAST, DOMAIN, "said")).public_bytes(serialization.Encoding.DER)
    )
    request[request.index(b"east")] = ord("w")  # the subject is no longer what was signed
    pem = x509.load_der_x509_csr(bytes(request)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(CertificateRefused, match="not signed by its own key"):
        check_request(pem, ClusterName("wast"), DOMAIN, "said")


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)])
def test_keys_of_another_kind_are_refused(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "east")])
    )
    request = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(CertificateRefused, match="P-256"):
        check_request(request, EAST, DOMAIN, "said")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with pytest.raises(CertificateRefused, match="P-256"):
        load_key(pem)


@given(st.binary(max_size=200))
def test_what_is_no_pem_is_refused_and_crashes_nothing(junk: bytes) -> None:
    for pem in (junk, b"-----BEGIN CERTIFICATE-----\n" + junk + b"\n-----END CERTIFICATE-----\n"):
        with pytest.raises(CertificateRefused):
            load_certificate(pem)
        with pytest.raises(CertificateRefused):
            load_key(pem)
        with pytest.raises(CertificateRefused):
            check_request(pem, EAST, DOMAIN, "said")


@pytest.mark.parametrize("passphrase", [None, b"correct horse", bytes(range(1, 256))])
def test_a_key_that_was_printed_is_read_again(passphrase: bytes | None) -> None:
    assert key_pem(load_key(key_pem(KEY, passphrase), passphrase)) == key_pem(KEY)


def test_an_encrypted_key_needs_its_passphrase() -> None:
    pem = key_pem(KEY, b"correct horse")
    with pytest.raises(CertificateRefused, match="no passphrase was given"):
        load_key(pem)
    with pytest.raises(CertificateRefused, match="does not open"):
        load_key(pem, b"battery staple")


def test_one_certificate_is_read_and_two_are_refused() -> None:
    pem = certificate_pem(AUTHORITY.root)
    assert load_certificate(pem) == AUTHORITY.root
    with pytest.raises(CertificateRefused, match="2 certificates"):
        load_certificate(pem + pem)


def test_a_summary_says_who_and_until_when() -> None:
    summary = describe(leaf(lifetime=timedelta(minutes=1)))
    assert summary.spiffe_id == "spiffe://east.mesh.test/ns/shop/sa/cart"
    assert not summary.is_ca
    assert summary.not_after == NOW.replace(microsecond=0) + timedelta(minutes=1)
    assert summary.issuer == describe(AUTHORITY.certificate).subject
    assert "CN=east,DC=mesh,DC=test" in summary.issuer
    assert describe(AUTHORITY.root).is_ca
