"""The routes of a sidecar's outbound HTTP: a virtual host per service port, and how a call is retried. Pure.

A call is repeated when it cannot have been carried out, or when repeating does no harm. The signal for that comes from
the far sidecar: on its own replies, and only there, it sets FLAGS_HEADER to what went wrong between it and the app.
"""

from collections.abc import Iterable
from functools import lru_cache

from envoy.config.core.v3 import base_pb2, substitution_format_string_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.retry.priority.previous_priorities.v3 import previous_priorities_config_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import UInt32Value

from federation.model import Protocol, ServiceKey, ServicePort
from federation.names import (
    CONNECT_UPSTREAM,
    FLAGS_HEADER,
    OUTBOUND_ROUTES,
    UPSTREAM_HEADER,
    local_host,
    outbound_upstream,
)
from federation.view import ResolvedService
from federation.xds import builders
from federation.xds.resources import Resource, make_resource
from sidecar.upstreams import UPSTREAM_METADATA
from trust.spiffe import Namespace

_IDEMPOTENT = "GET|HEAD|OPTIONS|PUT|DELETE|TRACE"  # RFC 9110, section 9.2.2
_NEVER_REACHED = "^(UF|UH|UO|NC|URX)(,(UF|UH|UO|NC|URX))*$"  # the far sidecar could not hand the request to the app
_RETRIES = 8
# Four lost a call whenever four of five hosts in three priorities were dead and not ejected: that takes two failures of
# each. More than eight would mostly let a deadly request take more pods down.
_HTTP_PORT = 80
_CACHED = 16384  # virtual hosts; beyond that, compilation only becomes slower
_CACHED_CONFIGURATIONS = 8  # one for each namespace that has sidecars; each has some 1 MB for a thousand services

_Named = tuple[ServiceKey, str, tuple[ServicePort, ...]]
"""A service with its host name: all that its routes depend on."""


def compile_routes(services: Iterable[ResolvedService], namespace: Namespace) -> Resource:
    """Returns the route configuration of the sidecars in `namespace`, which may leave the namespace out of names."""
    return _compiled(tuple((service.key, service.host, service.ports) for service in services), namespace)


@lru_cache(maxsize=_CACHED_CONFIGURATIONS)
def _compiled(services: tuple[_Named, ...], namespace: Namespace) -> Resource:
    """Cached: endpoints come and go far more often than names and ports, and all routes are one resource."""
    common = route_pb2.RouteConfiguration(
        name=OUTBOUND_ROUTES,
        virtual_hosts=[_unknown_host()],
        response_headers_to_remove=[FLAGS_HEADER],
        response_headers_to_add=[_upstream_header()],
    )
    # Encoded messages join by concatenation, so that virtual hosts are encoded once and not with every new picture.
    parts = [common.SerializeToString(deterministic=True)]
    seen: set[tuple[str, int]] = set()
    for key, host, ports in services:
        for port in ports:
            if (host, port.number) not in seen:  # one domain twice would make Envoy refuse all of them
                seen.add((host, port.number))
                parts.append(_virtual_host(key, host, port.number, port.protocol, is_own=key.namespace == namespace))
    return make_resource(OUTBOUND_ROUTES, b"".join(parts))


@lru_cache(maxsize=_CACHED)
def _virtual_host(key: ServiceKey, host: str, port: int, protocol: Protocol, *, is_own: bool) -> bytes:
    """Returns a route configuration that holds the virtual host of one service port, encoded."""
    upstream = outbound_upstream(host, port)
    names = _names(key, host, is_own=is_own)
    with_port = [f"{name}:{port}" for name in names]
    routes = _tcp_routes(upstream) if protocol is Protocol.TCP else _http_routes(upstream)
    virtual_host = route_components_pb2.VirtualHost(
        name=upstream, domains=[*names, *with_port] if port == _HTTP_PORT else with_port, routes=routes
    )
    encoded: bytes = route_pb2.RouteConfiguration(virtual_hosts=[virtual_host]).SerializeToString(deterministic=True)
    return encoded


def _names(key: ServiceKey, host: str, *, is_own: bool) -> list[str]:
    """Returns the names that Kubernetes users write for a service; the mesh-wide one is always written in full."""
    if host != local_host(key):
        return [host]
    short = [f"{key.name}.{key.namespace}.svc", f"{key.name}.{key.namespace}", *([key.name] if is_own else [])]
    return [host, *short]


def _http_routes(upstream: str) -> list[route_components_pb2.Route]:
    """Routes calls; a CONNECT, which gRPC and WebSocket clients ask of a proxy, leads back to these same routes."""
    every_method = route_components_pb2.RouteMatch(prefix="/")
    idempotent = route_components_pb2.RouteMatch(
        prefix="/",
        headers=[route_components_pb2.HeaderMatcher(name=":method", string_match=_regex(_IDEMPOTENT))],
    )
    return [
        _connect_route(CONNECT_UPSTREAM),
        _call_route(idempotent, upstream, _retry("reset,", flags=".+")),
        _call_route(every_method, upstream, _retry("", flags=_NEVER_REACHED)),
    ]


def _tcp_routes(upstream: str) -> list[route_components_pb2.Route]:
    explanation = "isthmus: this port speaks plain TCP, not HTTP; declare it with the annotation isthmus.dev/tcp-uses\n"
    return [
        _connect_route(upstream),
        route_components_pb2.Route(
            match=route_components_pb2.RouteMatch(prefix="/"), direct_response=_answer_502(explanation)
        ),
    ]


def _unknown_host() -> route_components_pb2.VirtualHost:
    answer = _answer_502(
        "isthmus: no service is known here as %REQ(:AUTHORITY)%; check name, namespace and port, and for "
        "svc.clusterset.local that a member exports it\n"
    )
    return route_components_pb2.VirtualHost(
        name="unknown",
        domains=["*"],
        routes=[
            route_components_pb2.Route(match=_connect_match(), direct_response=answer),
            route_components_pb2.Route(match=route_components_pb2.RouteMatch(prefix="/"), direct_response=answer),
        ],
    )


def _answer_502(text: str) -> route_components_pb2.DirectResponseAction:
    return route_components_pb2.DirectResponseAction(
        status=502,
        body_format=substitution_format_string_pb2.SubstitutionFormatString(
            text_format_source=base_pb2.DataSource(inline_string=text)
        ),
    )


def _connect_match() -> route_components_pb2.RouteMatch:
    return route_components_pb2.RouteMatch(connect_matcher=route_components_pb2.RouteMatch.ConnectMatcher())


def _connect_route(upstream: str) -> route_components_pb2.Route:
    """Ends a CONNECT here and carries its bytes on to `upstream`."""
    upgrade = route_components_pb2.RouteAction.UpgradeConfig(
        upgrade_type="CONNECT", connect_config=route_components_pb2.RouteAction.UpgradeConfig.ConnectConfig()
    )
    return route_components_pb2.Route(
        match=_connect_match(),
        route=route_components_pb2.RouteAction(cluster=upstream, timeout=Duration(), upgrade_configs=[upgrade]),
    )


def _call_route(
    match: route_components_pb2.RouteMatch, upstream: str, retry: route_components_pb2.RetryPolicy
) -> route_components_pb2.Route:
    # Kubernetes users know no default timeout: a call takes as long as its caller waits.
    action = route_components_pb2.RouteAction(cluster=upstream, timeout=Duration(), retry_policy=retry)
    return route_components_pb2.Route(match=match, route=action)


def _retry(also_on: str, *, flags: str) -> route_components_pb2.RetryPolicy:
    """Returns retries, each on another host and in another priority; `flags` are those that may be repeated."""
    return route_components_pb2.RetryPolicy(
        retry_on=f"connect-failure,refused-stream,reset-before-request,{also_on}retriable-headers",
        num_retries=UInt32Value(value=_RETRIES),
        host_selection_retry_max_attempts=2 * _RETRIES,
        retry_back_off=route_components_pb2.RetryPolicy.RetryBackOff(
            base_interval=builders.milliseconds(5), max_interval=builders.milliseconds(100)
        ),
        retriable_headers=[route_components_pb2.HeaderMatcher(name=FLAGS_HEADER, string_match=_regex(flags))],
        retry_host_predicate=[
            route_components_pb2.RetryPolicy.RetryHostPredicate(
                name="envoy.retry_host_predicates.previous_hosts",
                typed_config=builders.any_of(previous_hosts_pb2.PreviousHostsPredicate()),
            )
        ],
        # Without it, previous_hosts is useless where a priority has one host: the next try would go there again.
        retry_priority=route_components_pb2.RetryPolicy.RetryPriority(
            name="envoy.retry_priorities.previous_priorities",
            typed_config=builders.any_of(previous_priorities_config_pb2.PreviousPrioritiesConfig(update_frequency=1)),
        ),
    )


def _upstream_header() -> base_pb2.HeaderValueOption:
    return base_pb2.HeaderValueOption(
        header=base_pb2.HeaderValue(
            key=UPSTREAM_HEADER, value=f'%UPSTREAM_METADATA(["{UPSTREAM_METADATA}","upstream"])%'
        ),
        append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def _regex(pattern: str) -> string_pb2.StringMatcher:
    return string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=pattern))
