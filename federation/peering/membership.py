"""Whether a cluster is a member at all: the root's signature says so, and nobody else. And who is revoked. Pure."""

from collections.abc import Iterable
from datetime import datetime

from cryptography import x509

from federation.model import MemberCluster
from trust.bundle import Revocation
from trust.certificates import CertificateRefused, load_certificate, spiffe_identity
from trust.spiffe import ClusterName, MeshDomain, control_identity, spiffe_id
from trust.verification import check_intermediate


def check_membership(member: MemberCluster, trust_bundle_pem: bytes, *, domain: MeshDomain, now: datetime) -> None:
    """Checks that a root of the bundle signed the certificate in a member's record; raises CertificateRefused.

    Certificates are no secret, so this proves of hearsay only that there is such a member: nobody can have invented
    it. Where it is and what it offers, it says itself, over TLS.
    """
    certificate = load_certificate(member.certificate.encode())
    refusal = CertificateRefused("there is no root", "start the control plane with its data directory")
    for root in x509.load_pem_x509_certificates(trust_bundle_pem):
        try:
            check_intermediate(certificate, root, cluster=member.name, domain=domain, now=now)
        except CertificateRefused as error:
            refusal = error
        else:
            return
    raise refusal


class NotAPeer(Exception):
    """A certificate that is not that of another cluster's control plane; the message says whose it is."""


def peer_of(certificate_pem: bytes, domain: MeshDomain) -> ClusterName:
    """Returns the cluster whose control plane a verified certificate belongs to; raises NotAPeer."""
    try:
        identity = spiffe_identity(load_certificate(certificate_pem), domain)
    except CertificateRefused as error:
        raise NotAPeer(error.message) from error
    if identity != control_identity(identity.cluster):
        raise NotAPeer(f"{spiffe_id(identity, domain)} is no control plane")
    return identity.cluster


REVOKED = "revoked"
"""Begins what is said of, and to, a cluster that is revoked."""


def why_revoked(revoked: Iterable[Revocation], cluster: ClusterName) -> str:
    """Returns why a cluster may not be spoken with; empty when neither it nor its control plane is revoked."""
    for one in revoked:
        if one.covers(control_identity(cluster)):
            return f"{REVOKED}: {one.reason}" if one.reason else REVOKED
    return ""
