"""Checks certificates against our profiles where no TLS stack does it: a grant, a member's record.

Our profiles are narrower than RFC 5280, so each check compares with what `certificates` makes and refuses the rest.
`cryptography.x509.verification` cannot stand in: it refuses every chain with a URI constraint as unsupported.
"""

from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from trust.certificates import (
    CertificateRefused,
    alternative_names,
    check_valid_at,
    is_within,
    key_usage,
    print_name,
    read_extension,
    read_extensions,
    root_domain,
    slice_constraints,
    spiffe_identity,
)
from trust.spiffe import ClusterName, Identity, MeshDomain, cluster_slice, spiffe_id

_UNDERSTOOD = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.NameConstraints,
    x509.SubjectAlternativeName,
    x509.SubjectKeyIdentifier,
    x509.AuthorityKeyIdentifier,
)


def check_root(root: x509.Certificate, domain: MeshDomain, *, now: datetime) -> None:
    """Checks that `root` is the root of the mesh `domain`; raises CertificateRefused."""
    if (named := root_domain(root)) != domain:
        raise CertificateRefused(f"the root is that of {named}, not of {domain}", f"use the root of {domain}")
    _check_issued_by(root, root, "the root")
    constraints = _check_ca(root, "the root")
    if constraints.path_length == 0:
        raise CertificateRefused("the root may sign no intermediates", "use a root that `isthmus trust init` made")
    check_valid_at(root, "the root", now)


def check_intermediate(
    certificate: x509.Certificate, root: x509.Certificate, *, cluster: ClusterName, domain: MeshDomain, now: datetime
) -> None:
    """Checks that `certificate` is the intermediate of `cluster` under `root`; raises CertificateRefused."""
    check_root(root, domain, now=now)
    what = f"the certificate of {cluster}"
    _check_issued_by(certificate, root, what)
    if _check_ca(certificate, what).path_length != 0:
        raise CertificateRefused(f"{what} may sign further authorities", "get it granted again by `isthmus grant`")
    constraints = read_extension(certificate, x509.NameConstraints)
    if constraints is None or not constraints.critical or constraints.value != slice_constraints(cluster, domain):
        message = f"{what} is not constrained to {cluster_slice(cluster, domain)} and to nothing else"
        raise CertificateRefused(message, "get it granted again by `isthmus grant`")
    check_valid_at(certificate, what, now)


def check_chain(
    leaf: x509.Certificate,
    intermediate: x509.Certificate,
    root: x509.Certificate,
    *,
    domain: MeshDomain,
    now: datetime,
) -> Identity:
    """Returns whom a presented chain speaks for; raises CertificateRefused."""
    identity = spiffe_identity(leaf, domain)
    check_intermediate(intermediate, root, cluster=identity.cluster, domain=domain, now=now)
    what = f"the certificate of {spiffe_id(identity, domain)}"
    _check_issued_by(leaf, intermediate, what)
    basic = read_extension(leaf, x509.BasicConstraints)
    usage = read_extension(leaf, x509.KeyUsage)
    if (basic is not None and basic.value.ca) or usage is None or usage.value != key_usage(is_ca=False):
        raise CertificateRefused(f"{what} is not for signing handshakes alone", "only leaves prove an identity")
    for name in alternative_names(leaf):
        is_ours = isinstance(name, x509.UniformResourceIdentifier) or (
            isinstance(name, x509.DNSName) and is_within(name.value, cluster_slice(identity.cluster, domain))
        )
        if not is_ours:
            raise CertificateRefused(f"{what} names {name.value!r}, outside its slice", "only its own issuer may speak")
    check_valid_at(leaf, what, now)
    return identity


def _check_issued_by(certificate: x509.Certificate, issuer: x509.Certificate, what: str) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        message = f"{what} is not signed by {print_name(issuer.subject)!r}"
        raise CertificateRefused(message, "check that both belong to the same mesh") from error
    for extension in read_extensions(certificate):
        if extension.critical and not isinstance(extension.value, _UNDERSTOOD):
            message = f"{what} has a critical extension that nobody here knows: {extension.oid.dotted_string}"
            raise CertificateRefused(message, "use the certificate that Isthmus made")


def _check_ca(certificate: x509.Certificate, what: str) -> x509.BasicConstraints:
    basic = read_extension(certificate, x509.BasicConstraints)
    usage = read_extension(certificate, x509.KeyUsage)
    if basic is None or not basic.critical or not basic.value.ca or usage is None or not usage.value.key_cert_sign:
        raise CertificateRefused(f"{what} is not that of an authority", "use the certificate that Isthmus made")
    return basic.value
