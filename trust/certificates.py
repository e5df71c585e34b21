"""The profiles of our X.509 certificates, made in this one place. Keys are P-256, signatures ECDSA-SHA-256.

    root          self-signed, pathlen 1
    intermediate  pathlen 0, critical NameConstraints: URI and DNS of one cluster's slice, nothing else
    leaf          one URI SAN (the SPIFFE id), DNS SANs for programs that know no SPIFFE, serverAuth and clientAuth

A constraint is written without a leading dot: for a URI it then means exactly that host, for DNS that name and all
below it (RFC 5280 section 4.2.1.10).

Source: RFC 5280 sections 4 and 6; SPIFFE X509-SVID, sections 2 to 5.
"""

import base64
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trust.refusals import Refusal
from trust.spiffe import (
    ClusterName,
    Identity,
    InvalidName,
    MeshDomain,
    cluster_slice,
    is_dns_name,
    parse_domain,
    parse_spiffe_id,
    spiffe_id,
    workload_dns_name,
)

CLOCK_SKEW = timedelta(minutes=5)
"""How far the clocks of two machines may differ: promised to users."""
BACKDATE = 2 * CLOCK_SKEW
"""Certificates start this long before they are made. CLOCK_SKEW alone would leave no room for whoever is late by just
that: moments are rounded to seconds, and an intermediate that was made by one clock signs by another, whose leaves a
third checks."""

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


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
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """Prints a private key as PKCS#8 PEM, encrypted when there is a passphrase (1 to 1023 bytes, else ValueError)."""
    encryption = (
        serialization.NoEncryption() if passphrase is None else serialization.BestAvailableEncryption(passphrase)
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def load_key(pem: bytes, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """Inverse of `key_pem`; raises CertificateRefused."""
    is_encrypted = b"BEGIN ENCRYPTED PRIVATE KEY" in pem
    if is_encrypted and not passphrase:
        raise CertificateRefused("the key is encrypted and no passphrase was given", "give the passphrase of the key")
    try:
        key = serialization.load_pem_private_key(pem, passphrase if is_encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if is_encrypted:
            raise CertificateRefused(
                "the passphrase does not open the key", "give the passphrase of the key"
            ) from error
        raise CertificateRefused("this is not a private key in PEM", "restore the file from its backup") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateRefused("the key is not a P-256 key", "let Isthmus make the key")
    return key


def sign_words(key: ec.EllipticCurvePrivateKey, words: bytes) -> str:
    """Signs what is no certificate: base64 of a DER signature, ECDSA with SHA-256. A key in a token may be refused."""
    return base64.b64encode(key.sign(words, ec.ECDSA(hashes.SHA256()))).decode()


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Prints a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def load_certificate(pem: bytes) -> x509.Certificate:
    """Inverse of `certificate_pem`: exactly one certificate; raises CertificateRefused."""
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise CertificateRefused("this is not a certificate in PEM", "hand over the file as it was made") from error
    if len(certificates) != 1:
        raise CertificateRefused(
            f"there are {len(certificates)} certificates where one belongs", "hand over the file as it was made"
        )
    return certificates[0]


def make_root(
    key: ec.EllipticCurvePrivateKey, domain: MeshDomain, *, now: datetime, lifetime: timedelta
) -> x509.Certificate:
    """Makes the self-signed root of a mesh. It may sign intermediates, and they may sign no further ones."""
    subject = _ca_subject("Isthmus root", domain, key.public_key())
    builder = _builder(subject, subject, key.public_key(), now=now, lifetime=lifetime)
    return _as_ca(builder, key.public_key(), path_length=1).sign(key, hashes.SHA256())


def make_request(key: ec.EllipticCurvePrivateKey, cluster: ClusterName, domain: MeshDomain, statement: str) -> bytes:
    """Makes a certificate request (PEM) for the intermediate of `cluster`: proof that its maker holds the key.

    `statement`, 1 to 64 characters, is signed with it: the digest of what the cluster says beside the request.
    """
    subject = _tagged_name(cluster, domain, statement)
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def check_request(pem: bytes, cluster: ClusterName, domain: MeshDomain, statement: str) -> ec.EllipticCurvePublicKey:
    """Returns the public key of a request made by `make_request` with the same words; raises CertificateRefused.

    Extensions that it may ask for are not looked at: what a certificate holds is decided by who signs it.
    """
    hint = "hand over the request as the cluster made it"
    try:
        request = x509.load_pem_x509_csr(pem)
        key, is_signed = request.public_key(), request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateRefused("this is not a certificate request in PEM", hint) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateRefused("the certificate request is not for a P-256 key", hint)
    if not is_signed:
        raise CertificateRefused("the certificate request is not signed by its own key", hint)
    if (subject := request.subject) != _tagged_name(cluster, domain, statement):
        if list(subject)[:-1] == list(_name(cluster, domain)):
            raise CertificateRefused("the request was changed after it was made: it says what was not signed", hint)
        message = f"the certificate request is for {print_name(subject)!r}, not for {cluster} of {domain}"
        raise CertificateRefused(message, hint)
    return key


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
    """Makes the intermediate of a cluster, constrained to its slice. It never outlives `issuer`.

    Raises CertificateRefused when `issuer` is not valid at `now`.
    """
    builder = _builder(
        _ca_subject(cluster, domain, public_key), issuer.subject, public_key, now=now, lifetime=lifetime, issuer=issuer
    )
    builder = _as_ca(builder, public_key, path_length=0).add_extension(_authority_key_id(issuer), critical=False)
    return builder.add_extension(slice_constraints(cluster, domain), critical=True).sign(issuer_key, hashes.SHA256())


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
    """Makes an X509-SVID that never outlives `issuer`, with an empty subject and therefore a critical SAN.

    The DNS name of the workload is left out when it would be longer than DNS allows (a service account may have 253
    characters): what is checked is the URI. Raises CertificateRefused when `issuer` is not valid at `now`, or a name
    lies outside the slice of the identity's cluster (whoever checks the certificate would refuse it).
    """
    dns_names = [workload_dns_name(identity, domain), *extra_dns]
    for name in extra_dns:
        if not is_dns_name(name) or not is_within(name, cluster_slice(identity.cluster, domain)):
            message = f"{name!r} is not a DNS name within {cluster_slice(identity.cluster, domain)}"
            raise CertificateRefused(message, "ask for a name within the cluster's slice")
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id(identity, domain))]
    names += [x509.DNSName(name) for name in dict.fromkeys(dns_names) if is_dns_name(name)]
    builder = (
        _builder(x509.Name([]), issuer.subject, public_key, now=now, lifetime=lifetime, issuer=issuer)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(is_ca=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(_authority_key_id(issuer), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
    )
    return builder.sign(issuer_key, hashes.SHA256())


def root_domain(root: x509.Certificate) -> MeshDomain:
    """Returns the mesh that a root was made for; raises CertificateRefused when it names none."""
    labels = [str(part.value) for part in root.subject.get_attributes_for_oid(NameOID.DOMAIN_COMPONENT)]
    try:
        return parse_domain(".".join(reversed(labels)))
    except InvalidName as error:
        message = f"the certificate of {print_name(root.subject)!r} is not the root of a mesh"
        raise CertificateRefused(message, "name the certificate that `isthmus trust init` made") from error


def spiffe_identity(certificate: x509.Certificate, domain: MeshDomain) -> Identity:
    """Returns the identity in the one URI SAN of a certificate that was verified already, such as a TLS peer's.

    Raises CertificateRefused: none, two (a verifier that reads another one than we do is how those are abused), or one
    of another mesh.
    """
    uris = [name.value for name in alternative_names(certificate) if isinstance(name, x509.UniformResourceIdentifier)]
    if len(uris) != 1:
        raise CertificateRefused(
            f"the certificate has {len(uris)} URI names, not one", "show a certificate of the mesh"
        )
    try:
        return parse_spiffe_id(uris[0], domain)
    except InvalidName as error:
        raise CertificateRefused(str(error), f"show a certificate of {domain}") from error


def describe(certificate: x509.Certificate) -> CertificateSummary:
    """Summarises a certificate for people. Raises CertificateRefused when its extensions cannot be read."""
    names = alternative_names(certificate)
    basic = read_extension(certificate, x509.BasicConstraints)
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    return CertificateSummary(
        subject=print_name(certificate.subject),
        issuer=print_name(certificate.issuer),
        serial=f"{certificate.serial_number:x}",
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        is_ca=basic is not None and basic.value.ca,
        spiffe_id=next((uri for uri in uris if uri.startswith("spiffe://")), ""),
        dns_names=tuple(name.value for name in names if isinstance(name, x509.DNSName)),
    )


def print_name(name: x509.Name) -> str:
    """Prints a distinguished name (RFC 4514), with the word for the one attribute that the RFC has no word for."""
    return name.rfc4514_string({NameOID.SERIAL_NUMBER: "serialNumber"})


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Returns the hex SHA-256 of a public key (its SubjectPublicKeyInfo)."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize().hex()


def key_usage(*, is_ca: bool) -> x509.KeyUsage:
    """Returns what the key of an authority, or else of a leaf, may be used for."""
    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def slice_constraints(cluster: ClusterName, domain: MeshDomain) -> x509.NameConstraints:
    """Returns the constraint that keeps an intermediate within the slice of its cluster."""
    host = cluster_slice(cluster, domain)
    return x509.NameConstraints([x509.UniformResourceIdentifier(host), x509.DNSName(host)], None)


def read_extensions(certificate: x509.Certificate) -> x509.Extensions:
    """Returns all extensions; raises CertificateRefused when they are malformed."""
    try:
        return certificate.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise CertificateRefused("the certificate's extensions cannot be read", "show another certificate") from error


def read_extension(certificate: x509.Certificate, kind: type[_Extension]) -> x509.Extension[_Extension] | None:
    """Returns an extension, or None when there is none; raises CertificateRefused when the extensions are malformed."""
    try:
        return read_extensions(certificate).get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def alternative_names(certificate: x509.Certificate) -> tuple[x509.GeneralName, ...]:
    """Returns the names in the SAN extension, of every type; raises CertificateRefused when malformed."""
    extension = read_extension(certificate, x509.SubjectAlternativeName)
    return () if extension is None else tuple(extension.value)


def check_valid_at(certificate: x509.Certificate, what: str, now: datetime) -> None:
    """Checks the validity period alone; `what` begins the message. Raises CertificateRefused."""
    if now < certificate.not_valid_before_utc:
        message = f"{what} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC"
        raise CertificateRefused(message, "check the clock of this machine")
    if now > certificate.not_valid_after_utc:
        message = f"{what} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC"
        raise CertificateRefused(message, "have it made anew, or check the clock of this machine")


def is_within(name: str, suffix: str) -> bool:
    """Says whether a DNS name is `suffix` or lies below it."""
    return name == suffix or name.endswith(f".{suffix}")


def _builder(
    subject: x509.Name,
    issuer_name: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    *,
    now: datetime,
    lifetime: timedelta,
    issuer: x509.Certificate | None = None,
) -> x509.CertificateBuilder:
    """Starts a certificate that is valid from a little before `now`, and never outside the life of its issuer."""
    if lifetime <= timedelta(0):
        raise ValueError(f"a certificate cannot live for {lifetime}")
    moment = now.astimezone(UTC).replace(microsecond=0)  # X.509 counts in seconds
    starts, ends = moment - BACKDATE, moment + lifetime
    if issuer is not None:
        check_valid_at(issuer, "the issuing certificate", now)
        starts, ends = max(starts, issuer.not_valid_before_utc), min(ends, issuer.not_valid_after_utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(starts)
        .not_valid_after(ends)
    )


def _as_ca(
    builder: x509.CertificateBuilder, public_key: ec.EllipticCurvePublicKey, *, path_length: int
) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(key_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _name(common_name: str, domain: MeshDomain) -> x509.Name:
    components = [x509.NameAttribute(NameOID.DOMAIN_COMPONENT, label) for label in reversed(domain.split("."))]
    return x509.Name([*components, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _tagged_name(common_name: str, domain: MeshDomain, tag: str) -> x509.Name:
    return x509.Name([*_name(common_name, domain), x509.NameAttribute(NameOID.SERIAL_NUMBER, tag)])


def _ca_subject(common_name: str, domain: MeshDomain, key: ec.EllipticCurvePublicKey) -> x509.Name:
    """Returns a subject that differs from key to key: verifiers find an issuer by its name, and after a rotation two
    authorities of one cluster are both about."""
    return _tagged_name(common_name, domain, key_fingerprint(key)[:16])


def _authority_key_id(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
