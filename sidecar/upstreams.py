"""The Envoy clusters of a sidecar: one per service port, its hosts, and how each host is spoken to. Pure.

A cluster depends on which members offer the service, by which path and under which accounts; its load assignment on the
endpoints. So an endpoint that comes or goes, or is to get more or less, changes one ClusterLoadAssignment and no
cluster.
"""

from collections.abc import Iterable
from datetime import timedelta
from functools import lru_cache
from itertools import groupby

import msgspec
from envoy.config.cluster.v3 import cluster_pb2, outlier_detection_pb2
from envoy.config.core.v3 import base_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.wrappers_pb2 import UInt32Value

from federation.model import MESH_PORT, Endpoint, PodKey, Protocol, ServiceKey
from federation.names import (
    UpstreamName,
    exported_authority,
    host_port,
    outbound_upstream,
    service_sni,
    tcp_tunnel_listener,
    tunnel_listener,
    upstream_label,
)
from federation.offers import Path
from federation.placement import PlacedEndpoint
from federation.view import ResolvedService
from federation.xds import builders, tls
from federation.xds.resources import Resource
from trust.spiffe import ClusterName, Identity, MeshDomain, ServiceAccount, SpiffeId, spiffe_id

TUNNEL_METADATA = "tunnel"
"""Endpoint metadata for the tunnel: `svc` is the CONNECT authority, `dst` the pod behind the gateway."""
UPSTREAM_METADATA = "isthmus"
"""Endpoint metadata: `upstream` says to callers who answered, as `<cluster>/<zone>/<namespace>/<pod>`."""

_LONGEST_CONNECTION = timedelta(minutes=10)
# Tunnels move to other gateways, and to new certificates, only when the connection inside them is made anew.

_CONNECT_TIMEOUT = timedelta(milliseconds=500)
_TUNNEL_CONNECT_TIMEOUT = timedelta(seconds=2)  # a cold tunnel costs five round trips, of up to 300 ms each
_KEEPALIVE = (1000, 2000)
# Interval and timeout in ms: calls hang on a frozen or vanished sidecar for at most their sum. The timeout keeps a busy
# sidecar from being taken for a dead one: a thousand handshakes at once hold it up for a second.
_CACHED = 16384  # services times localities of one control plane; beyond that, compilation only becomes slower
_CACHED_HOSTS = 262144  # likewise; about 500 bytes each, of no use at all when all services together have more


class _Socket(msgspec.Struct, frozen=True):
    """How the endpoints of one member are reached, and who may stand behind the service there."""

    member: ClusterName
    path: Path
    accounts: tuple[ServiceAccount, ...]

    @property
    def label(self) -> str:
        return f"{self.member}/{self.path}"


class _Upstream(msgspec.Struct, frozen=True):
    """All that one cluster depends on."""

    domain: MeshDomain
    key: ServiceKey
    host: str
    port: int
    is_http: bool
    sockets: tuple[_Socket, ...]


class CompiledUpstream(msgspec.Struct, frozen=True):
    """A cluster and its load assignment, which have the same name."""

    cluster: Resource
    endpoints: Resource


def compile_upstreams(service: ResolvedService, domain: MeshDomain) -> tuple[CompiledUpstream, ...]:
    """Returns what leads to each port of a service. A service without endpoints has an empty load assignment."""
    if not service.vouched:
        return _compiled(service, domain)
    # Every confirmation gives the same bytes another version: Envoy then gets them anew.
    compiled = _compiled(msgspec.structs.replace(service, vouched=0), domain)
    return tuple(CompiledUpstream(one.cluster, _again(one.endpoints, service.vouched)) for one in compiled)


def _again(assignment: Resource, count: int) -> Resource:
    return msgspec.structs.replace(assignment, version=f"{assignment.version}.{count}")


@lru_cache(maxsize=_CACHED)
def _compiled(service: ResolvedService, domain: MeshDomain) -> tuple[CompiledUpstream, ...]:
    """Cached: of a picture that changed, nearly all services are equal to those of the picture before."""
    sockets = _sockets(service.endpoints)
    compiled = []
    for port in service.ports:
        is_http = port.protocol is not Protocol.TCP
        upstream = _Upstream(domain, service.key, service.host, port.number, is_http, sockets)
        name = outbound_upstream(service.host, port.number)
        assignment = _assignment(name, service, domain, is_http=is_http)
        compiled.append(CompiledUpstream(_cluster(upstream), builders.encode(name, assignment)))
    return tuple(compiled)


def _sockets(endpoints: Iterable[PlacedEndpoint]) -> tuple[_Socket, ...]:
    accounts: dict[tuple[ClusterName, Path], set[ServiceAccount]] = {}
    for placed in endpoints:
        accounts.setdefault((placed.member, placed.path), set()).add(placed.endpoint.account)
    return tuple(_Socket(member, path, tuple(sorted(accounts[member, path]))) for member, path in sorted(accounts))


@lru_cache(maxsize=_CACHED)
def _cluster(upstream: _Upstream) -> Resource:
    name = outbound_upstream(upstream.host, upstream.port)
    has_tunnel = any(socket.path is Path.TUNNEL for socket in upstream.sockets)
    cluster = cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.EDS,
        eds_cluster_config=builders.eds_config(),
        connect_timeout=builders.duration(_TUNNEL_CONNECT_TIMEOUT if has_tunnel else _CONNECT_TIMEOUT),
        lb_policy=cluster_pb2.Cluster.ROUND_ROBIN,
        common_lb_config=builders.common_lb(panic_percent=builders.PANIC_PERCENT),
        circuit_breakers=builders.circuit_breakers(),
        upstream_connection_options=builders.tcp_keepalive(),
        outlier_detection=_outlier_detection(),
        # Every host says by its metadata which of these it needs. The first is also the default: a host that matched
        # none is then refused by its certificate, where Envoy's own default would speak to it in the clear.
        transport_socket_matches=[_socket_match(upstream, socket) for socket in upstream.sockets[1:]],
        transport_socket=_transport_socket(upstream, upstream.sockets[0]) if upstream.sockets else _nobody(upstream),
    )
    if upstream.is_http:
        http = builders.upstream_http(http2=builders.http2_options(keepalive=_KEEPALIVE), longest=_LONGEST_CONNECTION)
        for key, options in http.items():
            cluster.typed_extension_protocol_options[key].CopyFrom(options)
    return builders.encode(name, cluster)


def _outlier_detection() -> outlier_detection_pb2.OutlierDetection:
    """Ejects a host after two failures to reach it or three gateway errors, alone and for 2 s at first."""
    return outlier_detection_pb2.OutlierDetection(
        consecutive_5xx=UInt32Value(value=1000),
        enforcing_consecutive_5xx=UInt32Value(value=0),
        consecutive_gateway_failure=UInt32Value(value=3),
        enforcing_consecutive_gateway_failure=UInt32Value(value=100),
        split_external_local_origin_errors=True,
        consecutive_local_origin_failure=UInt32Value(value=2),
        enforcing_consecutive_local_origin_failure=UInt32Value(value=100),
        enforcing_success_rate=UInt32Value(value=0),
        enforcing_local_origin_success_rate=UInt32Value(value=0),
        interval=builders.milliseconds(500),
        base_ejection_time=builders.milliseconds(2000),
        max_ejection_time=builders.milliseconds(30_000),
        max_ejection_percent=UInt32Value(value=100),
    )


def _socket_match(upstream: _Upstream, socket: _Socket) -> cluster_pb2.Cluster.TransportSocketMatch:
    return cluster_pb2.Cluster.TransportSocketMatch(
        name=socket.label,
        match=_struct(**{UPSTREAM_METADATA: socket.label}),
        transport_socket=_transport_socket(upstream, socket),
    )


def _transport_socket(upstream: _Upstream, socket: _Socket) -> base_pb2.TransportSocket:
    identities = [
        spiffe_id(Identity(socket.member, upstream.key.namespace, account), upstream.domain)
        for account in socket.accounts
    ]
    sni = service_sni(socket.member, upstream.key, upstream.port, upstream.domain)
    inner = tls.upstream_tls(sni, identities, alpn=_alpn(upstream))
    return inner if socket.path is Path.DIRECT else tls.through_tunnel(inner, TUNNEL_METADATA)


def _nobody(upstream: _Upstream) -> base_pb2.TransportSocket:
    """Expects an identity that is never issued: until endpoints are known, nobody is trusted."""
    return tls.upstream_tls(upstream.host, [SpiffeId(f"spiffe://{upstream.domain}")], alpn=_alpn(upstream))


def _alpn(upstream: _Upstream) -> str:
    return "h2" if upstream.is_http else ""


def _assignment(
    name: UpstreamName, service: ResolvedService, domain: MeshDomain, *, is_http: bool
) -> endpoint_pb2.ClusterLoadAssignment:
    """Returns the hosts by priority, place and member: Envoy takes each of these groups once, and reports its load."""
    assignment = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    if service.overprovisioning:
        assignment.policy.overprovisioning_factor.value = service.overprovisioning
    if service.expires_after is not None:
        assignment.policy.endpoint_stale_after.CopyFrom(builders.duration(service.expires_after))
    for (priority, region, zone, member), placed in groupby(sorted(service.endpoints, key=_group), key=_group):
        locality = base_pb2.Locality(region=region, zone=zone, sub_zone=member)
        group = assignment.endpoints.add(priority=priority, locality=locality)
        ones = tuple(placed)
        group.MergeFromString(
            b"".join(
                _host(one.member, one.path, one.endpoint, key=service.key, domain=domain, is_http=is_http)
                for one in ones
            )
        )
        for host, one in zip(group.lb_endpoints, ones, strict=True):
            if one.weight != 1:
                host.load_balancing_weight.value = one.weight
            if one.is_draining:
                host.health_status = health_check_pb2.DRAINING
    return assignment


def _group(placed: PlacedEndpoint) -> tuple[int, str, str, ClusterName]:
    locality = placed.endpoint.locality
    return placed.priority, locality.region, locality.zone, placed.member


@lru_cache(maxsize=_CACHED_HOSTS)
def _host(
    member: ClusterName, path: Path, endpoint: Endpoint, *, key: ServiceKey, domain: MeshDomain, is_http: bool
) -> bytes:
    """Returns a group that holds one host, encoded: how near it is, and how much it gets, is not in here."""
    mesh_address = host_port(endpoint.address, MESH_PORT)
    pod = PodKey(key.namespace, endpoint.pod)
    metadata = {
        "envoy.transport_socket_match": _struct(**{UPSTREAM_METADATA: _Socket(member, path, ()).label}),
        UPSTREAM_METADATA: _struct(upstream=upstream_label(member, endpoint.locality.zone, pod)),
    }
    match path:
        case Path.DIRECT:
            address = builders.socket_address(endpoint.address, MESH_PORT)
        case Path.TUNNEL:
            listener = tunnel_listener(member) if is_http else tcp_tunnel_listener(member)
            address = builders.internal_address(listener, mesh_address)
            metadata[TUNNEL_METADATA] = _struct(svc=exported_authority(member, key, domain), dst=mesh_address)
    host = builders.lb_endpoint(address, base_pb2.Metadata(filter_metadata=metadata))
    encoded: bytes = endpoint_components_pb2.LocalityLbEndpoints(lb_endpoints=[host]).SerializeToString(
        deterministic=True
    )
    return encoded


def _struct(**fields: str) -> Struct:
    return Struct(fields={key: Value(string_value=value) for key, value in fields.items()})
