"""Who somebody is: the names of identities, made and parsed in this one place.

Every member cluster owns one slice of the mesh's trust domain, `<cluster>.<domain>`. Its workloads are

    spiffe://<cluster>.<domain>/ns/<namespace>/sa/<service account>     URI SAN, what is checked
    <service account>.<namespace>.<cluster>.<domain>                    DNS SAN, for programs that know no SPIFFE

Source: SPIFFE-ID standard, section 2 (https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md).
"""

import re
from typing import NewType

import msgspec

MeshDomain = NewType("MeshDomain", str)
"""DNS name of the whole mesh, such as `mesh.example`."""
ClusterName = NewType("ClusterName", str)
"""Name of a member cluster: one DNS label."""
Namespace = NewType("Namespace", str)
ServiceAccount = NewType("ServiceAccount", str)
SpiffeId = NewType("SpiffeId", str)
"""A whole `spiffe://...` URI."""

SYSTEM_NAMESPACE = Namespace("isthmus-system")
CONTROL_ACCOUNT = ServiceAccount("control")
GATEWAY_ACCOUNT = ServiceAccount("gateway")

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_URI = re.compile(r"spiffe://(?P<cluster>[^./]+)\.(?P<domain>[^/]+)/ns/(?P<namespace>[^/]+)/sa/(?P<account>[^/]+)")
_MAX_DOMAIN = 53
# What we put before it, `65535.<name>.<namespace>.svc.<cluster>.`, has up to 202 characters, and Envoy takes an SNI of
# 255: one service whose name was longer would make it refuse all clusters that come with it.


class InvalidName(ValueError):
    """A name that may not be part of an identity; the message says which and why."""


class Identity(msgspec.Struct, frozen=True, order=True):
    """One service account in one member cluster."""

    cluster: ClusterName
    namespace: Namespace
    account: ServiceAccount


def is_dns_label(text: str) -> bool:
    """Says whether `text` is one RFC 1123 label: what Kubernetes takes as the name of a namespace."""
    return _LABEL.fullmatch(text) is not None


def is_dns_name(text: str) -> bool:
    """Says whether `text` is a lower-case DNS name of one label or more, as Kubernetes takes for object names."""
    return len(text) <= 253 and all(is_dns_label(label) for label in text.split("."))


def parse_cluster(text: str) -> ClusterName:
    """Returns `text` as the name of a member cluster; raises InvalidName."""
    if not is_dns_label(text):
        raise InvalidName(f"{text!r} is not a cluster name: lower-case letters, digits and '-', at most 63")
    return ClusterName(text)


def parse_domain(text: str) -> MeshDomain:
    """Returns `text` as the domain of a mesh; raises InvalidName. At least two labels."""
    if len(text) > _MAX_DOMAIN or "." not in text or not is_dns_name(text):
        raise InvalidName(f"{text!r} is not a mesh domain: a DNS name of two labels or more, such as mesh.example")
    return MeshDomain(text)


def cluster_slice(cluster: ClusterName, domain: MeshDomain) -> str:
    """Returns the part of the trust domain that belongs to `cluster`: what its intermediate is constrained to."""
    return f"{cluster}.{domain}"


def spiffe_id(identity: Identity, domain: MeshDomain) -> SpiffeId:
    """Prints an identity; the inverse of `parse_spiffe_id`."""
    where = cluster_slice(identity.cluster, domain)
    return SpiffeId(f"spiffe://{where}/ns/{identity.namespace}/sa/{identity.account}")


def parse_spiffe_id(text: str, domain: MeshDomain) -> Identity:
    """Parses a SPIFFE id of this mesh; raises InvalidName for any other text."""
    match = _URI.fullmatch(text)
    if match is None or match["domain"] != domain:
        raise InvalidName(f"{text!r} is not an identity of the mesh {domain}")
    if not (is_dns_label(match["cluster"]) and is_dns_label(match["namespace"]) and is_dns_name(match["account"])):
        raise InvalidName(f"{text!r} has a part that is not a Kubernetes name")
    return Identity(
        cluster=ClusterName(match["cluster"]),
        namespace=Namespace(match["namespace"]),
        account=ServiceAccount(match["account"]),
    )


def any_identity_pattern(domain: MeshDomain, cluster: ClusterName | None = None) -> str:
    """Returns an RE2 pattern for the whole of any SPIFFE id of this mesh, or of one cluster of it."""
    where = re.escape(cluster) if cluster else "[a-z0-9-]+"
    return rf"spiffe://{where}[.]{re.escape(domain)}/ns/[a-z0-9-]+/sa/[a-z0-9.-]+"


def any_cluster_pattern(domain: MeshDomain, namespace: Namespace, account: ServiceAccount) -> str:
    """Returns an RE2 pattern for the whole of the SPIFFE ids that one service account has in the members of a mesh."""
    where = rf"[a-z0-9-]+[.]{re.escape(domain)}"
    return rf"spiffe://{where}/ns/{re.escape(namespace)}/sa/{re.escape(account)}"


def foreign_letter_pattern() -> str:
    """Returns an RE2 pattern for the whole of any text with a letter that no SPIFFE id of a mesh has.

    Bytes that are no UTF-8 count for nothing and hide nothing (`\\C` is any byte).
    """
    return r"\C*[^-a-z0-9:/.]\C*"


def workload_dns_name(identity: Identity, domain: MeshDomain) -> str:
    """Returns the DNS SAN of a workload's certificate."""
    return f"{identity.account}.{identity.namespace}.{cluster_slice(identity.cluster, domain)}"


def control_dns_name(cluster: ClusterName, domain: MeshDomain) -> str:
    """Returns the DNS SAN and SNI of a cluster's control plane."""
    return f"control.{cluster_slice(cluster, domain)}"


def gateway_dns_name(cluster: ClusterName, domain: MeshDomain) -> str:
    """Returns the DNS SAN and SNI of a cluster's east-west gateway."""
    return f"gateway.{cluster_slice(cluster, domain)}"


def control_identity(cluster: ClusterName) -> Identity:
    """Returns the identity of a cluster's control plane."""
    return Identity(cluster=cluster, namespace=SYSTEM_NAMESPACE, account=CONTROL_ACCOUNT)


def gateway_identity(cluster: ClusterName) -> Identity:
    """Returns the identity of a cluster's east-west gateways."""
    return Identity(cluster=cluster, namespace=SYSTEM_NAMESPACE, account=GATEWAY_ACCOUNT)
