"""`isthmus services`: who exports what since when, who sees it, where its endpoints are, and what is wrong with it."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from itertools import groupby

import click
from rich.console import RenderableType

from deploy.cli.output import ago, output_option, show, table
from deploy.cli.targets import Targets, target_options
from deploy.failures import CommandFailed
from federation.reports import ConditionReport, ServiceReport

_FEW = 3  # members that a cell of the list names: tables stay within 100 columns


@click.command()
@click.argument("service", metavar="[NAMESPACE/NAME]", default="")
@click.option("-n", "--namespace", default="", help="Only this namespace.")
@target_options
@output_option
def services(targets: Targets, output: str, *, service: str, namespace: str) -> None:
    """List the services that a cluster knows: who exports them and since when, who sees them, their ready endpoints.

    With NAMESPACE/NAME all that is known of one: zones, conditions of its export, policy of its callers.
    """

    async def ask() -> tuple[ServiceReport, ...]:
        async with targets.one() as client:
            return await client.services()

    found = tuple(one for one in asyncio.run(ask()) if namespace in ("", one.namespace))
    now = datetime.now(UTC)
    if not service:
        show(found, output, lambda: render_list(found, now))
        return
    named = {_name(one): one for one in found}
    if service not in named:
        near = get_close_matches(service, named, n=2)
        meant = f"did you mean {' or '.join(near)}?" if near else "`isthmus services` lists all"
        raise CommandFailed(f"no service {service} is known here", meant)
    show(named[service], output, lambda: render_one(named[service], now))


def render_list(found: Sequence[ServiceReport], now: datetime) -> list[RenderableType]:
    """Returns the table of all, and what is wrong with some."""
    rows = [
        (
            _name(one),
            _few(one.ports) or "-",
            _few([f"{each.cluster} {ago(each.since, now)}" for each in one.exporters]) if one.exporters else "local",
            _few(one.visible_to) or "nobody" if one.is_exported else "-",
            _few([f"{cluster} {count}" for cluster, count in _endpoints(one)]) or "none",
            "; ".join(one.policy) or "-",
        )
        for one in found
    ]
    shown: list[RenderableType] = [
        table(["SERVICE", "PORTS", "EXPORTED BY, SINCE", "SHOWN TO", "READY", "POLICY"], rows)
    ]
    wrong = [(_name(one), *_condition(bad)) for one in found for bad in one.conditions if _is_bad(bad)]
    if wrong:
        shown += ["", table(["SERVICE", "CONDITION", "REASON", "WHAT IS WRONG"], wrong)]
    return shown


def render_one(service: ServiceReport, now: datetime) -> list[RenderableType]:
    """Returns all that is known of one service."""
    scope = " and ".join(["local"] * service.is_local + ["exported"] * service.is_exported) or "imported"
    shown: list[RenderableType] = [f"{_name(service)}: {scope}, ports {', '.join(service.ports) or 'none'}."]
    if service.is_exported:
        shown.append(f"Shown to {', '.join(service.visible_to) or 'nobody'}.")
    if service.policy:
        shown.append(f"Policy of its callers here: {'; '.join(service.policy)}.")
    if service.exporters:
        exporters = [
            (
                one.cluster,
                "-" if one.since is None else f"{one.since:%Y-%m-%d %H:%M:%S}",
                ago(one.since, now),
                ", ".join(one.ports),
                str(one.endpoints),
                one.state.value,
            )
            for one in service.exporters
        ]
        shown += ["", table(["EXPORTED BY", "SINCE (UTC)", "AGE", "PORTS", "READY", "STATE"], exporters)]
    if service.places:
        places = [(one.cluster, one.region or "-", one.zone or "-", str(one.endpoints)) for one in service.places]
        shown += ["", table(["CLUSTER", "REGION", "ZONE", "READY"], places)]
    if service.conditions:
        conditions = [_condition(one) for one in service.conditions]
        shown += ["", table(["CONDITION", "REASON", "MESSAGE"], conditions)]
    return shown


def _name(service: ServiceReport) -> str:
    return f"{service.namespace}/{service.name}"


def _endpoints(service: ServiceReport) -> list[tuple[str, int]]:
    by_cluster = groupby(sorted(service.places, key=lambda place: place.cluster), key=lambda place: place.cluster)
    return [(cluster, sum(place.endpoints for place in places)) for cluster, places in by_cluster]


def _condition(one: ConditionReport) -> tuple[str, str, str]:
    return f"{one.type}={one.status}", one.reason, one.message or "-"


def _is_bad(one: ConditionReport) -> bool:
    """Says whether a condition tells of trouble: of Conflict it is True, of all others it is not True."""
    return (one.status == "True") is (one.type == "Conflict")


def _few(words: Sequence[str]) -> str:
    more = [f"+{len(words) - _FEW}"] if len(words) > _FEW else []
    return ", ".join([*words[:_FEW], *more])
