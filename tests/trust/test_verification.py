"""Each check of a chain refuses what is not exactly our profile."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st

from tests.support.trust import DOMAIN, EAST, WEST, make_authorities, make_issuer
from trust.certificates import (
    CertificateRefused,
    load_certificate,
    make_intermediate,
    make_leaf,
    make_root,
    new_key,
    spiffe_identity,
)
from trust.enrolment import Intermediate
from trust.spiffe import ClusterName, Identity, MeshDomain, Namespace, ServiceAccount, control_identity
from trust.verification import check_chain, check_intermediate, check_root

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
KEY = new_key()
MESH = make_authorities(EAST, WEST, now=NOW)
CART = Identity(cluster=EAST, namespace=Namespace("shop"), account=ServiceAccount("cart"))
ID = x509.UniformResourceIdentifier("spiffe://east.mesh.test/ns/shop/sa/cart")

Change = Callable[[x509.CertificateBuilder], x509.CertificateBuilder]


def without(builder: x509.CertificateBuilder, kind: type[x509.ExtensionType]) -> x509.CertificateBuilder:
    kept = [extension for extension in builder._extensions if not isinstance(extension.value, kind)]
    return x509.CertificateBuilder(
        builder._issuer_name,
        builder._subject_name,
        builder._public_key,
        builder._serial_number,
        builder._not_valid_before,
        builder._not_valid_after,
        kept,
    )


def remade(certificate: x509.Certificate, signer: Intermediate, change: Change) -> x509.Certificate:
    """Signs a certificate again, changed: what a holder of the key could make."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(certificate.subject)
        .issuer_name(certificate.issuer)
        .public_key(certificate.public_key())
        .serial_number(certificate.serial_number)
        .not_valid_before(certificate.not_valid_before_utc)
        .not_valid_after(certificate.not_valid_after_utc)
    )
    for extension in certificate.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    return change(builder).sign(signer.key, hashes.SHA256())


def with_names(*names: x509.GeneralName) -> Change:
    def change(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
        bare = without(builder, x509.SubjectAlternativeName)
        return bare.add_extension(x509.SubjectAlternativeName(names), critical=True) if names else bare

    return change


def leaf(identity: Identity = CART, signer: Intermediate = MESH[EAST]) -> x509.Certificate:
    return make_leaf(
        signer.certificate,
        signer.key,
        public_key=KEY.public_key(),
        identity=identity,
        domain=DOMAIN,
        extra_dns=(),
        now=NOW,
        lifetime=timedelta(hours=1),
    )


def check(certificate: x509.Certificate, authority: Intermediate = MESH[EAST], now: datetime = NOW) -> Identity:
    return check_chain(certificate, authority.certificate, authority.root, domain=DOMAIN, now=now)


labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)


@given(labels.map(Namespace), st.lists(labels, min_size=1, max_size=3).map(".".join).map(ServiceAccount))
def test_what_an_issuer_issues_proves_the_identity(namespace: Namespace, account: ServiceAccount) -> None:
    identity = Identity(cluster=EAST, namespace=namespace, account=account)
    svid = make_issuer(MESH[EAST]).issue(identity, now=NOW)
    end = b"-----END CERTIFICATE-----\n"
    assert check(load_certificate(svid.certificate_chain_pem.split(end)[0] + end)) == identity


@given(labels.map(ClusterName))
def test_no_intermediate_proves_an_identity_of_another_cluster(cluster: ClusterName) -> None:
    if cluster != EAST:
        with pytest.raises(CertificateRefused):
            check(leaf(control_identity(cluster)))


def test_the_chain_of_another_cluster_or_root_is_refused() -> None:
    with pytest.raises(CertificateRefused):
        check(leaf(), MESH[WEST])
    with pytest.raises(CertificateRefused, match="not signed by"):
        check(leaf(), replace(MESH[EAST], root=make_authorities(EAST, now=NOW)[EAST].root))


@pytest.mark.parametrize("now", [NOW - timedelta(minutes=11), NOW + timedelta(hours=1, seconds=1)])
def test_a_leaf_proves_nothing_outside_its_time(now: datetime) -> None:
    with pytest.raises(CertificateRefused, match=r"expired at|not valid before"):
        check(leaf(), now=now)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_names(), "0 URI names"),
        (with_names(x509.DNSName("cart.shop.east.mesh.test")), "0 URI names"),
        (with_names(ID, x509.UniformResourceIdentifier("spiffe://west.mesh.test/ns/shop/sa/cart")), "2 URI names"),
        (with_names(x509.UniformResourceIdentifier("spiffe://east.mesh.test/shop")), "not an identity"),
        (with_names(ID, x509.DNSName("cart.shop.west.mesh.test")), "outside its slice"),
        (with_names(ID, x509.RFC822Name("cart@east.mesh.test")), "outside its slice"),
        (
            lambda builder: without(builder, x509.BasicConstraints).add_extension(
                x509.BasicConstraints(ca=True, path_length=0), critical=True
            ),
            "not for signing handshakes alone",
        ),
        (lambda builder: without(builder, x509.KeyUsage), "not for signing handshakes alone"),
        (
            lambda builder: builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00"), critical=True
            ),
            "nobody here knows",
        ),
    ],
)
def test_a_leaf_of_another_profile_is_refused(change: Change, reason: str) -> None:
    with pytest.raises(CertificateRefused, match=reason):
        check(remade(leaf(), MESH[EAST], change))


def constrained(*names: x509.GeneralName, critical: bool = True) -> Change:
    def change(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
        bare = without(builder, x509.NameConstraints)
        return bare.add_extension(x509.NameConstraints(names, None), critical=critical) if names else bare

    return change


EAST_URI, EAST_DNS = x509.UniformResourceIdentifier("east.mesh.test"), x509.DNSName("east.mesh.test")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (constrained(), "not constrained to"),
        (constrained(EAST_URI), "not constrained to"),
        (constrained(EAST_URI, EAST_DNS, critical=False), "not constrained to"),
        (constrained(EAST_URI, x509.UniformResourceIdentifier("west.mesh.test"), EAST_DNS), "not constrained to"),
        (constrained(x509.UniformResourceIdentifier(".mesh.test"), EAST_DNS), "not constrained to"),
        (
            lambda builder: without(builder, x509.BasicConstraints).add_extension(
                x509.BasicConstraints(ca=True, path_length=1), critical=True
            ),
            "further authorities",
        ),
        (lambda builder: without(builder, x509.BasicConstraints), "not that of an authority"),
    ],
)
def test_an_intermediate_of_another_profile_is_refused(change: Change, reason: str) -> None:
    key = new_key()
    root_key = new_key()
    root = make_root(root_key, DOMAIN, now=NOW, lifetime=timedelta(days=1))
    good = make_intermediate(
        root,
        root_key,
        public_key=key.public_key(),
        cluster=EAST,
        domain=DOMAIN,
        now=NOW,
        lifetime=timedelta(days=1),
    )
    signer = Intermediate(cluster=EAST, domain=DOMAIN, certificate=root, root=root, key=root_key)
    check_intermediate(remade(good, signer, lambda same: same), root, cluster=EAST, domain=DOMAIN, now=NOW)
    with pytest.raises(CertificateRefused, match=reason):
        check_intermediate(remade(good, signer, change), root, cluster=EAST, domain=DOMAIN, now=NOW)


def test_a_root_of_another_mesh_or_none_is_refused() -> None:
    root = MESH[EAST].root
    check_root(root, DOMAIN, now=NOW)
    with pytest.raises(CertificateRefused, match=r"not of other\.test"):
        check_root(root, MeshDomain("other.test"), now=NOW)
    with pytest.raises(CertificateRefused, match="not signed by"):
        check_root(MESH[EAST].certificate, DOMAIN, now=NOW)
    with pytest.raises(CertificateRefused, match="expired"):
        check_root(root, DOMAIN, now=NOW + timedelta(days=2))
    with pytest.raises(CertificateRefused, match="not the root of a mesh"):
        check_root(leaf(), DOMAIN, now=NOW)


def test_an_intermediate_is_that_of_one_cluster() -> None:
    with pytest.raises(CertificateRefused, match=r"not constrained to west\.mesh\.test"):
        check_intermediate(MESH[EAST].certificate, MESH[EAST].root, cluster=WEST, domain=DOMAIN, now=NOW)


def test_the_identity_of_another_mesh_is_refused() -> None:
    with pytest.raises(CertificateRefused, match=r"not an identity of the mesh other\.test"):
        spiffe_identity(leaf(), MeshDomain("other.test"))
