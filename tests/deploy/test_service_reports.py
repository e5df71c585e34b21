"""What is said of services: who exports them since when, who sees them, what their exports lack."""

from datetime import UTC, datetime, timedelta

from deploy.control.reports import cluster_reports
from deploy.control.service_reports import service_reports
from federation.model import (
    ClusterSettings,
    Departure,
    ExportedService,
    MemberCluster,
    MemberSelector,
    NetworkName,
    Protocol,
    Service,
    ServiceExport,
    ServiceKey,
    ServicePolicy,
    ServicePort,
    WhenStale,
)
from federation.peering.offer import ListenerStatus
from federation.reports import ConditionReport, DrainReport, ServiceReport
from federation.snapshot import EMPTY, Change, Section, apply
from trust.spiffe import ClusterName, MeshDomain, Namespace

EAST, WEST, NORTH = ClusterName("east"), ClusterName("west"), ClusterName("north")
SETTINGS = ClusterSettings(EAST, MeshDomain("mesh.test"), NetworkName("east"), "eu")
CART = ServiceKey(Namespace("shop"), "cart")
THEN = datetime(2026, 1, 1, tzinfo=UTC)
HTTP, GRPC = ServicePort(80, Protocol.HTTP), ServicePort(80, Protocol.GRPC)


def member(name: ClusterName, tier: str) -> Change:
    value = MemberCluster(name, NetworkName(name), "us", (), labels=(("tier", tier),))
    return Change(Section.MEMBERS, name, value)


MEMBERS = (member(WEST, "gold"), member(NORTH, "tin"))
SERVICE = Change(Section.SERVICES, CART, Service(CART, (HTTP,)))


def exported(*export_to: MemberSelector, created: datetime | None = THEN) -> Change:
    return Change(Section.EXPORTS, CART, ServiceExport(CART, export_to, created))


def imported(port: ServicePort, *, since: datetime) -> Change:
    value = ExportedService(WEST, CART, (port,), (), THEN, since)
    return Change(Section.IMPORTS, (WEST, CART), value)


def report(*changes: Change, why_not: str = "") -> ServiceReport:
    picture = apply(EMPTY, [*MEMBERS, *changes])
    (found,) = service_reports(picture, SETTINGS, {CART: why_not} if why_not else {})
    return found


def conditions(found: ServiceReport) -> dict[str, tuple[str, str]]:
    return {one.type: (one.status, one.reason) for one in found.conditions}


def test_an_export_is_shown_to_all_or_to_those_that_are_chosen() -> None:
    assert report(SERVICE, exported()).visible_to == (NORTH, WEST)
    assert report(SERVICE, exported(MemberSelector("north"))).visible_to == (NORTH,)
    assert report(SERVICE, exported(MemberSelector(label="tier", value="gold"))).visible_to == (WEST,)
    assert report(SERVICE).visible_to == ()


def test_an_export_in_order_is_valid_ready_and_without_conflict() -> None:
    found = report(SERVICE, exported(), imported(HTTP, since=THEN))
    assert conditions(found) == {
        "Valid": ("True", "Valid"),
        "Ready": ("True", "Exported"),
        "Conflict": ("False", "NoConflicts"),
    }
    assert [(one.cluster, one.since, one.ports) for one in found.exporters] == [
        (EAST, THEN, ("80/http",)),
        (WEST, THEN, ("80/http",)),
    ]


def test_a_conflict_is_told_to_winners_and_losers() -> None:
    for since in (THEN - timedelta(days=1), THEN + timedelta(days=1)):
        found = report(SERVICE, exported(), imported(GRPC, since=since))
        assert conditions(found)["Conflict"] == ("True", "PortConflict")
        winner = "west" if since < THEN else "east"
        assert f"as {winner}, the oldest export, says" in found.conditions[-1].message


def test_an_export_without_a_service_is_not_valid() -> None:
    found = report(exported())
    assert conditions(found) == {"Valid": ("False", "NoService"), "Ready": ("False", "Pending")}
    assert not found.is_exported


def test_an_export_that_peers_would_refuse_is_not_ready() -> None:
    found = report(SERVICE, exported(), why_not="it is too large")
    assert ConditionReport("Ready", "False", "Failed", "it is too large") in found.conditions


def test_what_callers_want_is_said_when_it_is_not_the_default() -> None:
    def policy(value: ServicePolicy) -> tuple[str, ...]:
        return report(SERVICE, Change(Section.POLICIES, CART, value)).policy

    assert policy(ServicePolicy()) == ()
    assert policy(ServicePolicy(WhenStale.DROP, timedelta(seconds=30))) == ("drop after 30s",)
    weights = ServicePolicy(WhenStale.PREFER_LOCAL, weights=((EAST, 90), (WEST, 10)))
    assert policy(weights) == ("prefer local when stale", "east=90, west=10")


def test_a_member_is_shown_with_its_labels_and_what_it_refuses() -> None:
    listener = ListenerStatus(WEST, THEN, (("Export shop/cart", "too many"),))
    departure = Change(Section.DEPARTURES, NORTH, Departure(NORTH, THEN))
    drain = DrainReport("west", "", 20, clients=False, sever=False, since=THEN, asked_of="west")
    picture = apply(EMPTY, [*MEMBERS, departure])
    found = {
        one.name: one for one in cluster_reports(picture, SETTINGS, peers=(), listeners=(listener,), drains=(drain,))
    }
    assert found["west"].labels["tier"] == "gold"
    assert found["west"].refuses == ("Export shop/cart: too many",)
    assert found["west"].listens_since == THEN
    assert found["west"].drains == (drain,)
    assert found["north"].left == THEN
    assert found["east"].labels["topology.kubernetes.io/region"] == "eu"
