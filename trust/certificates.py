"""The profiles of our X.509 certificates, made and checked in this one place."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from trust.refusals import Refusal
from trust.spiffe import ClusterName, Identity, MeshDomain


class CertificateRefused(Refusal):
    """A certificate, key or request that does not have our profile, or does not prove what it should."""


class CertificateSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What people want to know of a certificate. `serial` and `fingerprint` (SHA-256) are lower-case hex."""

    subject: str
    issuer: str
    serial: str
    not_before: datetime
    not_after: datetime
    fingerprint: str
    is_ca: bool
    spiffe_id: str = ""
    dns_names: tuple[str, ...] = ()


def new_key() -> ec.EllipticCurvePrivateKey:
    """Makes a P-256 key."""
    raise NotImplementedError


def key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """Prints a private key as PKCS#8 PEM, encrypted when there is a passphrase."""
    raise NotImplementedError


def load_key(pem: bytes, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """Inverse of `key_pem`; raises CertificateRefused."""
    raise NotImplementedError


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Prints a certificate as PEM."""
    raise NotImplementedError


def load_certificate(pem: bytes) -> x509.Certificate:
    """Inverse of `certificate_pem`: exactly one certificate; raises CertificateRefused."""
    raise NotImplementedError


def make_root(
    key: ec.EllipticCurvePrivateKey, domain: MeshDomain, *, now: datetime, lifetime: timedelta
) -> x509.Certificate:
    """Makes the self-signed root of a mesh."""
    raise NotImplementedError


def make_request(key: ec.EllipticCurvePrivateKey, cluster: ClusterName, domain: MeshDomain) -> bytes:
    """Makes a certificate request (PEM) for the intermediate of `cluster`."""
    raise NotImplementedError


def check_request(pem: bytes, cluster: ClusterName, domain: MeshDomain) -> ec.EllipticCurvePublicKey:
    """Returns the public key of a request made by `make_request`; raises CertificateRefused."""
    raise NotImplementedError


def make_intermediate(
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    public_key: ec.EllipticCurvePublicKey,
    cluster: ClusterName,
    domain: MeshDomain,
    now: datetime,
    lifetime: timedelta,
) -> x509.Certificate:
    """Makes the intermediate of a cluster, constrained to its slice."""
    raise NotImplementedError


def make_leaf(
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    public_key: ec.EllipticCurvePublicKey,
    identity: Identity,
    domain: MeshDomain,
    extra_dns: Sequence[str],
    now: datetime,
    lifetime: timedelta,
) -> x509.Certificate:
    """Makes an X509-SVID."""
    raise NotImplementedError


def check_root(root: x509.Certificate, domain: MeshDomain, *, now: datetime) -> None:
    """Checks that `root` is the root of the mesh `domain`; raises CertificateRefused."""
    raise NotImplementedError


def check_intermediate(
    certificate: x509.Certificate, root: x509.Certificate, *, cluster: ClusterName, domain: MeshDomain, now: datetime
) -> None:
    """Checks that `certificate` is the intermediate of `cluster` under `root`; raises CertificateRefused."""
    raise NotImplementedError


def check_chain(
    leaf: x509.Certificate,
    intermediate: x509.Certificate,
    root: x509.Certificate,
    *,
    domain: MeshDomain,
    now: datetime,
) -> Identity:
    """Returns whom a presented chain speaks for; raises CertificateRefused."""
    raise NotImplementedError


def spiffe_identity(certificate: x509.Certificate, domain: MeshDomain) -> Identity:
    """Returns the identity in the one URI SAN of a certificate that was verified already (a TLS peer's);
    raises CertificateRefused."""
    raise NotImplementedError


def describe(certificate: x509.Certificate) -> CertificateSummary:
    """Summarises a certificate for people."""
    raise NotImplementedError
