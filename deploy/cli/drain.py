"""`isthmus drain` and `undrain`: calls leave a member, step by step, until it carries nothing; and come back."""

import asyncio
import shlex
from datetime import UTC, datetime, timedelta

import click

from deploy.cli import drain_driver
from deploy.cli.drain_display import line_of, render_drain, render_undrain
from deploy.cli.drain_driver import Order
from deploy.cli.drain_mesh import DrainMesh
from deploy.cli.drain_outcome import Reached
from deploy.cli.drain_run import Tools
from deploy.cli.draining import AbortRule, Scope, parse_abort_rule
from deploy.cli.output import output_option, show
from deploy.cli.progress import Progress, progress
from deploy.cli.spans import Span
from deploy.cli.targets import Targets, contexts_options


class _Rule(click.ParamType[AbortRule]):
    """When a drain is to be undone."""

    name = "rule"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> AbortRule:
        """Parses `error-rate>1%`; fails as wrong usage."""
        try:
            return parse_abort_rule(str(value))
        except ValueError as error:
            return self.fail(str(error), param, ctx)


class _ServiceName(click.ParamType[str]):
    """A service."""

    name = "service"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Checks that it is NAMESPACE/NAME; fails as wrong usage."""
        match str(value).split("/"):
            case [""]:
                return ""  # the default: all services
            case [namespace, name] if namespace and name:
                return str(value)
            case _:
                return self.fail(f"{value!r} is no NAMESPACE/NAME, such as shop/cart", param, ctx)


_service_option = click.option(
    "--service", type=_ServiceName(), default="", metavar="NAMESPACE/NAME", help="Only the calls to this service."
)


@click.command()
@click.argument("member", metavar="CLUSTER")
@_service_option
@click.option("--over", type=Span(), default="5m", show_default=True, help="Length of the ramp; 0s: at once.")
@click.option("--grace", type=Span(), default="30s", show_default=True, help="What open streams get at weight 0.")
@click.option(
    "--abort-on",
    type=_Rule(),
    metavar="'error-rate>1%'",
    help="Restore the weight when more of the calls that others answer instead fail.",
)
@click.option("--clients", is_flag=True, help="Also the calls that the workloads of CLUSTER make.")
@click.option("--sever", is_flag=True, help="Cut what is open after --grace.")
@click.option(
    "--force", is_flag=True, help="Accept services that stay, and callers that cannot be counted: they are named."
)
@contexts_options
@output_option
def drain(
    targets: Targets,
    output: str,
    *,
    member: str,
    service: str,
    over: timedelta,
    grace: timedelta,
    abort_on: AbortRule | None,
    clients: bool,
    sever: bool,
    force: bool,
) -> None:
    """Have the calls of all members leave CLUSTER, until it carries nothing.

    Its weight falls in up to ten steps; requests, streams and TCP connections that are open go on, and new ones go to
    the other members. A service that nobody else offers stays, and is named. Its own workloads go on calling it.

    CLUSTER is told first, and tells the others. When its control plane is gone, each that is reached is told alone.

    Ends with 0 only when the counters of all callers show that CLUSTER carries nothing: name the control planes of all
    members. Interrupted, it leaves the weight as it is; the same command goes on from there, `undrain` restores it.
    """
    scope = Scope(cluster=member, service=service, clients=clients)
    order = Order(scope=scope, over=over, grace=grace, abort_on=abort_on, sever=sever, force=force)
    undo = _undo(scope)
    with progress() as shown:
        weights: list[Reached] = []
        try:
            outcome = asyncio.run(drain_driver.drain(order, _tools(targets, shown, weights)))
        except KeyboardInterrupt:
            shown.pause()
            weight = f"keeps weight {weights[-1].weight} %" if weights else "keeps the weight that it has"
            shown.say(f"Interrupted: {scope} {weight}. To go on: the same command. To undo it: {undo}.")
            raise
    show(outcome, output, lambda: render_drain(outcome, undo))
    if not outcome.is_done:
        raise SystemExit(1)


@click.command()
@click.argument("member", metavar="CLUSTER")
@_service_option
@click.option("--over", type=Span(), default="0s", show_default=True, help="Length of the ramp; 0s: at once.")
@contexts_options
@output_option
def undrain(targets: Targets, output: str, *, member: str, service: str, over: timedelta) -> None:
    """Have the calls come back to CLUSTER: restores its weight in all members.

    Without --service it ends the drain of all services; drains of single services stay, and are named. Fails while a
    member that knows of the drain has not restored the weight, or could not be asked.
    """
    scope = Scope(cluster=member, service=service)
    with progress() as shown:
        try:
            outcome = asyncio.run(drain_driver.undrain(scope, over, _tools(targets, shown, [])))
        except KeyboardInterrupt:
            shown.pause()
            shown.say(f"Interrupted: {scope} keeps the weight that it has. To go on: {_undo(scope)}.")
            raise
    show(outcome, output, lambda: render_undrain(outcome))
    if not outcome.is_done:
        raise SystemExit(1)


def _undo(scope: Scope) -> str:
    return shlex.join(["isthmus", "undrain", scope.cluster, *(["--service", scope.service] if scope.service else [])])


def _tools(targets: Targets, shown: Progress, weights: list[Reached]) -> Tools:
    def watch(what: str, now: Reached) -> None:
        if not weights or weights[-1].weight != now.weight or shown.is_moving:
            shown.wait_for(f"{line_of(now)}; {what}" if shown.is_moving else line_of(now))
        weights[:] = [now]

    return Tools(
        mesh=DrainMesh(targets.names, targets.client),
        clock=lambda: datetime.now(UTC),
        tell=shown.say,
        watch=watch,
    )
