"""What members tell each other: printed and parsed without loss, believed only from those who may say it."""

from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.model import (
    EPOCH,
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
    Service,
    ServiceExport,
    ServiceKey,
    ServicePort,
    Severance,
)
from federation.names import departure_key, freshness_key, member_key, severance_key
from federation.peering import exports
from federation.peering.checks import Malformed
from federation.peering.exports import learn, offered, read_export, read_member
from federation.peering.records import read_record
from federation.snapshot import EMPTY, Change, Section, Snapshot, apply
from trust.spiffe import ClusterName, MeshDomain, Namespace, ServiceAccount

WEST = ClusterName("west")
EAST = ClusterName("east")
CART = ServiceKey(Namespace("shop"), "cart")
THEN = datetime(2026, 1, 1, tzinfo=UTC)
FIRST_HOURS = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))  # in UTC, before all that can be told
SETTINGS = ClusterSettings(name=WEST, domain=MeshDomain("mesh.test"), network=NetworkName("west"), region="us")

labels = st.from_regex(r"[a-z]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)
numbers = st.integers(min_value=1, max_value=65535)
ports = st.builds(ServicePort, numbers, st.sampled_from(Protocol), st.one_of(st.just(""), labels))
endpoints = st.builds(
    Endpoint,
    st.ip_addresses(v=4, network="10.0.0.0/8").map(str),
    labels,
    labels.map(ServiceAccount),
    st.builds(Locality, labels, labels, labels),
    st.lists(st.tuples(labels, labels), max_size=2).map(tuple),
)
keys = st.builds(ServiceKey, labels.map(Namespace), labels)
exported_services = st.builds(
    ExportedService,
    st.just(WEST),
    keys,
    st.lists(ports, unique_by=lambda port: port.number, max_size=3).map(lambda found: tuple(sorted(found))),
    st.lists(endpoints, unique_by=lambda endpoint: endpoint.address, max_size=3).map(
        lambda found: tuple(sorted(found))
    ),
    st.datetimes(timezones=st.just(UTC)),
)


def exported(**changes: object) -> ExportedService:
    value = ExportedService(
        cluster=WEST,
        key=CART,
        ports=(ServicePort(80, Protocol.HTTP, "http"),),
        endpoints=(Endpoint("10.0.0.1", "cart-1", ServiceAccount("cart"), Locality("us", "a"), (("app", "cart"),)),),
        changed_at=THEN,
        exported_at=THEN,
    )
    return msgspec.structs.replace(value, **changes)


def endpoint(**changes: object) -> Endpoint:
    return msgspec.structs.replace(exported().endpoints[0], **changes)


def at(locality: Locality) -> Endpoint:
    return endpoint(locality=locality)


def member(name: str = "west", **changes: object) -> MemberCluster:
    value = MemberCluster(
        name=ClusterName(name),
        network=NetworkName(name),
        region="us",
        gateways=(GatewayAddress("10.0.0.9"),),
    )
    return msgspec.structs.replace(value, **changes)


def drain(**changes: object) -> Drain:
    return msgspec.structs.replace(Drain(WEST, 0, THEN), **changes)


def picture(*, ready: bool = True, is_exported: bool = True) -> Snapshot:
    pod = Pod(
        key=PodKey(CART.namespace, "cart-1"),
        address="10.0.0.1",
        account=ServiceAccount("cart"),
        locality=Locality("us", "a"),
        ready=ready,
        labels=(("app", "cart"),),
    )
    service = Service(CART, (ServicePort(80, Protocol.HTTP, "http", target="web"),), (("app", "cart"),))
    changes = [Change(Section.SERVICES, CART, service), Change(Section.PODS, pod.key, pod)]
    if is_exported:
        changes.append(Change(Section.EXPORTS, CART, ServiceExport(CART)))
    return apply(EMPTY, changes)


@given(exported_services)
def test_an_offer_is_read_as_it_was_written(value: ExportedService) -> None:
    resource = exports.export_resource(value)
    assert read_export(resource.name, resource.body, WEST) == value


@given(exported_services, st.datetimes(timezones=st.just(UTC)))
def test_the_version_of_an_offer_ignores_when_it_changed(value: ExportedService, moment: datetime) -> None:
    later = msgspec.structs.replace(value, changed_at=moment)
    assert exports.export_version(later) == exports.export_version(value)


@given(exported_services, exported_services)
def test_different_offers_have_different_versions(one: ExportedService, other: ExportedService) -> None:
    same = msgspec.structs.replace(one, changed_at=other.changed_at) == other
    assert (exports.export_version(one) == exports.export_version(other)) == same


def test_unknown_fields_of_a_younger_member_are_skipped() -> None:
    body = msgspec.json.encode(msgspec.to_builtins(exported()) | {"weight": 7})
    assert read_export("shop/cart", body, WEST) == exported()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (exported(cluster=EAST), "may not offer services of east"),
        (exported(key=ServiceKey(CART.namespace, "pay")), "about shop/pay"),
        (exported(ports=(ServicePort(0, Protocol.HTTP),)), "1 to 65535"),
        (exported(ports=(ServicePort(80, Protocol.HTTP), ServicePort(80, Protocol.TCP))), "different numbers"),
        (exported(endpoints=(msgspec.structs.replace(exported().endpoints[0], address="cart"),)), "no valid IP"),
        (exported(endpoints=(msgspec.structs.replace(exported().endpoints[0], address="0.0.0.0"),)), "nobody can have"),
        (exported(endpoints=(msgspec.structs.replace(exported().endpoints[0], account="../x"),)), "service account"),
        (exported(endpoints=(msgspec.structs.replace(exported().endpoints[0], pod="a/b"),)), "pod name"),
        (exported(endpoints=exported().endpoints * 2), "the same address"),
        (exported(changed_at=THEN.replace(tzinfo=None)), "time zone"),
        (exported(exported_at=FIRST_HOURS), "UTC"),
        (exported(key=ServiceKey(CART.namespace, "*")), "about shop"),
        (exported(ports=(ServicePort(65536, Protocol.HTTP),)), "1 to 65535"),
        (exported(ports=tuple(ServicePort(n, Protocol.TCP) for n in range(1, 102))), "101 ports are more"),
        (exported(ports=(ServicePort(80, Protocol.HTTP, "a\nb"),)), "cannot be printed"),
        (exported(endpoints=(at(Locality("us", "a\r\nset-cookie: x=y")),)), "cannot be printed"),
        (exported(endpoints=(at(Locality("us", "\u202egpj")),)), "cannot be printed"),
        (exported(endpoints=(at(Locality("u" * 254, "a")),)), "longer than 253"),
        (exported(endpoints=(endpoint(labels=(("app", "\x1b[2J"),)),)), "cannot be printed"),
        (exported(endpoints=(endpoint(address="fe80::1%\n"),)), "scope"),
        (exported(endpoints=(endpoint(address="::ffff:10.0.0.1"),)), "IPv4 in the form of IPv6"),
        (exported(endpoints=(endpoint(address="169.254.169.254"),)), "on every link"),
        (exported(endpoints=(endpoint(address="255.255.255.255"),)), "nobody can have"),
        (exported(endpoints=(endpoint(address="fd00::1"), endpoint(address="FD00:0::1"))), "the same address"),
    ],
)
def test_an_offer_that_cannot_be_true_is_refused(value: ExportedService, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        read_export("shop/cart", exports.encode(value), WEST)


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for read in (exports.decode_export, exports.decode_member, exports.decode_freshness):
        with pytest.raises(Malformed):
            read(body)


def test_a_record_that_is_nested_without_end_is_refused() -> None:
    body = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for read in (exports.decode_export, exports.decode_member, exports.decode_freshness):
        with pytest.raises(Malformed, match="nested too deeply"):
            read(body)


def test_a_record_that_etcd_would_not_take_is_refused() -> None:
    with pytest.raises(Malformed, match="bytes are more than"):
        exports.decode_export(b" " * (exports.MAX_RECORD + 1))


def test_the_pods_own_ports_stay_at_home() -> None:
    body = exports.encode(exported(ports=(ServicePort(80, Protocol.HTTP, "http", target=8080),)))
    assert read_export("shop/cart", body, WEST) == exported()


def test_a_member_speaks_for_itself() -> None:
    said = read_member("west", exports.encode(member(introduced_by="mallory")), WEST)
    assert said == member()


def test_what_is_said_of_another_member_is_marked_as_hearsay() -> None:
    assert read_member("south", exports.encode(member("south")), WEST) == member("south", introduced_by="west")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (member("south"), "about 'south'"),
        (member(gateways=(GatewayAddress("gateway.test"),)), "no valid IP"),
        (member(gateways=(GatewayAddress("10.0.0.1", 0),)), "out of range"),
        (member(gateways=(GatewayAddress("10.0.0.1", 65536),)), "out of range"),
        (member(gateways=tuple(GatewayAddress("10.0.0.1", n) for n in range(1, 66))), "more than 64"),
        (member(network=NetworkName("")), "no network"),
        (member(network=NetworkName("west\x1b]0;")), "cannot be printed"),
        (member(zones=("a\n",)), "cannot be printed"),
        (member(wire_version=-1), "wire version"),
        (member(certificate="x" * 16385), "certificate"),
        (member(drains=(drain(cluster=EAST),)), "may not drain east"),
        (member(drains=(drain(weight=100),)), "0 to 99"),
        (member(drains=(drain(weight=-1),)), "0 to 99"),
        (member(drains=(drain(since=THEN.replace(tzinfo=None)),)), "time zone"),
        (member(drains=(drain(since=FIRST_HOURS),)), "UTC"),
        (member(drains=(drain(service=ServiceKey(Namespace("shop"), "\x1b[2J")),)), "DNS labels"),
        (member(drains=(drain(service=ServiceKey(Namespace("shop/../x"), "cart")),)), "DNS labels"),
        (member(drains=tuple(drain() for _ in range(1001))), "1000 drains"),
        (member(labels=(("tier", "gold\n"),)), "cannot be printed"),
    ],
)
def test_a_member_record_that_cannot_be_true_is_refused(value: MemberCluster, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        read_member("west", exports.encode(value), WEST)
    if len(value.gateways) <= 64:  # how much it may be is asked of peers alone
        with pytest.raises(Malformed, match=message):
            read_record(member_key(WEST), exports.encode(value))  # whoever wrote that into etcd


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (severance_key(WEST, None), Severance(WEST, FIRST_HOURS)),
        (departure_key(WEST), Departure(WEST, FIRST_HOURS)),
        (departure_key(WEST), Departure(WEST, THEN.replace(tzinfo=None))),
        (freshness_key(WEST), Freshness(Liveness.LIVE, THEN, THEN.replace(tzinfo=None))),
        (freshness_key(WEST), Freshness(Liveness.LIVE, FIRST_HOURS)),
    ],
)
def test_a_moment_that_nobody_could_reckon_with_is_refused(key: str, value: Severance | Departure | Freshness) -> None:
    with pytest.raises(Malformed, match=r"time zone|UTC"):
        read_record(key, exports.encode(value))


def test_a_number_that_could_not_be_written_again_is_refused() -> None:
    body = exports.encode(member()).replace(b'"wire_version":1', b'"wire_version":' + b"9" * 30)
    with pytest.raises(Malformed, match="wire version"):
        read_member("west", body, WEST)


def test_a_gateway_that_is_named_twice_is_kept_once() -> None:
    said = member(gateways=(GatewayAddress("FD00::1"), GatewayAddress("fd00:0::1")))
    assert read_member("west", exports.encode(said), WEST).gateways == (GatewayAddress("fd00::1"),)


def test_an_address_is_kept_in_its_one_spelling() -> None:
    said = exported(endpoints=(endpoint(address="FD00:0::1"),))
    assert read_export("shop/cart", exports.encode(said), WEST).endpoints == (endpoint(address="fd00::1"),)


def test_hearsay_is_replaced_by_the_members_own_word_and_never_replaces_it() -> None:
    hearsay, own = member(introduced_by="south"), member(region="eu")
    assert learn(None, hearsay) == hearsay
    assert learn(hearsay, own) == own
    assert learn(own, hearsay) is None
    assert learn(own, own) is None


def test_hearsay_is_not_passed_on() -> None:
    assert exports.may_pass_on([member(introduced_by="south"), member("east")]) == (member("east"),)


def test_exported_services_are_offered_with_their_ready_endpoints() -> None:
    assert offered(picture(), SETTINGS, before={}, changed_at=THEN) == {CART: exported()}
    assert offered(picture(is_exported=False), SETTINGS, before={}, changed_at=THEN) == {}


def test_an_exported_service_without_ready_endpoints_keeps_its_name() -> None:
    empty = offered(picture(ready=False), SETTINGS, before={}, changed_at=THEN)
    assert empty == {CART: exported(endpoints=())}


def test_only_what_changed_gets_a_new_moment() -> None:
    before = offered(picture(), SETTINGS, before={}, changed_at=THEN)
    later = THEN + timedelta(seconds=9)
    assert offered(picture(), SETTINGS, before=before, changed_at=later)[CART] is before[CART]
    changed = offered(picture(ready=False), SETTINGS, before=before, changed_at=later)
    assert changed[CART].changed_at == later


def test_an_export_counts_from_when_it_was_created_or_first_offered() -> None:
    created, later = THEN - timedelta(days=9), THEN + timedelta(days=9)
    first = offered(picture(), SETTINGS, before={}, changed_at=THEN)
    assert first[CART].exported_at == THEN
    changed = offered(picture(ready=False), SETTINGS, before=first, changed_at=later)
    assert (changed[CART].changed_at, changed[CART].exported_at) == (later, THEN)
    dated = apply(picture(), [Change(Section.EXPORTS, CART, ServiceExport(CART, created=created))])
    assert offered(dated, SETTINGS, before=first, changed_at=later)[CART].exported_at == created


def test_an_upgrade_from_an_edition_that_does_not_say_since_when_sends_nothing_again() -> None:
    old = {CART: exported(exported_at=EPOCH)}
    new = offered(picture(), SETTINGS, before=old, changed_at=THEN + timedelta(days=9))
    assert new[CART].exported_at == THEN
    assert exports.export_version(new[CART]) == exports.export_version(old[CART])


def test_what_a_later_edition_adds_does_not_make_another_version_here() -> None:
    resource = exports.export_resource(exported())
    body = msgspec.json.encode(msgspec.json.decode(resource.body) | {"weight": 7})
    told = msgspec.structs.replace(read_export("shop/cart", body, WEST), version="theirs")
    kept = exports.decode_export(exports.encode(told))
    assert exports.export_version(kept) == "theirs"
