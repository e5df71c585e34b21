"""What a sidecar is told about its own workload: who may come in on the mesh port, and where the app is. Pure.

    peer's sidecar or gateway ─ mTLS, SNI 80.cart.shop.svc.west.mesh.test ─► :15008 ─► chain of that service port ─► app

One filter chain per service port, chosen by SNI: a chain that is added or removed touches no connection of the others.
Who may come in: for a service that is exported, any identity of the mesh, or of the members that it is exported to; for
another, those of its own cluster; nobody who is revoked. These rules come over ECDS under the name of the service, so
that they hold from the next request when somebody is revoked or an export gets another audience, and drain no
connection.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import listener_components_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import UInt32Value

from federation.model import MESH_PORT, Protocol, ProxyScope, ServiceKey
from federation.names import FLAGS_HEADER, INBOUND_LISTENER, inbound_rules, inbound_upstream, service_sni
from federation.severing import Epochs
from federation.view import InboundPort
from federation.xds import builders, listeners, tls
from federation.xds.resources import ResourceSet, TypeUrl
from trust.bundle import Revocation
from trust.spiffe import ClusterName, MeshDomain

_HTTP, _TCP = "http", "tcp"
_FLAGS = ("UF", "UH", "UO", "UC", "UT", "LR", "UR", "URX", "NC")
# Envoy's response flags of replies that this sidecar gives itself because the app could not be reached or broke off.
_IDLE_APP = timedelta(seconds=1)
# Web servers close idle connections after 2 s (gunicorn), 5 s (Node, uvicorn) or more, and a request that meets such a
# close is lost. Closing first costs a connection to an address of this same machine.


def compile_rules(
    cluster: ClusterName,
    ports: Iterable[InboundPort],
    domain: MeshDomain,
    *,
    audiences: Mapping[ServiceKey, Collection[ClusterName]],
    revoked: Collection[Revocation],
) -> ResourceSet:
    """Returns who may come in at these ports of sidecars of `cluster`.

    `audiences` are the members that exports are for, of those exports that are not for all.
    """
    messages: dict[str, tuple[TypeUrl, str, Message]] = {}
    for port in ports:
        name = _rules_name(port)
        if name not in messages:
            others = audiences.get(port.key) if port.is_exported else ()
            rules = tls.members_only(domain, None if others is None else {cluster, *others}, revoked=revoked)
            message = (
                listeners.tcp_rules(name, rules, stat_prefix=INBOUND_LISTENER)
                if port.protocol is Protocol.TCP
                else listeners.http_rules(name, rules)
            )
            messages[name] = (TypeUrl.EXTENSION, name, message)
    return builders.resource_set(messages.values())


def compile_inbound(
    scope: ProxyScope, ports: tuple[InboundPort, ...], domain: MeshDomain, *, epochs: Epochs
) -> ResourceSet:
    """Returns the mesh port's listener, a filter chain per service port, and the clusters that lead to the app.

    A workload that serves no port has no listener. `epochs` stand in the names of the chains.
    """
    messages: list[tuple[TypeUrl, str, Message]] = []
    chains: dict[str, listener_components_pb2.FilterChain] = {}
    for port in ports:
        cluster = _app_cluster(scope.address, port)
        messages.append((TypeUrl.CLUSTER, cluster.name, cluster))
        sni = service_sni(scope.audience.cluster, port.key, port.port, domain)
        if sni not in chains:  # a chain that matches twice makes Envoy refuse the listener
            epoch = epochs.of_service(port.key, is_exported=port.is_exported)
            chains[sni] = _chain(sni, port, scope.audience.cluster, domain=domain, epoch=epoch)
    if chains:
        listener = listeners.listener(
            INBOUND_LISTENER, scope.address, port=MESH_PORT, chains=chains.values(), reads_sni=True
        )
        messages.append((TypeUrl.LISTENER, INBOUND_LISTENER, listener))
    return builders.resource_set(messages)


def _chain(
    sni: str, port: InboundPort, cluster: ClusterName, *, domain: MeshDomain, epoch: str
) -> listener_components_pb2.FilterChain:
    upstream = _upstream(port)
    # The gateway opens a tunnel to a pod and cannot see which of the pod's services is meant: it is refused here.
    only = None if port.is_exported else cluster
    if port.protocol is Protocol.TCP:
        proxy = listeners.tcp_proxy(INBOUND_LISTENER, upstream, attempts=2)
        filters = [listeners.rbac_filter(_rules_name(port)), listeners.tcp_filter(proxy)]
        return listeners.sni_chain(sni, filters, tls.downstream_tls(domain, alpn="", only=only), epoch=epoch)
    manager = listeners.http_manager(
        INBOUND_LISTENER, _routes(upstream), rules=_rules_name(port), upgrades=("websocket",)
    )
    manager.forward_client_cert_details = hcm_pb2.HttpConnectionManager.SANITIZE_SET
    manager.set_current_client_cert_details.uri = True
    manager.local_reply_config.CopyFrom(_local_replies())
    socket = tls.downstream_tls(domain, alpn="h2", only=only)
    return listeners.sni_chain(sni, [listeners.http_filter(manager)], socket, epoch=epoch)


def _routes(upstream: str) -> route_pb2.RouteConfiguration:
    """Returns one route to the app, inline: it depends on nothing that changes while the chain lives."""
    retry = route_components_pb2.RetryPolicy(
        retry_on="connect-failure,reset-before-request",
        num_retries=UInt32Value(value=1),
        retry_back_off=route_components_pb2.RetryPolicy.RetryBackOff(
            base_interval=builders.milliseconds(5), max_interval=builders.milliseconds(20)
        ),
    )
    route = route_components_pb2.Route(
        match=route_components_pb2.RouteMatch(prefix="/"),
        route=route_components_pb2.RouteAction(cluster=upstream, timeout=Duration(), retry_policy=retry),
        response_headers_to_remove=[FLAGS_HEADER],  # an app must not be able to ask for retries
    )
    virtual_host = route_components_pb2.VirtualHost(name=upstream, domains=["*"], routes=[route])
    return route_pb2.RouteConfiguration(name=upstream, virtual_hosts=[virtual_host])


def _local_replies() -> hcm_pb2.LocalReplyConfig:
    """Marks what this sidecar answers itself, so that the caller's sidecar knows what may be tried elsewhere."""
    mapper = hcm_pb2.ResponseMapper(
        filter=accesslog_pb2.AccessLogFilter(response_flag_filter=accesslog_pb2.ResponseFlagFilter(flags=_FLAGS)),
        headers_to_add=[
            base_pb2.HeaderValueOption(
                header=base_pb2.HeaderValue(key=FLAGS_HEADER, value="%RESPONSE_FLAGS%"),
                append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
            )
        ],
    )
    return hcm_pb2.LocalReplyConfig(mappers=[mapper])


def _app_cluster(address: str, port: InboundPort) -> cluster_pb2.Cluster:
    name = _upstream(port)
    host = builders.lb_endpoint(builders.socket_address(address, port.target))
    cluster = cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.STATIC,
        connect_timeout=builders.milliseconds(250),
        load_assignment=endpoint_pb2.ClusterLoadAssignment(
            cluster_name=name, endpoints=[endpoint_components_pb2.LocalityLbEndpoints(lb_endpoints=[host])]
        ),
        circuit_breakers=builders.circuit_breakers(),
    )
    http2 = builders.http2_options() if _is_http2(port) else None
    for key, options in builders.upstream_http(http2=http2, idle=_IDLE_APP).items():
        cluster.typed_extension_protocol_options[key].CopyFrom(options)
    return cluster


def _rules_name(port: InboundPort) -> str:
    return inbound_rules(_TCP if port.protocol is Protocol.TCP else _HTTP, port.key)


def _upstream(port: InboundPort) -> str:
    return inbound_upstream(port.target, is_http2=_is_http2(port))


def _is_http2(port: InboundPort) -> bool:
    return port.protocol in {Protocol.HTTP2, Protocol.GRPC}
