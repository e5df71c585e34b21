"""`isthmus revoke`: believe a cluster or a workload no longer, at once and in the whole mesh; or believe it again."""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from rich.console import RenderableType

from deploy.admin_client import AdminClient, ControlRefused, ControlUnreachable
from deploy.cli.output import output_option, show, span, table
from deploy.cli.progress import Progress, progress
from deploy.cli.revocation import (
    MemberAnswer,
    Order,
    RevocationOutcome,
    State,
    Telling,
    by_each,
    by_root,
    near_matches,
)
from deploy.cli.roots import maybe_root_option, open_root, passphrase_option
from deploy.cli.spans import Span
from deploy.cli.survey import ReachedMesh
from deploy.cli.targets import Targets, contexts_options, target_options
from deploy.failures import CommandFailed
from federation.reports import RevocationOrigin, RevocationReport
from trust.bundle import parse_subject
from trust.root import Root


class _ClusterFirst(click.Group):
    """A group where anything that is no command of it is a cluster: `revoke west` is `revoke cluster west`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts the word `cluster` in front."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["cluster", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ClusterFirst, subcommand_metavar="CLUSTER | workload NAMESPACE/ACCOUNT[@CLUSTER] | list")
def revoke() -> None:
    """Believe a cluster or a workload no longer: its calls are denied, its endpoints dropped, its tunnels closed.

    With --root the order is signed: it reaches all members through any one, and one that is away when it is back.
    Without, every control plane that is reached decides for its own cluster.

    Fails while a member that can be reached has a proxy that has not taken it; without --root also when a control plane
    could not be told. `revoke CLUSTER` is short for `revoke cluster CLUSTER`.
    """


def _order_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        output_option,
        contexts_options,
        click.option("--yes", is_flag=True, help="Do not ask, and take a name that nobody knows."),
        click.option("--wait", type=Span(), default="30s", show_default=True, help="How long to wait for all members."),
        click.option("--undo", is_flag=True, help="Believe it again."),
        click.option(
            "--sever",
            is_flag=True,
            help="Also end what is open on inbound listeners; others reconnect. Without it, a workload whose own "
            "control plane does not obey keeps the TCP connections that it has open.",
        ),
        click.option("--reason", default="", metavar="TEXT", help="Why, for whoever looks at it later."),
        passphrase_option,
        maybe_root_option,
    ):
        command = option(command)
    return command


@revoke.command("cluster")
@click.argument("subject", metavar="CLUSTER")
@_order_options
def of_cluster(targets: Targets, output: str, *, subject: str, **how: Any) -> None:
    """Believe nobody of CLUSTER."""
    if "/" in subject:
        raise click.UsageError(f"{subject!r} is no cluster; of a workload: isthmus revoke workload {subject}")
    _carry_out(targets, output, subject=subject, **how)


@revoke.command("workload")
@click.argument("subject", metavar="NAMESPACE/ACCOUNT[@CLUSTER]")
@_order_options
def of_workload(targets: Targets, output: str, *, subject: str, **how: Any) -> None:
    """Believe the workloads of one service account no longer: of CLUSTER, or of every cluster."""
    if "/" not in subject:
        raise click.UsageError(
            f"{subject!r} is no NAMESPACE/ACCOUNT[@CLUSTER]; of a cluster: isthmus revoke cluster {subject}"
        )
    _carry_out(targets, output, subject=subject, **how)


@revoke.command("list")
@maybe_root_option
@passphrase_option
@target_options
@output_option
def list_revoked(targets: Targets, output: str, *, root: Path | None, passphrase_file: Path | None) -> None:
    """List who is believed no longer: by one control plane, or in the newest trust bundle of --root."""
    if root is not None:
        found = tuple(
            RevocationReport(one.subject, RevocationOrigin.ROOT, one.at, one.reason, one.sever)
            for one in open_root(root, passphrase_file).bundle.revoked
        )
    else:

        async def ask() -> tuple[RevocationReport, ...]:
            async with targets.one() as client:
                return await client.revocations()

        found = asyncio.run(ask())
    show(found, output, lambda: _render_list(found))


def _carry_out(
    targets: Targets,
    output: str,
    *,
    subject: str,
    root: Path | None,
    passphrase_file: Path | None,
    reason: str,
    sever: bool,
    undo: bool,
    wait: timedelta,
    yes: bool,
) -> None:
    parse_subject(subject)  # before anybody is asked for a passphrase
    if undo and (sever or reason):
        raise click.UsageError("--undo takes neither --sever nor --reason")
    order = Order(subject=subject, undo=undo, reason=reason, sever=sever)
    opened = None if root is None else open_root(root, passphrase_file)
    mesh = ReachedMesh(targets.names, targets.client)
    if opened is not None and not undo:
        _check_others(order, [member.name for member in opened.members()])
    with progress() as shown:
        if not undo and not yes:
            known = asyncio.run(_known(targets, opened))
            _check_known(order, known)
            _warn(shown, _doubts(order, known))
        if not yes and sys.stdin.isatty():
            verb = "Believe it again" if undo else "Cut it off from the mesh"
            scope = "in the whole mesh" if opened else f"at {len(targets.names)} control planes"
            click.confirm(f"{subject}: {verb}, {scope}?", err=True, abort=True)
        telling = Telling(
            mesh=mesh, wait=wait, clock=lambda: datetime.now(UTC), watch=lambda outcome: _watch(shown, outcome)
        )
        # With --yes nothing is asked before all are told: each question is time for somebody who stole a key.
        outcome = asyncio.run(by_each(order, telling) if opened is None else by_root(order, opened, telling))
        if not undo and yes:
            _warn(shown, _doubts(order, asyncio.run(_known(targets, opened))))
    show(outcome, output, lambda: _render(outcome))
    if not outcome.is_done:
        raise SystemExit(1)


async def _known(targets: Targets, root: Root | None) -> tuple[frozenset[str], frozenset[str]]:
    """Returns the clusters that anybody here knows, and the accounts (`namespace/account@cluster`) of their proxies.

    Only proxies of clusters that are reached are known, so an account may exist all the same.
    """
    clusters = {str(member.name) for member in root.members()} if root else set()
    accounts: set[str] = set()

    async def ask(client: AdminClient) -> None:
        with contextlib.suppress(ControlUnreachable, ControlRefused):
            async with client:
                clusters.update(str(member.name) for member in await client.clusters())
                for proxy in await client.all_proxies():
                    host, _, path = proxy.identity.removeprefix("spiffe://").partition("/")
                    match path.split("/"):
                        case ["ns", namespace, "sa", account]:
                            accounts.add(f"{namespace}/{account}@{host.partition('.')[0]}")

    async with asyncio.TaskGroup() as group:
        for client in targets.all().values():
            group.create_task(ask(client))
    return frozenset(clusters), frozenset(accounts)


def _check_known(order: Order, known: tuple[frozenset[str], frozenset[str]]) -> None:
    """Refuses the only cluster, and one that nobody here knows, which is a slip of the pen; raises CommandFailed."""
    clusters, _ = known
    named, _, _ = parse_subject(order.subject)
    _check_others(order, clusters)
    if named and named not in clusters:
        raise CommandFailed(_doubts(order, known)[0], "--yes revokes it all the same")


def _check_others(order: Order, clusters: Collection[str]) -> None:
    if order.cluster and set(clusters) == {order.cluster}:
        raise CommandFailed(f"{order.cluster} is the only member: there is nobody who could believe it no longer")


def _warn(shown: Progress, doubts: Collection[str]) -> None:
    for doubt in doubts:
        shown.say(f"warning: {doubt}")


def _doubts(order: Order, known: tuple[frozenset[str], frozenset[str]]) -> list[str]:
    """Returns what may be wrong with the names in an order; an account may have no proxy now, and exist."""
    clusters, accounts = known
    named, _, account = parse_subject(order.subject)
    doubts = []
    if named and named not in clusters:
        near = near_matches(named, clusters)
        meant = f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(sorted(clusters)) or 'none'}"
        doubts.append(f"nobody here knows a cluster {named}: {meant}")
    if account and not any(one == order.subject or one.startswith(f"{order.subject}@") for one in accounts):
        short = accounts if named else {one.partition("@")[0] for one in accounts}
        near = near_matches(order.subject, short)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        doubts.append(f"no proxy of {order.subject} is connected to a control plane that is reached here{meant}")
    return doubts


def _watch(shown: Progress, outcome: RevocationOutcome) -> None:
    late = [answer for answer in outcome.members if answer.state is State.WAITING]
    if late:
        verb = "is believed again" if outcome.is_undone else "is revoked"
        shown.wait_for(f"Waits until {outcome.subject} {verb} everywhere.", *(_late(answer) for answer in late))


def _late(answer: MemberAnswer) -> str:
    who = ", ".join(one.node for one in answer.waiting)
    return f"{answer.cluster}: {answer.enforcing}/{answer.proxies} proxies; waits for {who}"


def _render(outcome: RevocationOutcome) -> list[RenderableType]:
    rows = [
        (
            one.cluster,
            one.state.replace("-", " "),
            "-" if one.since is None or one.state is not State.IN_FORCE else f"{one.since:%H:%M:%S} UTC",
            "-" if one.seconds is None else f"{one.seconds:.1f} s",
            f"{one.enforcing}/{one.proxies}" if one.state is not State.NOT_REACHED else "-",
            "; ".join(f"{proxy.node} {proxy.reason}" for proxy in one.waiting) or one.reason or "-",
        )
        for one in outcome.members
    ]
    what = "is believed again" if outcome.is_undone else "is revoked"
    if not outcome.is_done:
        what = f"{what}, but not everywhere"
    by = "by the root" if outcome.signed else "by each member for itself"
    shown: list[RenderableType] = [
        f"{outcome.subject} {what}, {by}.",
        "",
        table(["MEMBER", "STATE", "SINCE", "TOOK", "PROXIES", "NOT YET"], rows),
    ]
    away = [one.cluster for one in outcome.members if one.state is State.NOT_REACHED]
    if away and outcome.signed:
        shown += ["", f"Not reached: {', '.join(away)}. They hear of it from the others when they are back."]
    elif away:
        shown += ["", f"Not told: {', '.join(away)}. Run it again when they are reached, or sign it with --root DIR."]
    return shown


def _render_list(found: Collection[RevocationReport]) -> RenderableType:
    now = datetime.now(UTC)
    rows = [
        (
            one.subject,
            one.origin.value,
            f"{one.at:%Y-%m-%d %H:%M:%S} UTC",
            span(now - one.at),
            "yes" if one.sever else "no",
            one.reason or "-",
        )
        for one in found
    ]
    return table(["REVOKED", "BY", "SINCE", "AGE", "SEVER", "REASON"], rows)
