"""What a sidecar is told about others: which change changes what, and what must hold for any picture."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.model import (
    Audience,
    Endpoint,
    GatewayAddress,
    Locality,
    NetworkName,
    Protocol,
    ProxyRole,
    ServiceKey,
    ServicePort,
    TcpUse,
)
from federation.names import clusterset_host, complete_host, local_host
from federation.offers import Path
from federation.placement import PlacedEndpoint
from federation.snapshot import Change, Section, apply
from federation.view import MeshView, ResolvedPeer, ResolvedService
from federation.xds.resources import Resource, ResourceSet, TypeUrl
from sidecar.outbound import compile_outbound, outbound_listeners
from tests.support.static_envoy import as_values
from tests.support.two_clusters import DOMAIN, SHOP, Member, east_and_west, key
from trust.spiffe import ClusterName, Namespace, ServiceAccount

BLOCK = "10.1.1"


def changed(before: ResourceSet, after: ResourceSet) -> set[tuple[TypeUrl, str]]:
    """Returns what would be sent: resources that are new, gone, or have another version."""
    return {
        (type_url, name)
        for type_url in before.keys() | after.keys()
        for name in before.get(type_url, {}).keys() | after.get(type_url, {}).keys()
        if before.get(type_url, {}).get(name) != after.get(type_url, {}).get(name)
    }


def with_pod_unready(cluster: Member, name: str) -> Member:
    pod = next(pod for pod in cluster.snapshot.pods.values() if pod.key.name == name)
    change = Change(Section.PODS, pod.key, msgspec.structs.replace(pod, ready=False))
    return Member(cluster.settings, apply(cluster.snapshot, [change]))


PORTS = {"cart": 80, "page": 80, "greeter": 50051, "chat": 80, "store": 6379}


def test_one_endpoint_changes_one_load_assignment_of_each_name() -> None:
    east, _ = east_and_west(BLOCK)
    after = with_pod_unready(east, "server-b")
    hosts = {(TypeUrl.ENDPOINTS, f"outbound|{port}|{local_host(key(name))}") for name, port in PORTS.items()}
    mesh_wide = (TypeUrl.ENDPOINTS, f"outbound|80|{clusterset_host(key('cart'))}")
    assert changed(east.sidecar("client"), after.sidecar("client")) == {*hosts, mesh_wide}


def test_a_new_service_changes_nothing_of_the_others_but_the_routes() -> None:
    east, _ = east_and_west(BLOCK)
    service = msgspec.structs.replace(east.snapshot.services[key("cart")], key=key("basket"))
    after = Member(east.settings, apply(east.snapshot, [Change(Section.SERVICES, service.key, service)]))
    name = f"outbound|80|{local_host(key('basket'))}"
    assert changed(east.sidecar("client"), after.sidecar("client")) == {
        (TypeUrl.CLUSTER, name),
        (TypeUrl.ENDPOINTS, name),
        (TypeUrl.ROUTES, "outbound"),
    }


def test_a_gateway_that_moves_changes_no_cluster() -> None:
    peer = ResolvedPeer(ClusterName("west"), (GatewayAddress("192.0.2.1"),))
    moved = ResolvedPeer(ClusterName("west"), (GatewayAddress("192.0.2.2", 443),))
    assert changed(compile_outbound(view([], [peer])), compile_outbound(view([], [moved]))) == {
        (TypeUrl.ENDPOINTS, "gateway|west"),
        (TypeUrl.ENDPOINTS, "gateway-tcp|west"),
    }


def test_a_dependency_is_a_listener_of_its_own() -> None:
    east, _ = east_and_west(BLOCK)
    scope = east.pod_scope("client")
    assert scope.pod is not None
    more = msgspec.structs.replace(scope.pod, uses=(*scope.pod.uses, TcpUse("nobody.example", 5432, 7003)))
    with_more = msgspec.structs.replace(scope, pod=more)
    assert changed(outbound_listeners(scope, epoch=""), outbound_listeners(with_more, epoch="")) == {
        (TypeUrl.LISTENER, "outbound-tcp|7003")
    }


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("cart", "cart.shop.svc.cluster.local"),
        ("cart.other", "cart.other.svc.cluster.local"),
        ("cart.other.svc", "cart.other.svc.cluster.local"),
        ("Cart.Other.svc.cluster.local.", "cart.other.svc.cluster.local"),
        ("cart.other.svc.clusterset.local", "cart.other.svc.clusterset.local"),
        ("db.example.com", "db.example.com"),
    ],
)
def test_short_names_are_completed_as_in_a_pod(written: str, meant: str) -> None:
    assert complete_host(written, SHOP) == meant


def test_only_the_own_namespace_may_be_left_out() -> None:
    service = ResolvedService(
        ServiceKey(Namespace("bank"), "cart"), "cart.bank.svc.cluster.local", (ServicePort(80, Protocol.HTTP),), ()
    )
    (routes,) = as_values(compile_outbound(view([service])))[TypeUrl.ROUTES].values()
    domains = {domain for host in routes["virtual_hosts"] for domain in host["domains"]}
    assert "cart.bank" in domains
    assert "cart" not in domains


LABELS = st.sampled_from(["a", "b", "svc"])
ENDPOINTS = st.builds(
    PlacedEndpoint,
    member=st.sampled_from([ClusterName("east"), ClusterName("west")]),
    endpoint=st.builds(
        Endpoint,
        address=st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1"]),
        pod=LABELS,
        account=st.sampled_from([ServiceAccount("x"), ServiceAccount("y")]),
        locality=st.builds(Locality, region=LABELS, zone=LABELS),
    ),
    priority=st.just(0),
    path=st.sampled_from(Path),
    weight=st.integers(1, 100),
    is_draining=st.booleans(),
)
SERVICES = st.builds(
    lambda key, is_local, ports, endpoints: ResolvedService(
        key, local_host(key) if is_local else clusterset_host(key), tuple(ports), tuple(endpoints)
    ),
    st.builds(ServiceKey, LABELS.map(Namespace), LABELS),
    st.booleans(),
    st.lists(st.builds(ServicePort, st.sampled_from([80, 8080]), st.sampled_from(Protocol)), max_size=3),
    st.lists(ENDPOINTS, max_size=4),
)


PAGE = ServiceKey(SHOP, "page")


def page(*endpoints: PlacedEndpoint, expires: int | None = None, vouched: int = 0) -> ResolvedService:
    after = None if expires is None else timedelta(seconds=expires)
    return ResolvedService(PAGE, clusterset_host(PAGE), (ServicePort(80, Protocol.HTTP),), endpoints, after, vouched)


def placed(member: str, address: str, *, weight: int = 1, is_draining: bool = False) -> PlacedEndpoint:
    endpoint = Endpoint(address, "page", ServiceAccount("page"), Locality("eu", "a"))
    return PlacedEndpoint(ClusterName(member), endpoint, 0, Path.DIRECT, weight, is_draining)


def assignment(service: ResolvedService) -> tuple[Resource, Any]:
    resources = compile_outbound(view([service]))
    (resource,) = resources[TypeUrl.ENDPOINTS].values()
    (values,) = as_values(resources)[TypeUrl.ENDPOINTS].values()
    return resource, values


def test_a_locality_has_one_member_and_hosts_their_weights_where_they_differ() -> None:
    two, one, gone = placed("west", "10.0.0.1", weight=2), placed("south", "10.0.0.2"), placed("west", "10.0.0.3")
    _, values = assignment(page(one, two, msgspec.structs.replace(gone, priority=1, is_draining=True)))
    assert [group["locality"]["sub_zone"] for group in values["endpoints"]] == ["south", "west", "west"]
    hosts = [host for group in values["endpoints"] for host in group["lb_endpoints"]]
    assert [host.get("load_balancing_weight") for host in hosts] == [None, 2, None]
    assert [host.get("health_status") for host in hosts] == [None, None, "DRAINING"]
    assert "policy" not in values


def test_other_weights_and_drains_change_no_cluster() -> None:
    before, after = page(placed("west", "10.0.0.1")), page(placed("west", "10.0.0.1", weight=3, is_draining=True))
    name = f"outbound|80|{clusterset_host(PAGE)}"
    changes = changed(compile_outbound(view([before])), compile_outbound(view([after])))
    assert changes == {(TypeUrl.ENDPOINTS, name)}


def test_a_confirmation_is_another_version_of_the_same_bytes() -> None:
    first, values = assignment(page(placed("west", "10.0.0.1"), expires=30, vouched=1))
    second, _ = assignment(page(placed("west", "10.0.0.1"), expires=30, vouched=2))
    assert values["policy"] == {"endpoint_stale_after": "30s"}
    assert first.body == second.body
    assert first.version != second.version


def view(services: list[ResolvedService], peers: list[ResolvedPeer] | None = None) -> MeshView:
    audience = Audience(ProxyRole.SIDECAR, ClusterName("east"), NetworkName("one"), Locality("a", "a"), SHOP)
    return MeshView(DOMAIN, audience, tuple(services), tuple(peers or ()))


@given(st.lists(SERVICES, max_size=6))
def test_what_envoy_would_refuse_is_never_made(services: list[ResolvedService]) -> None:
    made = as_values(compile_outbound(view(services)))
    (routes,) = made[TypeUrl.ROUTES].values()
    domains = [domain for host in routes["virtual_hosts"] for domain in host["domains"]]
    assert len(domains) == len(set(domains))
    clusters = {name for name, cluster in made[TypeUrl.CLUSTER].items() if cluster["type"] == "EDS"}
    assert clusters == set(made.get(TypeUrl.ENDPOINTS, {}))
    for assignment in made.get(TypeUrl.ENDPOINTS, {}).values():
        groups = [(g.get("priority", 0), str(g["locality"])) for g in assignment.get("endpoints", ())]
        assert len(groups) == len(set(groups))


@given(st.lists(SERVICES, max_size=6))
def test_every_host_is_spoken_to_in_tls_with_somebody_expected(services: list[ResolvedService]) -> None:
    made = as_values(compile_outbound(view(services)))
    for name, cluster in made[TypeUrl.CLUSTER].items():
        if name == "outbound-connect":
            continue
        sockets = [
            cluster["transport_socket"],
            *(m["transport_socket"] for m in cluster.get("transport_socket_matches", ())),
        ]
        for socket in sockets:
            tls = socket["typed_config"].get("transport_socket", socket)["typed_config"]
            context = tls["common_tls_context"]["combined_validation_context"]["default_validation_context"]
            assert context["match_typed_subject_alt_names"]
            assert tls["sni"]
