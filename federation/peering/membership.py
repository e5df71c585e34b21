"""Whether a cluster that one only hears of is a member at all: the root's signature says so, and nobody else. Pure."""

from datetime import datetime

from cryptography import x509

from federation.model import MemberCluster
from trust.certificates import CertificateRefused, load_certificate
from trust.spiffe import MeshDomain
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
