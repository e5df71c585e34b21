"""Every name that crosses a wire: host names, SNI, xDS resource names, node ids, etcd keys. Made and parsed here.

In this module `cluster` is a member of the mesh; Envoy's clusters are called upstreams.
"""

from typing import NewType

from federation.model import PodKey, ServiceKey
from trust.spiffe import ClusterName, MeshDomain, Namespace, cluster_slice, gateway_dns_name, parse_cluster

UpstreamName = NewType("UpstreamName", str)
"""Name of an Envoy cluster."""

LOCAL_SUFFIX = "svc.cluster.local"
CLUSTERSET_SUFFIX = "svc.clusterset.local"

WORKLOAD_SECRET = "workload"  # noqa: S105 - the name of an SDS resource, not a secret
TRUST_BUNDLE_SECRET = "trust-bundle"  # noqa: S105 - likewise

OUTBOUND_LISTENER = "outbound"
OUTBOUND_TUNNEL_LISTENER = "outbound-connect"
OUTBOUND_ROUTES = "outbound"
INBOUND_LISTENER = "inbound"
GATEWAY_LISTENER = "east-west"
GATEWAY_ROUTES = "east-west"
FEDERATION_UPSTREAM = UpstreamName("federation")
CONNECT_UPSTREAM = UpstreamName("outbound-connect")

UPSTREAM_HEADER = "x-isthmus-upstream"
"""Response header of a sidecar to its app: who answered, as `<cluster>/<zone>/<namespace>/<pod>`."""
FLAGS_HEADER = "x-isthmus-flags"
"""Response header between sidecars: a reply of the far sidecar itself, with Envoy's flags of what went wrong."""
GATEWAY_ENDPOINT_HEADER = "x-isthmus-endpoint"
"""CONNECT header to a gateway: the pod that is meant, as `<address>:<port>`."""
GATEWAY_HEALTH_PATH = "/healthz"

ETCD_PREFIX = "/isthmus/v1/"
EXPORTS_PREFIX = f"{ETCD_PREFIX}exports/"
PROXIES_PREFIX = f"{ETCD_PREFIX}proxies/"
REVOCATIONS_PREFIX = f"{ETCD_PREFIX}revocations/"
TOKENS_PREFIX = f"{ETCD_PREFIX}tokens/"
DEPARTURES_PREFIX = f"{ETCD_PREFIX}departures/"
DECIDED_PREFIX = f"{ETCD_PREFIX}decided/"


def host_port(address: str, port: int) -> str:
    """Returns an IP address and a port as Envoy and gRPC write them: an IPv6 address stands in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def local_host(key: ServiceKey) -> str:
    """Returns the name of a service in its own cluster: `cart.shop.svc.cluster.local`."""
    return f"{key.name}.{key.namespace}.{LOCAL_SUFFIX}"


def clusterset_host(key: ServiceKey) -> str:
    """Returns the mesh-wide name of a service (MCS API): `cart.shop.svc.clusterset.local`."""
    return f"{key.name}.{key.namespace}.{CLUSTERSET_SUFFIX}"


def complete_host(host: str, namespace: Namespace) -> str:
    """Returns the full name of a service that is written as Kubernetes users write it in a pod of `namespace`.

    `cart`, `cart.shop` and `cart.shop.svc` are completed to the local name; any other text is returned as it is.
    """
    match host.lower().removesuffix(".").split("."):
        case [name] if name:
            return local_host(ServiceKey(namespace, name))
        case [name, of] | [name, of, "svc"]:
            return local_host(ServiceKey(Namespace(of), name))
        case labels:
            return ".".join(labels)


def upstream_label(cluster: ClusterName, zone: str, pod: PodKey) -> str:
    """Returns what UPSTREAM_HEADER says of a workload instance: `west/a/shop/cart-1`."""
    return f"{cluster}/{zone}/{pod}"


def parse_upstream_label(text: str) -> tuple[str, str, str, str] | None:
    """Inverse of `upstream_label`: (cluster, zone, namespace, pod), or None for another text."""
    match text.split("/"):
        case [cluster, zone, namespace, pod]:
            return cluster, zone, namespace, pod
        case _:
            return None


def outbound_upstream(host: str, port: int) -> UpstreamName:
    """Returns the Envoy cluster for calls to a service port: `outbound|80|cart.shop.svc.cluster.local`."""
    return UpstreamName(f"outbound|{port}|{host}")


def inbound_upstream(port: int, *, is_http2: bool = False) -> UpstreamName:
    """Returns the Envoy cluster that leads from a sidecar to the app beside it, by the app's port and protocol."""
    return UpstreamName(f"inbound|{port}|h2c" if is_http2 else f"inbound|{port}")


def tcp_use_listener(listen_port: int) -> str:
    """Returns the listener for a declared TCP dependency."""
    return f"outbound-tcp|{listen_port}"


def exported_authority(cluster: ClusterName, key: ServiceKey, domain: MeshDomain) -> str:
    """Returns the CONNECT authority and gateway upstream of an exported service: `cart.shop.svc.west.mesh.test`."""
    return f"{key.name}.{key.namespace}.svc.{cluster_slice(cluster, domain)}"


def service_sni(cluster: ClusterName, key: ServiceKey, port: int, domain: MeshDomain) -> str:
    """Returns the SNI on the mesh port: which service port is meant. `80.cart.shop.svc.west.mesh.test`."""
    return f"{port}.{exported_authority(cluster, key, domain)}"


def gateway_upstream(cluster: ClusterName) -> UpstreamName:
    """Returns the Envoy cluster of a peer's gateways for HTTP services."""
    return UpstreamName(f"gateway|{cluster}")


def tcp_gateway_upstream(cluster: ClusterName) -> UpstreamName:
    """Returns the Envoy cluster of a peer's gateways for plain TCP: apart, so that a stalled reader blocks no HTTP."""
    return UpstreamName(f"gateway-tcp|{cluster}")


def tunnel_listener(cluster: ClusterName) -> str:
    """Returns the internal listener that tunnels HTTP services' connections to a peer."""
    return f"tunnel|{cluster}"


def tcp_tunnel_listener(cluster: ClusterName) -> str:
    """Returns the internal listener that tunnels plain TCP connections to a peer."""
    return f"tunnel-tcp|{cluster}"


def tunnel_sni(caller: ClusterName, callee: ClusterName, domain: MeshDomain) -> str:
    """Returns the SNI of tunnels between two members: each caller has a filter chain of its own at a gateway."""
    return f"{caller}.{gateway_dns_name(callee, domain)}"


def inbound_rules(protocol: str, key: ServiceKey) -> str:
    """Returns the extension resource that says who may come in to a service: `inbound-http|shop/cart`."""
    return f"inbound-{protocol}|{key}"


def sidecar_node(cluster: ClusterName, pod: PodKey) -> str:
    """Returns the Envoy node id of a sidecar: `east/shop/cart-1`."""
    return f"{cluster}/{pod.namespace}/{pod.name}"


def gateway_node(cluster: ClusterName, name: str) -> str:
    """Returns the Envoy node id of a gateway: `east/gateway-1`."""
    return f"{cluster}/{name}"


def parse_node(node: str) -> tuple[ClusterName, PodKey | str] | None:
    """Inverse of `sidecar_node` (gives the pod's key) and `gateway_node` (gives the gateway's name); None otherwise."""
    match node.split("/"):
        case [cluster, namespace, pod] if cluster and namespace and pod:
            return ClusterName(cluster), PodKey(Namespace(namespace), pod)
        case [cluster, name] if cluster and name:
            return ClusterName(cluster), name
        case _:
            return None


def member_key(cluster: ClusterName) -> str:
    """Returns the etcd key of a MemberCluster."""
    return f"{ETCD_PREFIX}members/{cluster}"


def export_key(cluster: ClusterName, key: ServiceKey) -> str:
    """Returns the etcd key of what `cluster` offers under `key`."""
    return f"{EXPORTS_PREFIX}{cluster}/{key.namespace}/{key.name}"


def export_prefix(cluster: ClusterName) -> str:
    """Returns the prefix of all etcd keys of what `cluster` offers."""
    return f"{EXPORTS_PREFIX}{cluster}/"


def freshness_key(cluster: ClusterName) -> str:
    """Returns the etcd key of when a peer was last heard."""
    return f"{ETCD_PREFIX}freshness/{cluster}"


def drain_key(cluster: ClusterName, service: ServiceKey | None) -> str:
    """Returns the etcd key of a Drain that an admin of this cluster asked for: of one service, or of all."""
    return f"{ETCD_PREFIX}drains/{cluster}" + (f"/{service.namespace}/{service.name}" if service else "")


def severance_key(cluster: ClusterName, service: ServiceKey | None) -> str:
    """Returns the etcd key of a Severance of this cluster: of one service, or of all."""
    return f"{ETCD_PREFIX}severances/{cluster}" + (f"/{service.namespace}/{service.name}" if service else "")


def departure_key(cluster: ClusterName) -> str:
    """Returns the etcd key of a Departure; under the own name: this cluster has left."""
    return f"{DEPARTURES_PREFIX}{cluster}"


def decided_key(key: str) -> str:
    """Returns the etcd key of the number of the last decision about the record under `key`."""
    return f"{DECIDED_PREFIX}{key.removeprefix(ETCD_PREFIX)}"


def token_key(digest: str) -> str:
    """Returns the etcd key of a join token, by the hex SHA-256 of the token."""
    return f"{TOKENS_PREFIX}{digest}"


def revocation_key(subject: str) -> str:
    """Returns the etcd key of a revocation that this cluster decided on; `subject` as a Revocation prints it."""
    return f"{REVOCATIONS_PREFIX}{subject}"


def statement_key(cluster: ClusterName) -> str:
    """Returns the etcd key of what a peer last said of its trust."""
    return f"{ETCD_PREFIX}trust/statements/{cluster}"


def grant_key(cluster: ClusterName) -> str:
    """Returns the etcd key of a grant that waits here for its addressee."""
    return f"{ETCD_PREFIX}trust/grants/{cluster}"


def proxy_key(node: str) -> str:
    """Returns the etcd key of what a proxy of this cluster acknowledged."""
    return f"{PROXIES_PREFIX}{node}"


LEADER_KEY = f"{ETCD_PREFIX}leader"
REFILLED_KEY = f"{ETCD_PREFIX}refilled"
"""Written by a replica that wrote again what etcd had lost and the leader did not know of."""
TAKEN_BACK_KEY = f"{ETCD_PREFIX}taken-back"
"""Written whenever what was decided is taken back: who restores without having seen that restores nothing."""


def parse_etcd_key(text: str) -> tuple[str, ClusterName, ServiceKey | None] | None:
    """Inverse of the keys by cluster: (kind, cluster, service), with the kinds below. None for other keys."""
    if not text.startswith(ETCD_PREFIX):
        return None
    match text.removeprefix(ETCD_PREFIX).split("/"):
        case ["members" | "freshness" | "drains" | "severances" | "departures" as kind, cluster]:
            return kind, parse_cluster(cluster), None
        case ["exports" | "drains" | "severances" as kind, cluster, namespace, name]:
            return kind, parse_cluster(cluster), ServiceKey(Namespace(namespace), name)
        case _:
            return None
