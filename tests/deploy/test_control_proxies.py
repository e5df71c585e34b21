"""What several proxies share is compiled once, and what does not change stays the same."""

from collections.abc import Mapping

import msgspec
import pytest

from deploy.control.proxies import Compiler, merged
from federation.model import (
    Audience,
    ClusterSettings,
    Locality,
    MemberCluster,
    MemberSelector,
    NetworkName,
    Pod,
    PodKey,
    Protocol,
    ProxyRole,
    ProxyScope,
    Service,
    ServiceExport,
    ServiceKey,
    ServicePort,
)
from federation.snapshot import EMPTY, Change, Section, Snapshot, apply
from federation.xds.resources import TypeUrl, make_resource
from trust.spiffe import ClusterName, Identity, MeshDomain, Namespace, ServiceAccount

EAST = ClusterName("east")
SHOP = Namespace("shop")
SETTINGS = ClusterSettings(EAST, MeshDomain("mesh.test"), NetworkName("east"), "eu", cloud="one")
CART = ServiceAccount("cart")


def a_pod(name: str, address: str, zone: str = "a") -> Pod:
    labels = (("app", "cart"),)
    return Pod(PodKey(SHOP, name), address, CART, Locality(zone=zone), labels=labels)


def a_picture(*pods: Pod) -> Snapshot:
    key = ServiceKey(SHOP, "cart")
    port = ServicePort(80, Protocol.HTTP, "http", 8080)
    changes = [
        Change(Section.SERVICES, key, Service(key, (port,), (("app", "cart"),))),
        Change(Section.EXPORTS, key, ServiceExport(key)),
        *(Change(Section.PODS, pod.key, pod) for pod in pods),
    ]
    return apply(EMPTY, changes)


def a_scope(pod: Pod) -> ProxyScope:
    locality = Locality("eu", pod.locality.zone, "one")
    audience = Audience(ProxyRole.SIDECAR, EAST, SETTINGS.network, locality, SHOP)
    return ProxyScope(audience, Identity(EAST, SHOP, CART), pod.address, pod)


def test_proxies_of_one_audience_share_one_compilation() -> None:
    first, second, other = a_pod("cart-1", "10.0.0.1"), a_pod("cart-2", "10.0.0.2"), a_pod("cart-3", "10.0.0.3", "b")
    picture = a_picture(first, second, other)
    compiler = Compiler(SETTINGS, ["10.0.0.100"])
    one, two, three = (compiler(picture, a_scope(pod)) for pod in (first, second, other))
    for name, resource in one[TypeUrl.ENDPOINTS].items():
        assert two[TypeUrl.ENDPOINTS][name] is resource
    assert one[TypeUrl.ENDPOINTS] != three[TypeUrl.ENDPOINTS]
    assert one[TypeUrl.LISTENER] != two[TypeUrl.LISTENER]


def test_a_change_of_one_endpoint_changes_endpoints_only() -> None:
    first, second = a_pod("cart-1", "10.0.0.1"), a_pod("cart-2", "10.0.0.2")
    compiler = Compiler(SETTINGS, ["10.0.0.100"])
    before = compiler(a_picture(first), a_scope(first))
    after = compiler(apply(a_picture(first), [Change(Section.PODS, second.key, second)]), a_scope(first))
    changed = {kind for kind in before if _versions(before[kind]) != _versions(after[kind])}
    assert changed == {TypeUrl.ENDPOINTS}


def test_what_does_not_change_is_the_same_object_down_to_the_mappings() -> None:
    first, second = a_pod("cart-1", "10.0.0.1"), a_pod("cart-2", "10.0.0.2")
    picture = a_picture(first, second)
    west = MemberCluster(ClusterName("west"), NetworkName("west"), "us", ())
    of_no_concern = apply(picture, [Change(Section.MEMBERS, west.name, west)])
    third = a_pod("cart-3", "10.0.0.3")
    more = apply(of_no_concern, [Change(Section.PODS, third.key, third)])
    compiler = Compiler(SETTINGS, ["10.0.0.100"])

    before, again, after = (compiler(one, a_scope(first)) for one in (picture, of_no_concern, more))

    assert of_no_concern.revision > picture.revision
    assert again is before
    assert {kind for kind in after if after[kind] is not before[kind]} == {TypeUrl.ENDPOINTS}


def test_a_name_that_is_compiled_twice_is_a_bug() -> None:
    one = {TypeUrl.CLUSTER: {"cart": make_resource("cart", b"1")}}
    with pytest.raises(ValueError, match="compiled twice"):
        merged(one, one)


def _versions(resources: Mapping[str, msgspec.Struct]) -> Mapping[str, object]:
    return {name: resource.version for name, resource in resources.items()}


def test_another_audience_of_an_export_changes_rules_and_routes_alone() -> None:
    pod = a_pod("cart-1", "10.0.0.1")
    names = [ClusterName(name) for name in ("north", "west")]
    members = [Change(Section.MEMBERS, one, MemberCluster(one, NetworkName(one), "eu", ())) for one in names]
    key = ServiceKey(SHOP, "cart")
    before = apply(a_picture(pod), members)
    after = apply(before, [Change(Section.EXPORTS, key, ServiceExport(key, (MemberSelector("west"),)))])
    compiler = Compiler(SETTINGS, ["10.0.0.100"])
    gateway = msgspec.structs.replace(
        a_scope(pod),
        audience=Audience(ProxyRole.GATEWAY, EAST, SETTINGS.network, Locality("eu"), SHOP),
        address="10.0.0.99",
        pod=None,
    )
    for scope, changed in ((a_scope(pod), TypeUrl.EXTENSION), (gateway, TypeUrl.ROUTES)):
        one, two = compiler(before, scope), compiler(after, scope)
        assert {kind for kind in one if one[kind] != two[kind]} == {changed}
        assert one[changed].keys() == two[changed].keys()
