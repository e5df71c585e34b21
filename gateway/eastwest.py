"""What an east-west gateway is told: which pods it may open tunnels to, and where the federation stream goes. Pure.

    :15443 ─ SNI east.gateway.west.mesh.test ─ CONNECT cart.shop.svc.west.mesh.test ─► the pod named in a header, :15008
           ├ SNI north.gateway.west.mesh.test ─ ...
           └ SNI control.west.mesh.test ─ bytes only (mTLS ends there) ─► control planes, :15013

A tunnel leads to exactly the pod that was asked for, or is refused: the caller balances, retries and ejects.

Every member has a filter chain of its own, which admits that member alone: when it is revoked its chain goes, and with
it all its tunnels, after the drain time; nobody else's connections are touched. Which services it may reach stands in
the routes, which all chains share: there, a service that is not for it looks like one that does not exist.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import address_pb2, base_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.load_balancing_policies.override_host.v3 import override_host_pb2
from envoy.extensions.load_balancing_policies.round_robin.v3 import round_robin_pb2
from envoy.extensions.load_balancing_policies.subset.v3 import subset_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from federation.model import FEDERATION_PORT, GATEWAY_PORT, MESH_PORT, Endpoint, ExportedService, ProxyScope, ServiceKey
from federation.names import (
    FEDERATION_UPSTREAM,
    GATEWAY_ENDPOINT_HEADER,
    GATEWAY_HEALTH_PATH,
    GATEWAY_LISTENER,
    GATEWAY_ROUTES,
    exported_authority,
    tunnel_sni,
)
from federation.severing import Epochs
from federation.xds import builders, listeners, tls
from federation.xds.resources import ResourceSet, TypeUrl
from trust.bundle import Revocation
from trust.spiffe import ClusterName, MeshDomain, control_dns_name, gateway_dns_name


def compile_gateway(
    scope: ProxyScope,
    exported: Mapping[ServiceKey, ExportedService],
    *,
    control_addresses: Sequence[str],
    domain: MeshDomain,
    callers: Iterable[ClusterName],
    audiences: Mapping[ServiceKey, frozenset[ClusterName]],
    revoked: Collection[Revocation],
    epochs: Epochs,
) -> ResourceSet:
    """Returns the one listener of the gateway and an upstream per exported service.

    `exported` is what this cluster offers, `control_addresses` the control planes whose FEDERATION_PORT peers reach,
    `callers` the members that may open tunnels, but for their workloads that are `revoked`; `audiences` are the members
    that exports are for, of those exports that are not for all. `epochs` stand in the names of the callers' chains.
    """
    cluster = scope.audience.cluster
    services = {exported_authority(cluster, key, domain): exported[key].endpoints for key in sorted(exported)}
    reached_by: dict[frozenset[ClusterName] | None, list[str]] = {None: []}
    for key in sorted(exported):
        reached_by.setdefault(audiences.get(key), []).append(exported_authority(cluster, key, domain))
    rules = {among: tls.members_only(domain, among, revoked=revoked) for among in reached_by if among is None or among}
    control = [builders.socket_address(address, FEDERATION_PORT) for address in control_addresses]
    messages: list[tuple[TypeUrl, str, Message]] = [
        (TypeUrl.LISTENER, GATEWAY_LISTENER, _listener(scope, callers, domain, epochs)),
        (TypeUrl.ROUTES, GATEWAY_ROUTES, _routes(reached_by, gateway_dns_name(cluster, domain), rules)),
        (TypeUrl.CLUSTER, FEDERATION_UPSTREAM, _federation_cluster()),
        (TypeUrl.ENDPOINTS, FEDERATION_UPSTREAM, _assignment(FEDERATION_UPSTREAM, control)),
    ]
    for authority, endpoints in services.items():
        messages.append((TypeUrl.CLUSTER, authority, _service_cluster(authority)))
        messages.append((TypeUrl.ENDPOINTS, authority, _assignment(authority, _mesh_addresses(endpoints))))
    return builders.resource_set(messages)


def _listener(
    scope: ProxyScope, callers: Iterable[ClusterName], domain: MeshDomain, epochs: Epochs
) -> listener_pb2.Listener:
    cluster = scope.audience.cluster
    # Denies all: what is allowed stands in the routes, which change without draining a connection.
    tunnels = listeners.http_manager(GATEWAY_LISTENER, GATEWAY_ROUTES, rules=rbac_pb2.RBAC(), upgrades=("CONNECT",))
    federation = listeners.tcp_proxy(FEDERATION_UPSTREAM, FEDERATION_UPSTREAM, attempts=3)
    chains = [
        listeners.sni_chain(
            tunnel_sni(caller, cluster, domain),
            [listeners.http_filter(tunnels)],
            tls.downstream_tls(domain, alpn="h2", only=caller),
            epoch=epochs.tunnels,
        )
        for caller in sorted(callers)
    ]
    chains.append(listeners.sni_chain(control_dns_name(cluster, domain), [listeners.tcp_filter(federation)]))
    return listeners.listener(GATEWAY_LISTENER, scope.address, port=GATEWAY_PORT, chains=chains, reads_sni=True)


def _routes(
    reached_by: Mapping[frozenset[ClusterName] | None, Sequence[str]],
    own_name: str,
    rules: Mapping[frozenset[ClusterName] | None, rbac_pb2.RBAC],
) -> route_pb2.RouteConfiguration:
    """Returns a virtual host for the health checks of peers, and one for all services that the same members may reach.

    `reached_by` are their authorities by those members (None: all), `rules` who those are; what nobody may reach has
    none. Services stand there by their exact names: a wildcard would open a tunnel to whatever upstream a caller names.
    """
    health = route_components_pb2.Route(
        match=route_components_pb2.RouteMatch(path=GATEWAY_HEALTH_PATH),
        direct_response=route_components_pb2.DirectResponseAction(
            status=200, body=base_pb2.DataSource(inline_string="ok\n")
        ),
    )
    hosts = [route_components_pb2.VirtualHost(name="health", domains=[own_name], routes=[health])]
    for members, domains in sorted(reached_by.items(), key=lambda one: sorted(one[0] or ())):
        if domains and members in rules:
            host = route_components_pb2.VirtualHost(name="exported", domains=domains, routes=[_tunnel_route()])
            if members is not None:
                host.name += f" to {', '.join(sorted(members))}"
                _allow(host, rules[members])
            hosts.append(host)
    routes = route_pb2.RouteConfiguration(name=GATEWAY_ROUTES, virtual_hosts=hosts)
    _allow(routes, rules[None])
    return routes


def _allow(where: route_pb2.RouteConfiguration | route_components_pb2.VirtualHost, rules: rbac_pb2.RBAC) -> None:
    allowed = http_rbac_pb2.RBACPerRoute(rbac=http_rbac_pb2.RBAC(rules=rules))
    where.typed_per_filter_config[listeners.HTTP_RBAC_FILTER].CopyFrom(builders.any_of(allowed))


def _tunnel_route() -> route_components_pb2.Route:
    upgrade = route_components_pb2.RouteAction.UpgradeConfig(
        upgrade_type="CONNECT", connect_config=route_components_pb2.RouteAction.UpgradeConfig.ConnectConfig()
    )
    return route_components_pb2.Route(
        match=route_components_pb2.RouteMatch(connect_matcher=route_components_pb2.RouteMatch.ConnectMatcher()),
        # A tunnel lives as long as the connection inside it: any timeout would cut idle ones.
        route=route_components_pb2.RouteAction(
            cluster_header=":authority", timeout=Duration(), upgrade_configs=[upgrade]
        ),
    )


def _service_cluster(name: str) -> cluster_pb2.Cluster:
    return cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.EDS,
        eds_cluster_config=builders.eds_config(),
        connect_timeout=builders.milliseconds(500),
        load_balancing_policy=_exact_host(),
        # Never all hosts instead of the one that was asked for.
        common_lb_config=builders.common_lb(panic_percent=0),
        circuit_breakers=builders.circuit_breakers(),
        upstream_connection_options=builders.tcp_keepalive(),
    )


def _exact_host() -> cluster_pb2.LoadBalancingPolicy:
    """Returns the choice of the host that GATEWAY_ENDPOINT_HEADER names, and of none where there is no such host.

    The refusal is a subset that no host belongs to: 503 in 1 ms. Any other fallback silently reaches another pod.
    """
    nobody = subset_pb2.Subset(
        fallback_policy=subset_pb2.Subset.NO_FALLBACK,
        subset_selectors=[subset_pb2.Subset.LbSubsetSelector(keys=["never"])],
        subset_lb_policy=_policy("envoy.load_balancing_policies.round_robin", round_robin_pb2.RoundRobin()),
    )
    exact = override_host_pb2.OverrideHost(
        override_host_sources=[override_host_pb2.OverrideHost.OverrideHostSource(header=GATEWAY_ENDPOINT_HEADER)],
        fallback_policy=_policy("envoy.load_balancing_policies.subset", nobody),
    )
    return _policy("envoy.load_balancing_policies.override_host", exact)


def _policy(name: str, config: Message) -> cluster_pb2.LoadBalancingPolicy:
    return cluster_pb2.LoadBalancingPolicy(
        policies=[cluster_pb2.LoadBalancingPolicy.Policy(typed_extension_config=builders.extension(name, config))]
    )


def _federation_cluster() -> cluster_pb2.Cluster:
    return cluster_pb2.Cluster(
        name=FEDERATION_UPSTREAM,
        type=cluster_pb2.Cluster.EDS,
        eds_cluster_config=builders.eds_config(),
        connect_timeout=builders.milliseconds(500),
        common_lb_config=builders.common_lb(panic_percent=builders.PANIC_PERCENT),
        circuit_breakers=builders.circuit_breakers(),
        upstream_connection_options=builders.tcp_keepalive(),
    )


def _assignment(name: str, addresses: Iterable[address_pb2.Address]) -> endpoint_pb2.ClusterLoadAssignment:
    hosts = [builders.lb_endpoint(address) for address in addresses]
    groups = [endpoint_components_pb2.LocalityLbEndpoints(lb_endpoints=hosts)] if hosts else []
    return endpoint_pb2.ClusterLoadAssignment(cluster_name=name, endpoints=groups)


def _mesh_addresses(endpoints: Iterable[Endpoint]) -> list[address_pb2.Address]:
    return [builders.socket_address(endpoint.address, MESH_PORT) for endpoint in endpoints]
