"""`isthmus trust rotate`: a new authority for a cluster, or a new root, stage by stage and only on proof."""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from rich.console import RenderableType

from deploy.cli import rotation
from deploy.cli.output import output_option, show
from deploy.cli.progress import Progress, progress
from deploy.cli.roots import open_root, passphrase_option, root_option
from deploy.cli.rotation import Tools
from deploy.cli.rotation_stages import RotationReport, Stage
from deploy.cli.spans import Span
from deploy.cli.survey import ReachedMesh
from deploy.cli.targets import Targets, contexts_options
from deploy.cli.trust_display import holdups_table, silent_table
from trust.rotation import Holdup
from trust.spiffe import ClusterName


@click.group()
def rotate() -> None:
    """Replace a CA key while traffic flows: the root's, or that of a cluster.

    Each stage waits for the proof that every proxy is ready for the next. When a stage is not proven within --wait, or
    the command is interrupted, nothing is lost: the same command goes on from there.
    """


def _rotation_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        output_option,
        contexts_options,
        click.option("--yes", is_flag=True, help="Do not ask before a stage is forced."),
        click.option(
            "--force",
            is_flag=True,
            help="Leave the first stage that is not proven within --wait without its proof: it breaks calls.",
        ),
        click.option(
            "--wait", type=Span(), default="10m", show_default=True, help="How long each stage may wait for its proof."
        ),
        passphrase_option,
        root_option,
    ):
        command = option(command)
    return command


@rotate.command("root")
@_rotation_options
def rotate_root(targets: Targets, output: str, *, root: Path, passphrase_file: Path | None, **how: Any) -> None:
    """Replace the root of the mesh, or go on with that.

    A new root is announced; when every proxy of every member trusts it, it signs, and the members renew their
    authorities; when no proxy holds a certificate below the old root, that is trusted no longer, and at last its key is
    destroyed. A member that was away in the last rotation is handed what it missed, before a new one begins.
    """
    _run(targets, output, root, passphrase_file, rotate=rotation.rotate_root, again="isthmus trust rotate root", **how)


@rotate.command("intermediate")
@click.argument("member", metavar="CLUSTER")
@_rotation_options
def rotate_intermediate(
    targets: Targets, output: str, *, member: str, root: Path, passphrase_file: Path | None, **how: Any
) -> None:
    """Replace the CA key of CLUSTER, or go on with that.

    The cluster makes a new key, and the root signs it. When every proxy holds a certificate of it, the cluster destroys
    the old key: it does so by itself, and this command waits for it. The next time, it begins another rotation.
    """
    again = f"isthmus trust rotate intermediate {member}"

    async def of_cluster(tools: Tools) -> RotationReport:
        return await rotation.rotate_intermediate(tools, ClusterName(member))

    _run(targets, output, root, passphrase_file, rotate=of_cluster, again=again, **how)


def _run(
    targets: Targets,
    output: str,
    directory: Path,
    passphrase_file: Path | None,
    *,
    rotate: Callable[[Tools], Coroutine[Any, Any, RotationReport]],
    again: str,
    wait: timedelta,
    force: bool,
    yes: bool,
) -> None:
    root = open_root(directory, passphrase_file)
    with progress() as shown:
        tools = Tools(
            root=root,
            mesh=ReachedMesh(targets.names, targets.client),
            wait=wait,
            clock=lambda: datetime.now(UTC),
            tell=shown.say,
            watch=lambda stage, holdups: _watch(shown, stage, holdups),
            force=(lambda breaks, holdups: _forced(shown, breaks, holdups, yes=yes)) if force else None,
        )
        try:
            report = asyncio.run(rotate(tools))
        except KeyboardInterrupt:
            shown.pause()
            shown.say(f"Interrupted; nothing is lost. To go on: {again} --root {directory}")
            raise
    show(report, output, lambda: _render(report, f"{again} --root {directory}"))
    if not report.is_done:
        raise SystemExit(1)


def _watch(shown: Progress, stage: Stage, holdups: Sequence[Holdup]) -> None:
    if not holdups:
        return
    whom = [f"{one.cluster}: {one.reason}" for one in holdups]
    proxies = [f"{proxy.node} {proxy.reason}" for one in holdups for proxy in one.proxies]
    shown.wait_for(f"Waits {stage.words}.", *whom, *proxies)


def _forced(shown: Progress, breaks: str, holdups: Sequence[Holdup], *, yes: bool) -> bool:
    shown.pause()
    shown.say(f"warning: the proof is missing. {breaks}:")
    for one in holdups:
        shown.say(f"  {one.cluster}: {one.reason}")
        for proxy in one.proxies:
            shown.say(f"    {proxy.node}: {proxy.reason}")
    if yes or not sys.stdin.isatty():
        return True
    return click.confirm("Go on all the same?", err=True)


def _render(report: RotationReport, again: str) -> list[RenderableType]:
    shown: list[RenderableType] = []
    if report.granted:
        shown.append(f"New authorities: {', '.join(report.granted)}.")
    if report.caught_up:
        shown.append(f"Handed what they had missed: {', '.join(report.caught_up)}.")
    if report.forced:
        shown.append(f"Without proof: {', '.join(report.forced)}.")
    if report.is_done and not report.was_begun:
        shown.append(f"The last rotation of the {report.rotation} is complete. A new one was not begun: {again}")
    elif report.is_done:
        shown.append(f"The {report.rotation} is rotated: trust bundle {report.sequence}.")
    else:
        shown += ["", holdups_table(report.holdups)]
        if report.not_reached:
            shown += ["", silent_table(report.not_reached)]
        going_on = (
            "It goes on by itself, see `isthmus trust status`; to wait for it again" if report.goes_on else "To go on"
        )
        shown += ["", f"Not finished: it waits {report.stage.words}. {going_on}: {again}"]
    return shown
