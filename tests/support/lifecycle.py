"""The whole life of a mesh's authorities, as their operators would live it: join, renewal, rotation of the root."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from trust.custody import Custody
from trust.enrolment import Enrolment, Membership
from trust.issuance import Issuer
from trust.joining import Introduction
from trust.root import Root
from trust.spiffe import ClusterName, Identity, MeshDomain, control_identity, gateway_identity

DOMAIN = MeshDomain("mesh.example")
EAST = ClusterName("east")
ABOUT = Introduction(name=EAST, network="net-1", region="eu-west", zones=("a",))
HOLDERS: Mapping[str, Identity] = {
    "workload": Identity(EAST, "shop", "cart"),
    "gateway": gateway_identity(EAST),
    "control plane": control_identity(EAST),
}


@dataclass(frozen=True)
class Chain:
    """What a workload presents, and what the root was then. `leaf` first, `root` last."""

    leaf: x509.Certificate
    intermediate: x509.Certificate
    root: x509.Certificate

    @property
    def certificates(self) -> tuple[x509.Certificate, ...]:
        return (self.leaf, self.intermediate, self.root)


@dataclass(frozen=True)
class Life:
    """Chains by when and by whom: `joined workload`, `renewed gateway`, `rotated control plane` and so on."""

    chains: Mapping[str, Chain]
    root_keys: tuple[tuple[str, ...], ...]
    """The names in the custody of the root: made, announced, finished."""
    cluster_keys: tuple[tuple[str, ...], ...]
    """The names in the custody of the cluster: joined, asked for renewal, retired, at the end."""


def live(directory: Path, *, root_keys: Custody, cluster_keys: Custody, now: datetime) -> Life:
    """Lives through all of it. Each step opens what it needs anew, as a command does."""
    chains: dict[str, Chain] = {}
    in_root, in_cluster = [], []
    Root.init(directory / "root", DOMAIN, custody=root_keys, now=now)

    def root() -> Root:
        return Root.open(directory / "root", custody=root_keys, now=now)

    def cluster() -> Enrolment:
        return Enrolment(directory / "data", cluster_keys)

    def renew() -> Membership:
        return cluster().accept(root().renew(cluster().renewal(ABOUT, now=now), now=now), now=now)

    def issue(member: Membership, when: str) -> None:
        issuer = Issuer(member.active, member.bundle, leaf_lifetime=timedelta(hours=24))
        for name, identity in HOLDERS.items():
            made = x509.load_pem_x509_certificates(issuer.issue(identity, now=now).certificate_chain_pem)
            chains[f"{when} {name}"] = Chain(*made, member.active.root)

    in_root.append(root_keys.names())
    request = cluster().request(ABOUT, domain=DOMAIN, now=now)
    issue(cluster().accept(root().grant(request, now=now), now=now), "joined")
    in_cluster.append(cluster_keys.names())

    cluster().take([root().require_renewal(EAST, now=now)], now=now)
    issue(renew(), "renewed")
    in_cluster.append(cluster_keys.names())
    cluster().retire(now=now)
    in_cluster.append(cluster_keys.names())

    cluster().take([root().announce(now=now)], now=now)
    in_root.append(root_keys.names())
    cluster().take([root().sign_with_next(now=now)], now=now)
    issue(renew(), "rotated")
    cluster().retire(now=now)
    cluster().take([root().retire(now=now)], now=now)
    root().finish()
    in_root.append(root_keys.names())
    in_cluster.append(cluster_keys.names())
    return Life(chains, tuple(in_root), tuple(in_cluster))
