"""`isthmus clusters`: the members of the mesh as one of them sees them, and what is wrong between them and it."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from difflib import get_close_matches

import click
from rich.console import RenderableType

from deploy.cli.drain_display import drains_table
from deploy.cli.output import ago, output_option, show, table
from deploy.cli.targets import Targets, target_options
from deploy.failures import CommandFailed
from federation.model import Liveness
from federation.reports import ClusterReport

_IMPLIED = ("topology.kubernetes.io/", "isthmus.dev/")  # labels that say again what other columns say


@click.command()
@click.argument("name", metavar="[CLUSTER]", default="")
@target_options
@output_option
def clusters(targets: Targets, output: str, *, name: str) -> None:
    """List the members of the mesh as one of them sees it: where they are, how they are, what they offer.

    With CLUSTER all that is known of one. --cluster says whom to ask.
    """

    async def ask() -> tuple[ClusterReport, ...]:
        async with targets.one() as client:
            return await client.clusters()

    found, now = asyncio.run(ask()), datetime.now(UTC)
    if not name:
        show(found, output, lambda: render_list(found, now))
        return
    named = {one.name: one for one in found}
    if name not in named:
        near = get_close_matches(name, named, n=2)
        raise CommandFailed(
            f"no cluster {name} is known here",
            f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(named)}",
        )
    show(named[name], output, lambda: render_one(named[name], now))


def render_list(found: Sequence[ClusterReport], now: datetime) -> list[RenderableType]:
    """Returns the table of all, and below it what is wrong."""
    labels = {one.name: _labels(one) for one in found}
    is_labelled = any(labels.values())
    is_introducing = any(one.introduced_by for one in found)
    rows = [
        (
            one.name + (" (asked)" if one.is_self else ""),
            one.network,
            "/".join(word for word in (one.cloud, one.region) if word) or "-",
            ",".join(one.zones) or "-",
            *([labels[one.name] or "-"] if is_labelled else []),
            _state(one, now),
            "-" if one.is_self else ago(one.heard, now),
            f"{one.exports} {'out' if one.is_self else 'in'}",
            *([f"by {one.introduced_by}" if one.introduced_by else "-"] if is_introducing else []),
        )
        for one in found
    ]
    columns = ["CLUSTER", "NETWORK", "REGION", "ZONES", *["LABELS"] * is_labelled, "STATE", "HEARD", "EXPORTS"]
    shown: list[RenderableType] = [table([*columns, *["INTRODUCED"] * is_introducing], rows)]
    drains = [drain for one in found for drain in one.drains]
    if drains:
        shown += ["", drains_table(drains, now)]
    shown += _troubles(found)
    if any(one.state is Liveness.STALE and not (one.revoked or one.left) for one in found):
        shown += ["", "A stale member is kept, but its endpoints come last."]
    if any(one.state is Liveness.GONE and not (one.revoked or one.left) for one in found):
        shown += ["", "Nothing is sent to a member that is gone; it is back when it is heard again."]
    return shown


def render_one(one: ClusterReport, now: datetime) -> list[RenderableType]:
    """Returns all that is known of one member."""
    facts = [
        ("state", _state(one, now)),
        ("heard", "it was asked itself" if one.is_self else f"{ago(one.heard, now)} ago" if one.heard else "never"),
        ("heard through", one.via or "-"),
        ("listens to us", "-" if one.listens_since is None else f"since {ago(one.listens_since, now)}"),
        ("network", one.network),
        ("cloud, region", ", ".join(word for word in (one.cloud, one.region) if word) or "-"),
        ("zones", ", ".join(one.zones) or "-"),
        ("gateways", ", ".join(one.gateways) or "none"),
        ("labels", ", ".join(f"{key}={value}" for key, value in sorted(one.labels.items())) or "-"),
        ("exports", f"{one.exports} {'to others' if one.is_self else 'seen here'}"),
        *([("introduced by", one.introduced_by)] if one.introduced_by else []),
    ]
    shown: list[RenderableType] = [table([one.name.upper(), ""], facts)]
    if one.drains:
        shown += ["", drains_table(one.drains, now)]
    return [*shown, *_troubles([one])]


def _troubles(found: Sequence[ClusterReport]) -> list[RenderableType]:
    shown: list[RenderableType] = []
    for column, rows in (
        ("NOT HEARD BECAUSE", [(one.name, one.problem) for one in found if one.problem and not one.revoked]),
        ("REVOKED BY", [(one.name, one.revoked) for one in found if one.revoked]),
        ("REFUSED FROM IT", [(one.name, reason) for one in found for reason in one.rejected]),
        ("IT REFUSES FROM HERE", [(one.name, reason) for one in found for reason in one.refuses]),
    ):
        if rows:
            shown += ["", table(["CLUSTER", column], rows)]
    return shown


def _labels(one: ClusterReport) -> str:
    own = {key: value for key, value in one.labels.items() if not key.startswith(_IMPLIED)}
    return ",".join(f"{key}={value}" for key, value in sorted(own.items()))


def _state(one: ClusterReport, now: datetime) -> str:
    if one.left is not None:
        return f"left {ago(one.left, now)} ago"
    if one.revoked:
        return "revoked"
    state = one.state.value if one.since is None else f"{one.state} for {ago(one.since, now)}"
    whole = [drain.weight for drain in one.drains if not drain.service]
    if whole:
        return f"{state}, " + (f"draining {min(whole)} %" if min(whole) else "drained")
    services = {drain.service for drain in one.drains}
    return f"{state}, {len(services)} service{'s' if len(services) > 1 else ''} drained" if services else state
