"""Pieces of Envoy listeners: filter chains, the HTTP connection manager, TCP proxying. Pure."""

from collections.abc import Iterable, Sequence
from datetime import timedelta

from envoy.config.core.v3 import base_pb2, config_source_pb2, extension_pb2, protocol_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from federation.xds.builders import ads, any_of, duration, extension, http2_options, socket_address

HTTP_RBAC_FILTER = "envoy.filters.http.rbac"
"""Also the key under which a route overrides what that filter allows."""


def listener(
    name: str,
    address: str,
    *,
    port: int,
    chains: Iterable[listener_components_pb2.FilterChain],
    reads_sni: bool = False,
) -> listener_pb2.Listener:
    """Returns a listener on a TCP port; `reads_sni` when its chains are chosen by server name."""
    inspector = listener_components_pb2.ListenerFilter(
        name="envoy.filters.listener.tls_inspector", typed_config=any_of(tls_inspector_pb2.TlsInspector())
    )
    return listener_pb2.Listener(
        name=name,
        address=socket_address(address, port),
        listener_filters=[inspector] if reads_sni else [],
        filter_chains=chains,
    )


def internal_listener(name: str, filters: Iterable[listener_components_pb2.Filter]) -> listener_pb2.Listener:
    """Returns a listener that only this Envoy itself can reach."""
    return listener_pb2.Listener(
        name=name,
        internal_listener=listener_pb2.Listener.InternalListenerConfig(),
        filter_chains=[listener_components_pb2.FilterChain(filters=filters)],
    )


def sni_chain(
    sni: str,
    filters: Iterable[listener_components_pb2.Filter],
    transport_socket: base_pb2.TransportSocket | None = None,
    *,
    epoch: str = "",
) -> listener_components_pb2.FilterChain:
    """Returns the chain for TLS connections to one server name; without a transport socket they pass undeciphered.

    In another `epoch` it is another chain: the connections of the one before drain.
    """
    return listener_components_pb2.FilterChain(
        name=f"{sni}|{epoch}" if epoch else sni,
        filter_chain_match=listener_components_pb2.FilterChainMatch(server_names=[sni], transport_protocol="tls"),
        filters=filters,
        transport_socket=transport_socket,
    )


def http_manager(
    stat_prefix: str,
    routes: str | route_pb2.RouteConfiguration,
    *,
    rules: str | rbac_pb2.RBAC | None = None,
    upgrades: Sequence[str] = (),
) -> hcm_pb2.HttpConnectionManager:
    """Returns an HTTP connection manager for HTTP/1 and HTTP/2; `routes` given by name come over RDS.

    Nothing is cut for being slow or silent: how long a call may take is the caller's business, a dead peer is found by
    keepalive. Nothing is added that an application did not send: no request id, no `server` header, no `x-envoy-*`.
    With `rules`, who is not allowed gets 403; a route may override them. Rules given by name come over ECDS: they hold
    from the next request and no connection is drained. A listener does not open before it has them.
    """
    manager = hcm_pb2.HttpConnectionManager(
        stat_prefix=stat_prefix,
        codec_type=hcm_pb2.HttpConnectionManager.AUTO,
        # gRPC's C core asks its proxy for CONNECT in HTTP/1.0.
        http_protocol_options=protocol_pb2.Http1ProtocolOptions(accept_http_10=True),
        http2_protocol_options=http2_options(),
        stream_idle_timeout=Duration(),
        generate_request_id=BoolValue(value=False),
        server_header_transformation=hcm_pb2.HttpConnectionManager.PASS_THROUGH,
        upgrade_configs=[hcm_pb2.HttpConnectionManager.UpgradeConfig(upgrade_type=name) for name in upgrades],
    )
    match routes:
        case str():
            manager.rds.CopyFrom(hcm_pb2.Rds(route_config_name=routes, config_source=ads()))
        case _:
            manager.route_config.CopyFrom(routes)
    match rules:
        case str():
            discovery = _discovered(http_rbac_pb2.RBAC.DESCRIPTOR.full_name)
            manager.http_filters.append(hcm_pb2.HttpFilter(name=rules, config_discovery=discovery))
        case rbac_pb2.RBAC():
            manager.http_filters.append(_http_filter(HTTP_RBAC_FILTER, http_rbac_pb2.RBAC(rules=rules)))
    manager.http_filters.append(
        _http_filter("envoy.filters.http.router", router_pb2.Router(suppress_envoy_headers=True))
    )
    return manager


def http_filter(manager: hcm_pb2.HttpConnectionManager) -> listener_components_pb2.Filter:
    """Makes an HTTP connection manager the last filter of a chain."""
    return _network_filter("envoy.filters.network.http_connection_manager", manager)


def tcp_filter(proxy: tcp_proxy_pb2.TcpProxy) -> listener_components_pb2.Filter:
    """Makes a TCP proxy the last filter of a chain."""
    return _network_filter("envoy.filters.network.tcp_proxy", proxy)


def rbac_filter(rules: str) -> listener_components_pb2.Filter:
    """Returns what closes a connection of somebody who is not allowed, at the first byte he sends.

    The rules of that name come over ECDS: they hold for connections that come after them. A listener does not open
    before it has them.
    """
    discovery = _discovered(network_rbac_pb2.RBAC.DESCRIPTOR.full_name)
    return listener_components_pb2.Filter(name=rules, config_discovery=discovery)


def http_rules(name: str, rules: rbac_pb2.RBAC) -> extension_pb2.TypedExtensionConfig:
    """Returns the rules that an HTTP connection manager discovers under `name`."""
    return extension(name, http_rbac_pb2.RBAC(rules=rules))


def tcp_rules(name: str, rules: rbac_pb2.RBAC, *, stat_prefix: str) -> extension_pb2.TypedExtensionConfig:
    """Returns the rules that a `rbac_filter` discovers under `name`."""
    return extension(name, network_rbac_pb2.RBAC(stat_prefix=stat_prefix, rules=rules))


def tcp_proxy(
    stat_prefix: str, cluster: str, *, attempts: int, idle: timedelta = timedelta(0)
) -> tcp_proxy_pb2.TcpProxy:
    """Returns what joins a connection to a host of `cluster`; an `idle` of 0 never cuts a silent connection."""
    return tcp_proxy_pb2.TcpProxy(
        stat_prefix=stat_prefix,
        cluster=cluster,
        max_connect_attempts=UInt32Value(value=attempts),
        idle_timeout=duration(idle),
    )


def _discovered(message: str) -> config_source_pb2.ExtensionConfigSource:
    return config_source_pb2.ExtensionConfigSource(config_source=ads(), type_urls=[f"type.googleapis.com/{message}"])


def _network_filter(name: str, config: Message) -> listener_components_pb2.Filter:
    return listener_components_pb2.Filter(name=name, typed_config=any_of(config))


def _http_filter(name: str, config: Message) -> hcm_pb2.HttpFilter:
    return hcm_pb2.HttpFilter(name=name, typed_config=any_of(config))
