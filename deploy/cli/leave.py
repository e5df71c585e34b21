"""`isthmus leave`: a cluster leaves the mesh, or the others forget one that is lost."""

import asyncio
import sys
from collections.abc import Collection, Mapping
from datetime import timedelta
from difflib import get_close_matches
from enum import StrEnum

import click
import msgspec
from rich.console import RenderableType

from deploy.admin_client import AdminClient
from deploy.cli.output import output_option, show, table
from deploy.cli.progress import Progress, progress
from deploy.cli.spans import Span
from deploy.cli.survey import Silent, ask_each, ask_one
from deploy.cli.targets import Targets, contexts_options
from deploy.failures import CommandFailed
from federation.reports import ClusterReport

_Known = Mapping[str, tuple[str, tuple[ClusterReport, ...]] | Silent]

_POLL = 0.3  # seconds between two looks at the others


class Knowledge(StrEnum):
    """What a member knows of the departure of another."""

    HEARD = "heard"
    TOLD = "told to forget it"
    WAITING = "has not heard of it"
    REFUSED = "refuses"
    NOT_REACHED = "not reached"


class Witness(msgspec.Struct, frozen=True):
    """One of the other members, and what it knows; `reason` says why it is not told."""

    cluster: str
    state: Knowledge
    reason: str = ""


class LeaveOutcome(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How a departure went: `by_itself` when the cluster's own control plane said farewell, else `reason` says why not.

    `is_done` when all members know of it.
    """

    cluster: str
    is_done: bool
    by_itself: bool
    reason: str = ""
    members: tuple[Witness, ...] = ()


@click.command()
@click.argument("member", metavar="CLUSTER")
@click.option(
    "--force", is_flag=True, help="Its control plane is gone: have the others forget it, without asking itself."
)
@click.option(
    "--wait", type=Span(), default="10s", show_default=True, help="How long the others may take to hear of it."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@contexts_options
@output_option
def leave(targets: Targets, output: str, *, member: str, force: bool, wait: timedelta, yes: bool) -> None:
    """Have CLUSTER leave the mesh: its endpoints go at once in all members, and its own calls stay in it.

    Its control plane says farewell to the others; those that have not heard it within --wait are told to forget it.
    With --force that is all that is done when it does not answer: then it is forgotten wherever that is reached.

    Drain it first: `leave` does not wait for what is open. Its certificate stays valid until it is revoked. It is a
    member again when its control plane joins, or, after --force, when it comes back.
    """
    with progress() as shown:
        known = asyncio.run(_known(targets))
        _check(member, known, force=force)
        if not yes and sys.stdin.isatty():
            click.confirm(f"{member}: leave the mesh, at once?", err=True, abort=True)
        outcome = asyncio.run(_leave(targets, member, known=known, force=force, wait=wait, shown=shown))
    show(outcome, output, lambda: _render(outcome))
    if not outcome.is_done:
        raise SystemExit(1)


async def _known(targets: Targets) -> _Known:
    """Returns by name what each control plane that is reached knows, after the name of its own cluster."""

    async def ask(client: AdminClient) -> tuple[str, tuple[ClusterReport, ...]]:
        found = await client.clusters()
        return next((one.name for one in found if one.is_self), ""), found

    return await ask_each(targets.names, targets.client, ask)


def _check(cluster: str, known: _Known, *, force: bool) -> None:
    """Refuses a name that nobody knows, and a control plane that is gone without --force; raises CommandFailed."""
    reached = [answer for answer in known.values() if not isinstance(answer, Silent)]
    if not reached:
        reasons = "; ".join(one.reason for one in known.values() if isinstance(one, Silent))
        raise CommandFailed(f"no control plane was reached: {reasons}", "name those of the members with --contexts")
    names = {one.name for _, found in reached for one in found}
    if cluster not in names:
        near = get_close_matches(cluster, sorted(names), n=2)
        meant = f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(sorted(names))}"
        raise CommandFailed(f"nobody here knows a cluster {cluster}", meant)
    if not force and cluster not in {own for own, _ in reached}:
        silent = known.get(cluster)
        reason = silent.reason if isinstance(silent, Silent) else "no control plane of it is named here"
        raise CommandFailed(
            f"{cluster} cannot be asked to leave: {reason}", "if it is gone for good, --force has the others forget it"
        )


async def _leave(
    targets: Targets, cluster: str, *, known: _Known, force: bool, wait: timedelta, shown: Progress
) -> LeaveOutcome:
    # By the cluster that answered, not by the name under which it was asked: behind --admin there is none.
    reached = {answer[0]: name for name, answer in known.items() if not isinstance(answer, Silent)}
    by_itself, reason = False, "its control plane was not reached"
    if cluster in reached:
        answer = await ask_one(reached[cluster], targets.client, lambda client: client.leave())
        by_itself, reason = not isinstance(answer, Silent), answer.reason if isinstance(answer, Silent) else ""
        if not by_itself and not force:
            raise CommandFailed(f"{cluster} does not leave: {reason}", "--force has the others forget it")
    left = {one.name for answer in known.values() if not isinstance(answer, Silent) for one in answer[1] if one.left}
    others = {own: name for own, name in reached.items() if own != cluster and own not in left}
    late: Collection[str] = others
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait.total_seconds()
    while by_itself and (late := await _unaware(targets, cluster, others)) and loop.time() < deadline:
        shown.wait_for(f"Waits until all have heard that {cluster} leaves.", *sorted(late))
        await asyncio.sleep(_POLL)
    told = await ask_each((others[one] for one in late), targets.client, lambda client: client.forget(cluster))
    members = []
    for own, name in others.items():
        no = told.get(name)
        if isinstance(no, Silent):
            members.append(Witness(own, Knowledge.NOT_REACHED if no.is_away else Knowledge.REFUSED, no.reason))
        else:
            members.append(Witness(own, Knowledge.TOLD if own in late else Knowledge.HEARD))
    members += _away(known, reached.keys() | left | {cluster})
    return LeaveOutcome(
        cluster=cluster,
        is_done=all(one.state in (Knowledge.HEARD, Knowledge.TOLD) for one in members),
        by_itself=by_itself,
        reason=reason,
        members=tuple(sorted(members, key=lambda one: one.cluster)),
    )


async def _unaware(targets: Targets, cluster: str, others: Mapping[str, str]) -> Collection[str]:
    """Returns those of the others for which the cluster is still a member."""

    async def ask(client: AdminClient) -> bool:
        return any(one.name == cluster and one.left is None for one in await client.clusters())

    answers = await ask_each(others.values(), targets.client, ask)
    return [own for own, name in others.items() if answers[name] is not False]


def _away(known: _Known, without: Collection[str]) -> list[Witness]:
    names = {
        one.name for answer in known.values() if not isinstance(answer, Silent) for one in answer[1] if not one.revoked
    }
    away = []
    for name in sorted(names - set(without)):
        silent = known.get(name)
        reason = silent.reason if isinstance(silent, Silent) else "no control plane of it is named here"
        away.append(Witness(name, Knowledge.NOT_REACHED, reason))
    return away


def _render(outcome: LeaveOutcome) -> list[RenderableType]:
    who = outcome.cluster
    rows = [(one.cluster, one.state.value, one.reason or "-") for one in outcome.members]
    shown: list[RenderableType] = [table(["MEMBER", "WHAT IT KNOWS", "WHY NOT"], rows), ""] if rows else []
    if outcome.by_itself:
        shown.append(f"{who} has left the mesh." if outcome.is_done else f"{who} leaves, but not all know of it.")
    else:
        shown.append(f"{who} was not asked itself ({outcome.reason}): if it comes back, it is a member again.")
    away = [one.cluster for one in outcome.members if one.state is Knowledge.NOT_REACHED]
    if away:
        again = f"isthmus leave {who} --force" if not outcome.by_itself else f"isthmus leave {who}"
        shown.append(f"Not reached: {', '.join(away)}. Run it again when they are: {again}")
    shown.append(f"Its certificate stays valid until it is revoked: isthmus revoke {who} --root DIR")
    return shown
