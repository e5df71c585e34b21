"""Small pieces of Envoy configuration that every kind of proxy needs. Pure.

In this module `cluster` is Envoy's. Functions return new messages: a caller may go on filling them.
"""

from collections.abc import Iterable, Mapping
from datetime import timedelta

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2
from envoy.config.core.v3 import address_pb2, base_pb2, config_source_pb2, extension_pb2, protocol_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import UInt32Value

from federation.xds.resources import Resource, ResourceSet, TypeUrl, make_resource

STREAM_WINDOW = 16 << 20
CONNECTION_WINDOW = 1 << 30
"""Bytes of HTTP/2 flow control. With a small connection window, a few clients that stop reading block everybody else on
that connection; the stream window divided by two round trips bounds the throughput of one tunnelled stream."""


def resource_set(messages: Iterable[tuple[TypeUrl, str, Message]]) -> ResourceSet:
    """Encodes messages, given with type and name, into the resources of one receiver."""
    resources: dict[TypeUrl, dict[str, Resource]] = {}
    for type_url, name, message in messages:
        resources.setdefault(type_url, {})[name] = encode(name, message)
    return resources


def encode(name: str, message: Message) -> Resource:
    """Encodes one resource: equal messages give equal bytes, so that what did not change is not sent."""
    return make_resource(name, message.SerializeToString(deterministic=True))


def merge(*sets: ResourceSet) -> ResourceSet:
    """Puts the parts of one receiver's configuration together; a later part wins where both name a resource."""
    merged: dict[TypeUrl, dict[str, Resource]] = {}
    for part in sets:
        for type_url, resources in part.items():
            merged.setdefault(type_url, {}).update(resources)
    return merged


def any_of(message: Message) -> AnyMessage:
    """Packs a message, deterministically."""
    packed = AnyMessage()
    packed.Pack(message, deterministic=True)
    return packed


def extension(name: str, message: Message) -> extension_pb2.TypedExtensionConfig:
    """Names a typed extension."""
    return extension_pb2.TypedExtensionConfig(name=name, typed_config=any_of(message))


def duration(span: timedelta) -> Duration:
    """Converts a span of time."""
    message = Duration()
    message.FromTimedelta(span)
    return message


def milliseconds(count: int) -> Duration:
    """Returns a span of `count` milliseconds."""
    return duration(timedelta(milliseconds=count))


def ads() -> config_source_pb2.ConfigSource:
    """Says that a resource comes on the same ADS stream."""
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(), resource_api_version=config_source_pb2.V3
    )


def socket_address(address: str, port: int) -> address_pb2.Address:
    """Returns an IP address and TCP port."""
    return address_pb2.Address(socket_address=address_pb2.SocketAddress(address=address, port_value=port))


def internal_address(listener: str, endpoint: str = "") -> address_pb2.Address:
    """Returns the address of a listener in the same Envoy; `endpoint` tells hosts behind one listener apart."""
    return address_pb2.Address(
        envoy_internal_address=address_pb2.EnvoyInternalAddress(server_listener_name=listener, endpoint_id=endpoint)
    )


def lb_endpoint(
    address: address_pb2.Address, metadata: base_pb2.Metadata | None = None
) -> endpoint_components_pb2.LbEndpoint:
    """Returns one host of a cluster."""
    return endpoint_components_pb2.LbEndpoint(
        endpoint=endpoint_components_pb2.Endpoint(address=address), metadata=metadata
    )


def eds_config() -> cluster_pb2.Cluster.EdsClusterConfig:
    """Says that a cluster's endpoints come on the ADS stream, under the cluster's name."""
    return cluster_pb2.Cluster.EdsClusterConfig(eds_config=ads())


def circuit_breakers() -> circuit_breaker_pb2.CircuitBreakers:
    """Returns limits that only a runaway reaches.

    No retry budget: when a connection breaks, all its calls are retried at once and none counts as active, so that a
    budget of 100 % and 100 retries failed 163 of 488 GETs that hung on a frozen sidecar.
    """
    return circuit_breaker_pb2.CircuitBreakers(
        thresholds=[
            circuit_breaker_pb2.CircuitBreakers.Thresholds(
                max_connections=UInt32Value(value=8192),
                max_pending_requests=UInt32Value(value=8192),
                max_requests=UInt32Value(value=16384),
                max_retries=UInt32Value(value=16384),
            )
        ]
    )


PANIC_PERCENT = 1
"""All hosts are tried again only when none is healthy: at 50, five dead pods of six got five of six calls in spite of
their ejection (3,600 retries in 5 s, 45 at 1), and some calls failed. At 0, a lone pod that is ejected gets none."""


def common_lb(*, panic_percent: int) -> cluster_pb2.Cluster.CommonLbConfig:
    """Returns load balancing that acts at once: the default merge window of 1 s holds back a renewed ejection.

    Below `panic_percent` healthy hosts (0 to 100; 0 is never) all hosts are used again.
    """
    return cluster_pb2.Cluster.CommonLbConfig(
        healthy_panic_threshold=percent_pb2.Percent(value=panic_percent),
        update_merge_window=Duration(),
    )


def tcp_keepalive() -> cluster_pb2.UpstreamConnectionOptions:
    """Notices a peer that vanished without a word after 25 s, where HTTP/2 keepalive does not."""
    return cluster_pb2.UpstreamConnectionOptions(
        tcp_keepalive=address_pb2.TcpKeepalive(
            keepalive_probes=UInt32Value(value=3),
            keepalive_time=UInt32Value(value=10),
            keepalive_interval=UInt32Value(value=5),
        )
    )


def http2_options(*, keepalive: tuple[int, int] | None = None) -> protocol_pb2.Http2ProtocolOptions:
    """Returns HTTP/2 with CONNECT (WebSockets and tunnels) and wide windows; keepalive is (interval, timeout) in ms."""
    options = protocol_pb2.Http2ProtocolOptions(
        allow_connect=True,
        initial_stream_window_size=UInt32Value(value=STREAM_WINDOW),
        initial_connection_window_size=UInt32Value(value=CONNECTION_WINDOW),
    )
    if keepalive is not None:
        interval, timeout = keepalive
        options.connection_keepalive.interval.CopyFrom(milliseconds(interval))
        options.connection_keepalive.timeout.CopyFrom(milliseconds(timeout))
    return options


def upstream_http(
    *,
    http2: protocol_pb2.Http2ProtocolOptions | None,
    idle: timedelta | None = None,
    longest: timedelta | None = None,
) -> Mapping[str, AnyMessage]:
    """Returns what a cluster speaks: HTTP/2 with these options, or HTTP/1.1.

    A connection without requests closes after `idle`; one older than `longest` takes no new request and closes when its
    last one ends.
    """
    explicit = http_protocol_options_pb2.HttpProtocolOptions.ExplicitHttpConfig()
    if http2 is None:
        explicit.http_protocol_options.SetInParent()
    else:
        explicit.http2_protocol_options.CopyFrom(http2)
    options = http_protocol_options_pb2.HttpProtocolOptions(explicit_http_config=explicit)
    if idle is not None:
        options.common_http_protocol_options.idle_timeout.CopyFrom(duration(idle))
    if longest is not None:
        options.common_http_protocol_options.max_connection_duration.CopyFrom(duration(longest))
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": any_of(options)}
