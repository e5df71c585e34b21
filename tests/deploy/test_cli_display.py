"""What `isthmus clusters`, `services` and `status` show of members, exports, drains and troubles, in 100 columns."""

from collections.abc import Sequence
from datetime import timedelta

import msgspec
from rich.console import Console, RenderableType

from deploy.cli import clusters, services
from deploy.cli.drain_display import drains_table
from federation.model import Liveness
from federation.reports import (
    ClusterReport,
    ConditionReport,
    DrainReport,
    ExporterReport,
    PlaceReport,
    ServiceReport,
)
from tests.support.members import NOW
from tests.support.model_callers import cluster_report, service_report

WIDTH = 100
AGO = NOW - timedelta(minutes=10)
DRAIN = DrainReport(
    cluster="west", service="", weight=40, clients=False, sever=False, since=AGO, asked_of="west", kept=("shop/redis",)
)


def shown(rendered: RenderableType | Sequence[RenderableType]) -> str:
    console = Console(width=10_000, highlight=False)
    with console.capture() as capture:
        for part in rendered if isinstance(rendered, list) else [rendered]:
            console.print(part)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert max(map(len, lines)) <= WIDTH, lines
    return "\n".join(lines)


def member(name: str, **more: object) -> ClusterReport:
    return msgspec.structs.replace(cluster_report(name), network="one-network", cloud="aws", region="eu-1", **more)


def test_a_member_is_live_stale_gone_left_drained_or_revoked() -> None:
    of_cart = msgspec.structs.replace(DRAIN, service="shop/cart")
    text = shown(
        clusters.render_list(
            [
                member("a", since=AGO),
                member("b", since=AGO, state=Liveness.STALE, problem="connection refused"),
                member("c", since=AGO, state=Liveness.GONE),
                member("d", left=AGO),
                member("e", since=AGO, drains=(DRAIN,)),
                member("f", since=AGO, drains=(msgspec.structs.replace(DRAIN, weight=0),)),
                member("g", since=AGO, drains=(of_cart,)),
                member("h", revoked="root: key stolen"),
            ],
            NOW,
        )
    )
    for words in (
        *("live for 10m", "stale for 10m", "gone for 10m", "left 10m ago", "draining 40 %", "drained"),
        *("1 service drained", "revoked", "connection refused", "root: key stolen", "endpoints come last"),
        *("shop/redis", "everybody's"),
    ):
        assert words in text, text


def test_refusals_of_both_sides_and_labels_are_shown() -> None:
    report = member(
        "west",
        rejected=("shop/cart: too large",),
        refuses=("shop/web: no such port",),
        labels={"tier": "gold", "isthmus.dev/network": "one-network"},
    )
    text = shown(clusters.render_list([report], NOW))
    assert "REFUSED FROM IT" in text
    assert "IT REFUSES FROM HERE" in text
    assert "tier=gold" in text
    assert "isthmus.dev/network" not in text, "the network has a column of its own"
    assert "isthmus.dev/network=one-network" in shown(clusters.render_one(report, NOW))


def service(name: str, **more: object) -> ServiceReport:
    return msgspec.structs.replace(service_report(name, "east", "west"), **more)


def test_services_say_who_exports_since_when_and_who_sees_them() -> None:
    exporters = tuple(ExporterReport(name, AGO, ("80/http",), 2, Liveness.LIVE) for name in ("east", "west"))
    conflict = ConditionReport("Conflict", "True", "PortConflict", "port 80 is grpc in west, east is older")
    ready = ConditionReport("Ready", "True", "Exported")
    text = shown(
        services.render_list(
            [
                service(
                    "shop/cart",
                    exporters=exporters,
                    visible_to=("south", "west"),
                    conditions=(ready, conflict),
                    policy=("east=90, west=10",),
                ),
                service("shop/secret", visible_to=()),
                service("shop/here", is_exported=False, places=()),
            ],
            NOW,
        )
    )
    for words in ("east 10m, west 10m", "south, west", "east=90, west=10", "Conflict=True", "nobody", "east 2, west 2"):
        assert words in text, text
    assert "Ready=True" not in text, "what is as it should be is shown of one service only"


def test_a_service_of_many_members_names_a_few() -> None:
    names = [f"cluster-{number}" for number in range(50)]
    places = tuple(PlaceReport(name, "r", "a", 2) for name in names)
    exporters = tuple(ExporterReport(name, AGO, ("80/http",), 2, Liveness.LIVE) for name in names)
    more = services.render_list([service("shop/cart", places=places, exporters=exporters, visible_to=names)], NOW)
    console = Console(width=WIDTH, highlight=False)
    with console.capture() as capture:
        console.print(more[0])
    assert "+47" in capture.get()


def test_one_service_is_shown_whole() -> None:
    exporters = (ExporterReport("east", AGO, ("80/http",), 2, Liveness.STALE),)
    conditions = (ConditionReport("Ready", "True", "Exported"),)
    text = shown(services.render_one(service("shop/cart", exporters=exporters, conditions=conditions), NOW))
    for words in ("local and exported", "stale", "Ready=True", "Exported", "Shown to nobody"):
        assert words in text, text


def test_a_drain_that_several_report_is_one_line() -> None:
    alone = msgspec.structs.replace(DRAIN, asked_of="east", kept=())
    text = shown(drains_table([DRAIN, msgspec.structs.replace(DRAIN, kept=()), alone], NOW))
    assert len(text.splitlines()) == 3
    assert "east's" in text
