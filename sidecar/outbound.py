"""What a sidecar is told about others: where its workload's calls go. Pure.

    app ─ http_proxy ─► outbound :15001 ─────────────► routes ─► cluster of the service port ─► pod's mesh port
             └ CONNECT (gRPC, WebSocket) ─► outbound-connect ─┘                  └─► tunnel ─► peer's gateway ─► ...
    app ─ declared TCP dependency ─► outbound-tcp|6379 ─► cluster of the service port ─► ...

Both HTTP listeners use the same routes; capture will be a third listener over them.
"""

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2

from federation.model import OUTBOUND_PORT, ProxyScope, TcpUse
from federation.names import (
    CONNECT_UPSTREAM,
    OUTBOUND_LISTENER,
    OUTBOUND_ROUTES,
    OUTBOUND_TUNNEL_LISTENER,
    complete_host,
    outbound_upstream,
    tcp_use_listener,
)
from federation.view import MeshView
from federation.xds import builders, listeners
from federation.xds.resources import Resource, ResourceSet, TypeUrl
from sidecar.routes import compile_routes
from sidecar.tunnels import compile_tunnels
from sidecar.upstreams import compile_upstreams

_TCP_ATTEMPTS = 5  # two failures eject a host, so a third priority is reached even where each has one host


def compile_outbound(view: MeshView) -> ResourceSet:
    """Returns what all sidecars of one audience share: clusters, endpoints, routes and the tunnels to peers."""
    clusters: dict[str, Resource] = {}
    assignments: dict[str, Resource] = {}
    for service in view.services:
        for upstream in compile_upstreams(service, view.domain):
            # The first to name a host and port wins, here as in the routes.
            clusters.setdefault(upstream.cluster.name, upstream.cluster)
            assignments.setdefault(upstream.endpoints.name, upstream.endpoints)
    services: ResourceSet = {
        TypeUrl.CLUSTER: clusters,
        TypeUrl.ENDPOINTS: assignments,
        TypeUrl.ROUTES: {OUTBOUND_ROUTES: compile_routes(view.services, view.audience.namespace)},
    }
    return builders.merge(
        services, *(compile_tunnels(peer, view.audience.cluster, view.domain) for peer in view.peers), _connect_loop()
    )


def outbound_listeners(scope: ProxyScope, *, epoch: str) -> ResourceSet:
    """Returns the listeners of one sidecar: the HTTP proxy and one per declared TCP dependency.

    A dependency on a service that is not known (yet) has its listener, which closes every connection. `epoch` is that
    of federation.revoked: what the workload has open to somebody who is revoked ends with it.
    """
    uses = {use.listen_port: use for use in scope.pod.uses} if scope.pod is not None else {}
    found: list[listener_pb2.Listener] = [
        listeners.listener(
            OUTBOUND_LISTENER, scope.address, port=OUTBOUND_PORT, chains=[_chain(_http_filter(), epoch)]
        ),
        *(_tcp_listener(scope, use, epoch) for use in uses.values() if use.listen_port != OUTBOUND_PORT),
    ]
    return builders.resource_set([(TypeUrl.LISTENER, listener.name, listener) for listener in found])


def _tcp_listener(scope: ProxyScope, use: TcpUse, epoch: str) -> listener_pb2.Listener:
    upstream = outbound_upstream(complete_host(use.host, scope.audience.namespace), use.port)
    proxy = listeners.tcp_proxy(tcp_use_listener(use.listen_port), upstream, attempts=_TCP_ATTEMPTS)
    return listeners.listener(
        tcp_use_listener(use.listen_port),
        scope.address,
        port=use.listen_port,
        chains=[_chain(listeners.tcp_filter(proxy), epoch)],
    )


def _connect_loop() -> ResourceSet:
    """Returns the way from a CONNECT that ends here to the routes, for what is spoken inside it."""
    host = builders.lb_endpoint(builders.internal_address(OUTBOUND_TUNNEL_LISTENER))
    cluster = cluster_pb2.Cluster(
        name=CONNECT_UPSTREAM,
        type=cluster_pb2.Cluster.STATIC,
        load_assignment=endpoint_pb2.ClusterLoadAssignment(
            cluster_name=CONNECT_UPSTREAM,
            endpoints=[endpoint_components_pb2.LocalityLbEndpoints(lb_endpoints=[host])],
        ),
        circuit_breakers=builders.circuit_breakers(),
    )
    listener = listeners.internal_listener(OUTBOUND_TUNNEL_LISTENER, [_http_filter()])
    return builders.resource_set(
        [(TypeUrl.CLUSTER, CONNECT_UPSTREAM, cluster), (TypeUrl.LISTENER, OUTBOUND_TUNNEL_LISTENER, listener)]
    )


def _http_filter() -> listener_components_pb2.Filter:
    manager = listeners.http_manager(OUTBOUND_LISTENER, OUTBOUND_ROUTES, upgrades=("websocket", "CONNECT"))
    # Envoy lingers this long for the app to close first; a WebSocket client waits for the server to do so, in both of
    # these listeners. The default of 1 s is for clients far away.
    manager.delayed_close_timeout.CopyFrom(builders.milliseconds(50))
    manager.strip_trailing_host_dot = True  # `cart.shop.svc.cluster.local.` is how some spell a full name
    return listeners.http_filter(manager)


def _chain(network_filter: listener_components_pb2.Filter, epoch: str) -> listener_components_pb2.FilterChain:
    return listener_components_pb2.FilterChain(name=epoch, filters=[network_filter])
