"""A mesh's authorities in memory, for tests that need certificates and no directories."""

from datetime import datetime, timedelta

from trust.authority import Intermediate
from trust.certificates import make_intermediate, make_root, new_key
from trust.issuance import Issuer
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
    return {cluster: Issuer(authority, leaf_lifetime=leaf_lifetime) for cluster, authority in authorities.items()}
