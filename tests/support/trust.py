"""A mesh's authorities in memory, for tests that need certificates and no directories."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from trust.audit import AuditEvent
from trust.bundle import TrustBundle, make_bundle, root_certificates
from trust.certificates import make_intermediate, make_root, new_key, root_domain
from trust.custody import FileCustody
from trust.enrolment import Intermediate, Membership
from trust.issuance import LEAF_LIFETIME, Issuer
from trust.root import ROOT_LIFETIME, Root
from trust.spiffe import ClusterName, MeshDomain

DOMAIN = MeshDomain("mesh.test")
EAST = ClusterName("east")
WEST = ClusterName("west")


def make_authorities(
    *clusters: ClusterName, now: datetime, domain: MeshDomain = DOMAIN, lifetime: timedelta = timedelta(days=1)
) -> dict[ClusterName, Intermediate]:
    """Returns the intermediates of `clusters` under one new root."""
    root_key = new_key()
    root = make_root(root_key, domain, now=now, lifetime=lifetime)
    authorities = {}
    for cluster in clusters:
        key = new_key()
        certificate = make_intermediate(
            root,
            root_key,
            public_key=key.public_key(),
            cluster=cluster,
            domain=domain,
            now=now,
            lifetime=lifetime,
        )
        authorities[cluster] = Intermediate(cluster=cluster, domain=domain, certificate=certificate, root=root, key=key)
    return authorities


def make_issuers(
    *clusters: ClusterName, now: datetime, leaf_lifetime: timedelta = timedelta(hours=1)
) -> dict[ClusterName, Issuer]:
    """Returns what issues the workloads' certificates in each of `clusters`, under one new root."""
    authorities = make_authorities(*clusters, now=now)
    return {cluster: make_issuer(authority, leaf_lifetime=leaf_lifetime) for cluster, authority in authorities.items()}


def make_issuer(
    authority: Intermediate,
    *,
    leaf_lifetime: timedelta = LEAF_LIFETIME,
    on_event: Callable[[AuditEvent], None] = lambda _: None,
) -> Issuer:
    """Returns what issues below one authority, and trusts the root of it alone."""
    return Issuer(authority, bundle_of(authority.root), leaf_lifetime=leaf_lifetime, on_event=on_event)


def init_root(
    directory: Path,
    domain: MeshDomain = DOMAIN,
    *,
    now: datetime,
    passphrase: bytes | None = None,
    lifetime: timedelta = ROOT_LIFETIME,
) -> Root:
    """Makes the root of a mesh that keeps its keys in its own directory."""
    return Root.init(directory, domain, custody=FileCustody(directory, passphrase), now=now, lifetime=lifetime)


def open_root(directory: Path, *, now: datetime, passphrase: bytes | None = None) -> Root:
    """Opens the root of a mesh that keeps its keys in its own directory."""
    return Root.open(directory, custody=FileCustody(directory, passphrase), now=now)


def bundle_of(*roots: x509.Certificate) -> TrustBundle:
    """Returns a trust bundle of these roots, which none of them has signed: for those who do not check it."""
    return make_bundle(
        new_key(),
        domain=root_domain(roots[0]),
        sequence=1,
        roots=roots,
        generations={},
        revoked=(),
        now=roots[0].not_valid_before_utc,
    )


def is_anchored(membership: Membership) -> bool:
    """Says whether a cluster believes the root of its own authority."""
    return membership.active.root in root_certificates(membership.bundle)
