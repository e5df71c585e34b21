"""Distance and names: the nearest healthy endpoint is a matter of these pure functions."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.drains import drain_of, effective_weight, kept_services
from federation.model import (
    Audience,
    ClusterSettings,
    Departure,
    Drain,
    Endpoint,
    ExportedService,
    Freshness,
    GatewayAddress,
    Liveness,
    Locality,
    MemberCluster,
    NetworkName,
    Pod,
    PodKey,
    Protocol,
    ProxyRole,
    Service,
    ServiceExport,
    ServiceKey,
    ServicePolicy,
    ServicePort,
    WhenStale,
)
from federation.offers import Path
from federation.snapshot import EMPTY, VOUCHED_KEY, Change, Replace, Section, Snapshot, apply
from federation.view import InboundPort, ResolvedService, Views, inbound_ports, resolve
from trust.bundle import make_revocation
from trust.spiffe import ClusterName, MeshDomain, Namespace, ServiceAccount

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SHOP = Namespace("shop")
CART, OTHER = ServiceKey(SHOP, "cart"), ServiceKey(SHOP, "other")
HOST, LOCAL = "cart.shop.svc.clusterset.local", "cart.shop.svc.cluster.local"
EAST, WEST, SOUTH = ClusterName("east"), ClusterName("west"), ClusterName("south")
HTTP = ServicePort(80, Protocol.HTTP)
SETTINGS = ClusterSettings(
    name=EAST, domain=MeshDomain("mesh.test"), network=NetworkName("east"), region="eu", cloud="one"
)
HERE = Audience(
    role=ProxyRole.SIDECAR,
    cluster=EAST,
    network=NetworkName("east"),
    locality=Locality("eu", "a", "one"),
    namespace=SHOP,
)


def pod(name: str, zone: str) -> Pod:
    return Pod(
        key=PodKey(SHOP, name),
        address=f"10.0.0.{len(name)}",
        account=ServiceAccount("cart"),
        locality=Locality("eu", zone, "one"),
        labels=(("app", "cart"),),
    )


def member(name: ClusterName, region: str, cloud: str, network: str = "") -> MemberCluster:
    return MemberCluster(
        name=name,
        network=NetworkName(network or name),
        region=region,
        gateways=(GatewayAddress(f"gw.{name}"),),
        cloud=cloud,
    )


def exported(cluster: ClusterName, *, ports: tuple[ServicePort, ...] = (HTTP,), zone: str = "a") -> ExportedService:
    endpoint = Endpoint(f"10.1.0.{len(cluster)}", "cart-1", ServiceAccount("cart"), Locality("", zone))
    return ExportedService(cluster, CART, ports, (endpoint,), NOW)


def mesh(*members: MemberCluster, exports: bool = True) -> Snapshot:
    return apply(
        EMPTY,
        [
            Replace(Section.SERVICES, {CART: Service(CART, (HTTP,), (("app", "cart"),))}),
            Replace(Section.EXPORTS, {CART: ServiceExport(CART)} if exports else {}),
            Replace(Section.PODS, {pod.key: pod for pod in (pod("near", "a"), pod("farther", "b"))}),
            Replace(Section.MEMBERS, {record.name: record for record in members}),
            Replace(Section.IMPORTS, {(record.name, CART): exported(record.name) for record in members}),
        ],
    )


def by_host(snapshot: Snapshot, settings: ClusterSettings = SETTINGS) -> dict[str, ResolvedService]:
    return {service.host: service for service in resolve(snapshot, settings, HERE).services}


def order(service: ResolvedService) -> list[tuple[str, str, int]]:
    return [(placed.member, placed.endpoint.pod, placed.priority) for placed in service.endpoints]


def test_zone_then_region_then_cloud_then_elsewhere() -> None:
    snapshot = mesh(member(WEST, "us", "one"), member(SOUTH, "ap", "two"))
    services = by_host(snapshot)
    assert order(services[HOST]) == [
        ("east", "near", 0),
        ("east", "farther", 1),
        ("west", "cart-1", 2),
        ("south", "cart-1", 3),
    ]
    assert order(services[LOCAL]) == [("east", "near", 0), ("east", "farther", 1)]


def test_a_peer_in_the_same_region_comes_before_one_in_the_same_cloud() -> None:
    snapshot = mesh(member(WEST, "us", "one"), member(SOUTH, "eu", "two"))
    ranked = order(by_host(snapshot)[HOST])
    assert [name for name, *_ in ranked] == ["east", "east", "south", "west"]


def test_a_stale_member_is_kept_after_everybody_who_is_heard() -> None:
    snapshot = mesh(member(WEST, "us", "one"), member(SOUTH, "ap", "two"))
    stale = apply(snapshot, [Change(Section.FRESHNESS, WEST, Freshness(Liveness.STALE, NOW, NOW))])
    ranked = order(by_host(stale)[HOST])
    assert [name for name, *_ in ranked] == ["east", "east", "south", "west"]


def test_only_who_exports_stands_behind_the_mesh_wide_name() -> None:
    services = by_host(mesh(member(WEST, "us", "one"), exports=False))
    assert [name for name, *_ in order(services[HOST])] == ["west"]
    assert HOST not in by_host(mesh(exports=False))


def test_the_same_network_is_reached_directly_and_needs_no_gateway() -> None:
    view = resolve(mesh(member(WEST, "us", "one", network="east")), SETTINGS, HERE)
    assert {placed.path for service in view.services for placed in service.endpoints} == {Path.DIRECT}
    assert view.peers == ()


@pytest.mark.parametrize("network", ["east", "west"])
def test_a_member_cannot_take_the_place_of_an_endpoint_by_claiming_its_address(network: str) -> None:
    snapshot = mesh(member(WEST, "eu", "one", network=network))
    thief = Endpoint(pod("near", "a").address, "thief", ServiceAccount("cart"), Locality("eu", "a", "one"))
    claimed = msgspec.structs.replace(exported(WEST), endpoints=(thief,))
    snapshot = apply(snapshot, [Change(Section.IMPORTS, (WEST, CART), claimed)])
    found = order(by_host(snapshot)[HOST])
    assert found[:2] == [("east", "near", 0), ("east", "farther", 1)]
    # Behind a gateway it is another address, though it is spelled the same.
    assert found[2:] == ([] if network == "east" else [("west", "thief", 2)])


def test_a_member_that_cannot_be_reached_is_left_out() -> None:
    unreachable = MemberCluster(name=WEST, network=NetworkName("west"), region="us", gateways=())
    ranked = order(by_host(mesh(unreachable))[HOST])
    assert [name for name, *_ in ranked] == ["east", "east"]


def test_an_operator_may_say_where_a_peers_gateways_are_reached() -> None:
    private = (GatewayAddress("192.0.2.1", 443),)
    settings = ClusterSettings(
        name=EAST,
        domain=SETTINGS.domain,
        network=SETTINGS.network,
        region="eu",
        peer_gateways={WEST: private},
    )
    view = resolve(mesh(member(WEST, "us", "one")), settings, HERE)
    assert [peer.gateways for peer in view.peers] == [private]


def test_ports_that_only_some_members_offer_lead_only_to_those() -> None:
    grpc = ServicePort(9000, Protocol.GRPC)
    snapshot = apply(
        mesh(member(WEST, "us", "one")),
        [Change(Section.IMPORTS, (WEST, CART), exported(WEST, ports=(HTTP, grpc)))],
    )
    groups = [
        ([port.number for port in service.ports], {placed.member for placed in service.endpoints})
        for service in resolve(snapshot, SETTINGS, HERE).services
        if service.host == HOST
    ]
    assert groups == [([80], {EAST, WEST}), ([9000], {WEST})]


@given(st.permutations([member(WEST, "us", "one"), member(SOUTH, "ap", "two")]))
def test_the_order_of_news_does_not_matter(members: list[MemberCluster]) -> None:
    assert resolve(mesh(*members), SETTINGS, HERE) == resolve(mesh(*reversed(members)), SETTINGS, HERE)


@pytest.mark.parametrize(("target", "expected"), [(0, 80), (8080, 8080), ("web", 8081)])
def test_a_target_port_is_a_number_a_name_or_the_same(target: int | str, expected: int) -> None:
    service = Service(CART, (ServicePort(80, Protocol.HTTP, target=target),), (("app", "cart"),))
    instance = Pod(
        key=PodKey(SHOP, "cart-1"),
        address="10.0.0.1",
        account=ServiceAccount("cart"),
        locality=Locality(),
        labels=(("app", "cart"),),
        ports=(("web", 8081),),
    )
    snapshot = apply(EMPTY, [Replace(Section.SERVICES, {CART: service})])
    assert inbound_ports(snapshot, instance) == (InboundPort(CART, 80, Protocol.HTTP, expected, False),)


def test_a_target_port_that_the_pod_does_not_have_is_left_out() -> None:
    service = Service(CART, (ServicePort(80, Protocol.HTTP, target="nope"),), (("app", "cart"),))
    snapshot = apply(EMPTY, [Replace(Section.SERVICES, {CART: service})])
    assert inbound_ports(snapshot, pod("cart-1", "a")) == ()


def members_of(snapshot: Snapshot) -> list[str]:
    return [placed.member for placed in by_host(snapshot)[HOST].endpoints if not placed.is_draining]


def three() -> Snapshot:
    return mesh(member(WEST, "us", "one"), member(SOUTH, "ap", "two"))


def test_a_member_that_is_gone_is_left_out_until_it_is_heard_again() -> None:
    gone = apply(three(), [Change(Section.FRESHNESS, WEST, Freshness(Liveness.GONE, NOW, NOW))])
    assert members_of(gone) == ["east", "east", "south"]
    assert [peer.name for peer in resolve(gone, SETTINGS, HERE).peers] == [SOUTH]
    back = apply(gone, [Change(Section.FRESHNESS, WEST, Freshness(Liveness.LIVE, NOW, NOW))])
    assert resolve(back, SETTINGS, HERE) == resolve(three(), SETTINGS, HERE)


def test_a_member_that_left_is_not_seen() -> None:
    left = apply(three(), [Change(Section.DEPARTURES, WEST, Departure(WEST, NOW))])
    assert members_of(left) == ["east", "east", "south"]
    assert [peer.name for peer in resolve(left, SETTINGS, HERE).peers] == [SOUTH]


@pytest.mark.parametrize(("introduced_by", "is_seen"), [("", False), ("south", True)])
def test_only_a_member_itself_says_that_it_left(introduced_by: str, is_seen: bool) -> None:
    farewell = msgspec.structs.replace(member(WEST, "us", "one"), has_left=True, introduced_by=introduced_by)
    assert ("west" in members_of(apply(three(), [Change(Section.MEMBERS, WEST, farewell)]))) == is_seen


def test_a_cluster_that_has_left_sees_itself_alone() -> None:
    left = apply(three(), [Change(Section.DEPARTURES, EAST, Departure(EAST, NOW))])
    assert members_of(left) == ["east", "east"]
    assert resolve(left, SETTINGS, HERE).peers == ()


def test_a_drain_holds_whether_it_is_told_by_the_member_or_asked_here() -> None:
    drain = Drain(WEST, 0, NOW)
    asked = apply(three(), [Change(Section.DRAINS, (WEST, None), drain)])
    record = msgspec.structs.replace(member(WEST, "us", "one"), drains=(drain,))
    told = apply(three(), [Change(Section.MEMBERS, WEST, record)])
    hearsay = apply(three(), [Change(Section.MEMBERS, WEST, msgspec.structs.replace(record, introduced_by=SOUTH))])
    assert members_of(asked) == members_of(told) == ["east", "east", "south"]
    assert members_of(hearsay) == ["east", "east", "west", "south"]
    # It stays where it was counted, and reached.
    assert [placed.member for placed in by_host(asked)[HOST].endpoints if placed.is_draining] == ["west"]
    assert [peer.name for peer in resolve(asked, SETTINGS, HERE).peers] == [SOUTH, WEST]


def test_the_strictest_drain_holds() -> None:
    drains = [Drain(WEST, 50, NOW), Drain(WEST, 20, NOW, service=CART), Drain(WEST, 5, NOW, service=OTHER)]
    snapshot = apply(three(), [Change(Section.DRAINS, (WEST, one.service), one) for one in drains])
    assert effective_weight(snapshot, SETTINGS, WEST, CART) == 20
    assert effective_weight(snapshot, SETTINGS, WEST, OTHER) == 5
    assert effective_weight(snapshot, SETTINGS, SOUTH, CART) == 100
    found = drain_of(snapshot, SETTINGS, WEST, CART)
    assert found is not None
    assert found.service == CART


@pytest.mark.parametrize("clients", [False, True])
def test_the_own_drain_counts_here_only_with_the_clients_and_never_for_local_names(clients: bool) -> None:
    snapshot = apply(three(), [Change(Section.DRAINS, (EAST, None), Drain(EAST, 0, NOW, clients=clients))])
    assert members_of(snapshot) == (["west", "south"] if clients else ["east", "east", "west", "south"])
    assert len(by_host(snapshot)[LOCAL].endpoints) == 2
    assert not any(placed.is_draining for placed in by_host(snapshot)[LOCAL].endpoints)


def test_a_drained_member_keeps_what_nobody_else_serves() -> None:
    grpc = ServicePort(9000, Protocol.GRPC)
    alone = msgspec.structs.replace(exported(WEST), key=OTHER)
    drained = Change(Section.DRAINS, (WEST, None), Drain(WEST, 0, NOW))
    snapshot = apply(three(), [Change(Section.IMPORTS, (WEST, OTHER), alone), drained])
    assert kept_services(snapshot, SETTINGS, WEST) == (OTHER,)
    assert kept_services(snapshot, SETTINGS, SOUTH) == ()
    of_port = apply(three(), [Change(Section.IMPORTS, (WEST, CART), exported(WEST, ports=(HTTP, grpc))), drained])
    assert kept_services(of_port, SETTINGS, WEST) == (CART,)


def test_endpoints_of_others_expire_where_the_policy_drops_them_and_own_ones_never() -> None:
    policy = ServicePolicy(when_stale=WhenStale.DROP, drop_after=timedelta(seconds=30))
    changes = [Change(Section.POLICIES, CART, policy), Change(Section.VOUCHED, VOUCHED_KEY, 7)]
    foreign = by_host(apply(mesh(member(WEST, "us", "one"), exports=False), changes))
    assert (foreign[HOST].expires_after, foreign[HOST].vouched) == (timedelta(seconds=30), 7)
    assert (foreign[LOCAL].expires_after, foreign[LOCAL].vouched) == (None, 0)
    assert by_host(apply(three(), changes))[HOST].expires_after is None
    # What does not expire is not confirmed: no proxy is told anything.
    assert resolve(three(), SETTINGS, HERE) == resolve(apply(three(), changes[1:]), SETTINGS, HERE)
    silent = apply(three(), [*changes, Change(Section.SILENCES, WEST, timedelta(seconds=30))])
    assert members_of(silent) == ["east", "east", "south"]


def test_a_port_that_members_define_differently_leads_to_the_oldest_export() -> None:
    grpc = ServicePort(80, Protocol.GRPC)
    said = msgspec.structs.replace(exported(WEST, ports=(grpc,)), exported_at=NOW)
    changes = [Change(Section.IMPORTS, (WEST, CART), said)]
    younger = apply(three(), [*changes, Change(Section.PUBLISHED, CART, NOW + timedelta(days=1))])
    assert members_of(younger) == ["west"]
    assert by_host(younger)[HOST].ports == (grpc,)
    older = apply(three(), [*changes, Change(Section.PUBLISHED, CART, NOW - timedelta(days=1))])
    assert set(members_of(older)) == {"east", "south"}


def anything(draw: st.DrawFn) -> Change:
    """Returns some change of some section that a view depends on."""
    name = draw(st.sampled_from([WEST, SOUTH]))
    key = draw(st.sampled_from([CART, OTHER]))
    drop = ServicePolicy(when_stale=WhenStale.DROP, drop_after=timedelta(seconds=30))
    state = draw(st.sampled_from(list(Liveness)))
    ports = draw(st.sampled_from([(HTTP,), (ServicePort(80, Protocol.GRPC),), (HTTP, ServicePort(81, Protocol.TCP))]))
    offer = msgspec.structs.replace(exported(name, ports=ports), key=key)
    found: tuple[Section, object, object] = draw(
        st.sampled_from(
            [
                (Section.SERVICES, key, Service(key, ports, (("app", "cart"),))),
                (Section.EXPORTS, key, ServiceExport(key)),
                (Section.PUBLISHED, key, NOW),
                (Section.PODS, PodKey(SHOP, "near"), pod("near", "b")),
                (Section.MEMBERS, name, member(name, "us", "one", network=draw(st.sampled_from(["", "east"])))),
                (Section.IMPORTS, (name, key), offer),
                (Section.FRESHNESS, name, Freshness(state, NOW, NOW)),
                (Section.DEPARTURES, name, Departure(name, NOW)),
                (Section.MEMBERS, name, member(name, "eu", "two")),
                (Section.DRAINS, (name, None), Drain(name, draw(st.sampled_from([0, 50])), NOW)),
                (Section.DRAINS, (name, key), Drain(name, draw(st.sampled_from([0, 50])), NOW, service=key)),
                (Section.DRAINS, (EAST, None), Drain(EAST, 0, NOW, clients=draw(st.booleans()))),
                (Section.POLICIES, key, draw(st.sampled_from([drop, ServicePolicy(weights=((WEST, 1),))]))),
                (Section.SILENCES, name, timedelta(seconds=30)),
                (Section.VOUCHED, VOUCHED_KEY, draw(st.integers(1, 3))),
                (Section.REVOCATIONS, "shop/cart", make_revocation("shop/cart", at=NOW)),
            ]
        )
    )
    section, at, value = found
    return Change(section, at, None if draw(st.booleans()) else value)


@given(st.data())
def test_a_view_made_from_the_one_before_is_the_view_made_anew(data: st.DataObject) -> None:
    views, snapshot = Views(SETTINGS), three()
    elsewhere = msgspec.structs.replace(HERE, network=NetworkName("west"))
    for changes in data.draw(st.lists(st.lists(st.composite(anything)(), max_size=3), max_size=6)):
        snapshot = apply(snapshot, changes)
        for audience in (HERE, elsewhere):
            if data.draw(st.booleans()):
                assert views.resolve(snapshot, audience) == resolve(snapshot, SETTINGS, audience)
