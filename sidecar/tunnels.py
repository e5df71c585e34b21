"""The tunnels to one peer: internal listeners that carry each connection to a pod behind the peer's gateways. Pure.

    service's cluster ─► host `tunnel|west` + pod ─► internal listener ─► CONNECT cart.shop.svc.west.mesh.test
                          (inner mTLS to the pod)                          x-isthmus-endpoint: 10.1.2.3:15008
                                                                           over one HTTP/2 mTLS connection to a gateway

HTTP and plain TCP have tunnels of their own: a TCP client that stops reading must not stall HTTP calls.
"""

from datetime import timedelta
from functools import lru_cache

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.type.v3 import http_pb2
from google.protobuf.wrappers_pb2 import UInt32Value

from federation.names import (
    GATEWAY_ENDPOINT_HEADER,
    GATEWAY_HEALTH_PATH,
    UpstreamName,
    gateway_upstream,
    tcp_gateway_upstream,
    tcp_tunnel_listener,
    tunnel_listener,
    tunnel_sni,
)
from federation.view import ResolvedPeer
from federation.xds import builders, listeners, tls
from federation.xds.resources import ResourceSet, TypeUrl
from sidecar.upstreams import TUNNEL_METADATA
from trust.spiffe import ClusterName, MeshDomain, gateway_dns_name, gateway_identity, spiffe_id

_IDLE_TUNNEL = timedelta(hours=1)  # an HTTP connection that still lives is never silent this long: it has keepalive
_LONGEST_CONNECTION = timedelta(minutes=20)
# Longer than connections inside tunnels live (10 min), so that those end first and nothing is cut; bounded, so that the
# certificate of the outer connection is renewed at all.
_CACHED_PEERS = 1024


@lru_cache(maxsize=_CACHED_PEERS)
def compile_tunnels(peer: ResolvedPeer, caller: ClusterName, domain: MeshDomain) -> ResourceSet:
    """Returns the listeners, the gateways' clusters and their endpoints for one peer; `caller` is the own cluster.

    A gateway has a filter chain for each caller, which it removes when it believes him no longer.
    """
    resources = []
    for listener, upstream, idle in (
        (tunnel_listener(peer.name), gateway_upstream(peer.name), _IDLE_TUNNEL),
        (tcp_tunnel_listener(peer.name), tcp_gateway_upstream(peer.name), timedelta(0)),
    ):
        resources += [
            (TypeUrl.LISTENER, listener, _listener(listener, upstream, idle)),
            (TypeUrl.CLUSTER, upstream, _cluster(upstream, peer.name, caller=caller, domain=domain)),
            (TypeUrl.ENDPOINTS, upstream, _assignment(upstream, peer)),
        ]
    return builders.resource_set(resources)


def _listener(name: str, upstream: UpstreamName, idle: timedelta) -> listener_pb2.Listener:
    proxy = listeners.tcp_proxy(name, upstream, attempts=2, idle=idle)
    proxy.tunneling_config.CopyFrom(
        tcp_proxy_pb2.TcpProxy.TunnelingConfig(
            hostname=f"%DYNAMIC_METADATA({TUNNEL_METADATA}:svc)%",
            headers_to_add=[
                base_pb2.HeaderValueOption(
                    header=base_pb2.HeaderValue(
                        key=GATEWAY_ENDPOINT_HEADER, value=f"%DYNAMIC_METADATA({TUNNEL_METADATA}:dst)%"
                    )
                )
            ],
        )
    )
    return listeners.internal_listener(name, [listeners.tcp_filter(proxy)])


def _cluster(
    name: UpstreamName, member: ClusterName, *, caller: ClusterName, domain: MeshDomain
) -> cluster_pb2.Cluster:
    """Returns the cluster of a member's gateways.

    It has no outlier detection: a refused CONNECT would count against the gateway, and one dead pod would eject all of
    them. A health check and keepalive find a gateway that is gone or frozen; one that freezes stalls calls for 0.6 s,
    at worst 1.6 s. Their timeouts leave room for three round trips of 300 ms: with 0.3 s no gateway was ever healthy
    beyond 110 ms, with 0.5 s to connect none could be reached beyond 240 ms.
    """
    sni = tunnel_sni(caller, member, domain)
    return cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.EDS,
        eds_cluster_config=builders.eds_config(),
        connect_timeout=builders.milliseconds(1000),
        common_lb_config=builders.common_lb(panic_percent=builders.PANIC_PERCENT),
        circuit_breakers=builders.circuit_breakers(),
        health_checks=[_health_check(gateway_dns_name(member, domain))],
        close_connections_on_host_health_failure=True,
        # Or a gateway that the peer removes stays as long as it is healthy.
        ignore_health_on_host_removal=True,
        transport_socket=tls.upstream_tls(sni, [spiffe_id(gateway_identity(member), domain)], alpn="h2"),
        typed_extension_protocol_options=builders.upstream_http(
            http2=builders.http2_options(keepalive=(500, 500)), longest=_LONGEST_CONNECTION
        ),
    )


def _health_check(host: str) -> health_check_pb2.HealthCheck:
    return health_check_pb2.HealthCheck(
        timeout=builders.milliseconds(1000),
        interval=builders.milliseconds(500),
        no_traffic_interval=builders.milliseconds(500),
        unhealthy_threshold=UInt32Value(value=1),
        healthy_threshold=UInt32Value(value=1),
        http_health_check=health_check_pb2.HealthCheck.HttpHealthCheck(
            host=host, path=GATEWAY_HEALTH_PATH, codec_client_type=http_pb2.HTTP2
        ),
    )


def _assignment(name: UpstreamName, peer: ResolvedPeer) -> endpoint_pb2.ClusterLoadAssignment:
    hosts = [builders.lb_endpoint(builders.socket_address(one.address, one.port)) for one in peer.gateways]
    return endpoint_pb2.ClusterLoadAssignment(
        cluster_name=name, endpoints=[endpoint_components_pb2.LocalityLbEndpoints(lb_endpoints=hosts)]
    )
