"""Ports that members define differently: all members come to the same winner, whatever they hear first."""

from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from federation.conflicts import PortConflict, conflicts, port_conflicts, port_groups
from federation.model import (
    EPOCH,
    ClusterSettings,
    ExportedService,
    GatewayAddress,
    MemberCluster,
    NetworkName,
    Protocol,
    Service,
    ServiceExport,
    ServiceKey,
    ServicePort,
)
from federation.offers import Offer, Path, Reach
from federation.snapshot import EMPTY, Replace, Section, Snapshot, apply
from trust.spiffe import ClusterName, MeshDomain, Namespace

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CART = ServiceKey(Namespace("shop"), "cart")
HTTP, GRPC = ServicePort(80, Protocol.HTTP, "web"), ServicePort(80, Protocol.GRPC, "web")
ADMIN = ServicePort(81, Protocol.HTTP)


def offer(name: str, *ports: ServicePort, day: int | None = 0, path: Path | None = Path.DIRECT) -> Offer:
    """Returns what a member offers since a day; None: it does not say."""
    member = MemberCluster(ClusterName(name), NetworkName(name), region="", gateways=())
    since = EPOCH if day is None else NOW + timedelta(days=day)
    return Offer(Reach(member, path), ports, (), since)


def groups(*offers: Offer) -> list[tuple[list[int], list[str]]]:
    return [
        ([port.number for port in ports], [one.cluster for one in serving]) for ports, serving in port_groups(offers)
    ]


def test_ports_are_the_union_of_all_exports() -> None:
    one, other = offer("b", HTTP), offer("c", HTTP, ADMIN)
    assert groups(one, other) == [([80], ["b", "c"]), ([81], ["c"])]
    assert port_conflicts([one, other]) == ()


def test_the_oldest_export_wins_and_who_disagrees_does_not_serve_the_port() -> None:
    offers = [offer("b", HTTP, ADMIN, day=2), offer("c", GRPC, day=1), offer("d", HTTP, day=3)]
    assert groups(*offers) == [([80], ["c"]), ([81], ["b"])]
    assert port_conflicts(offers) == (
        PortConflict(
            GRPC, ClusterName("c"), NOW + timedelta(days=1), ((ClusterName("b"), HTTP), (ClusterName("d"), HTTP))
        ),
    )


def test_a_port_of_another_name_is_another_port() -> None:
    renamed = msgspec.structs.replace(HTTP, name="other")
    assert groups(offer("b", HTTP), offer("c", renamed)) == [([80], ["b"])]


def test_of_the_same_age_the_first_name_wins_and_who_does_not_say_is_the_youngest() -> None:
    assert groups(offer("b", HTTP), offer("c", GRPC)) == [([80], ["b"])]
    assert groups(offer("b", HTTP, day=None), offer("c", GRPC)) == [([80], ["c"])]


def test_who_cannot_be_reached_serves_nothing_but_its_word_counts() -> None:
    assert groups(offer("b", HTTP, path=None), offer("c", GRPC, day=1)) == []
    assert groups(offer("b", HTTP, path=None), offer("c", HTTP, day=1)) == [([80], ["c"])]


ports = st.lists(st.sampled_from([HTTP, GRPC, ADMIN]), unique_by=lambda port: port.number).map(
    lambda found: tuple(sorted(found))
)
exports = st.dictionaries(st.sampled_from("bcde"), st.tuples(ports, st.none() | st.integers(0, 3)), min_size=1)


@given(exports, st.sampled_from("bcde"))
def test_every_member_comes_to_the_same_result(
    said: dict[str, tuple[tuple[ServicePort, ...], int | None]], own: str
) -> None:
    offers = [offer(name, *ports, day=day) for name, (ports, day) in sorted(said.items())]
    assert conflicts(as_known_to(own, offers), settings(own), CART) == port_conflicts(offers)
    for port in {port.number for offer in offers for port in offer.ports}:
        serving = [
            one for ports, members in port_groups(offers) for one in members if port in [p.number for p in ports]
        ]
        assert len({next(said for said in one.ports if said.number == port) for one in serving}) == 1


def settings(own: str) -> ClusterSettings:
    return ClusterSettings(ClusterName(own), MeshDomain("mesh.test"), NetworkName(own), region="")


def as_known_to(own: str, offers: list[Offer]) -> Snapshot:
    """Returns the picture of one member: its own export, as it tells it, and what it hears of the others."""
    gateways = (GatewayAddress("192.0.2.1"),)
    of_others = [one for one in offers if one.cluster != own]
    mine = {one.cluster: one for one in offers}.get(ClusterName(own))
    exported = {} if mine is None else {CART: mine}
    return apply(
        EMPTY,
        [
            Replace(Section.SERVICES, {key: Service(key, one.ports) for key, one in exported.items()}),
            Replace(Section.EXPORTS, {key: ServiceExport(key) for key in exported}),
            Replace(Section.PUBLISHED, {key: one.exported_at for key, one in exported.items()}),
            Replace(
                Section.MEMBERS,
                {one.cluster: msgspec.structs.replace(one.reach.member, gateways=gateways) for one in of_others},
            ),
            Replace(
                Section.IMPORTS,
                {
                    (one.cluster, CART): ExportedService(one.cluster, CART, one.ports, (), NOW, one.exported_at)
                    for one in of_others
                },
            ),
        ],
    )
