"""`isthmus lab`: a whole mesh on this machine, and what can be done to it.

TARGET is CLUSTER, CLUSTER/control[-N], CLUSTER/etcd[-N], CLUSTER/gateway[-N] or CLUSTER/NAMESPACE/WORKLOAD[-N],
the last also with /app or /sidecar. Without N it means all of them; for `exec` and `load` the first.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import click
from rich.console import Console

from deploy.cli import lab_display as display
from deploy.cli.output import output_option, show, stdout_console
from deploy.failures import CommandFailed
from deploy.lab import startup
from deploy.lab.client import LabClient
from deploy.lab.demo import ChapterReport, DemoReport, run_demo
from deploy.lab.links import LinkState
from deploy.lab.load import Load, LoadReport, summarise
from deploy.lab.plan_file import parse_duration
from deploy.lab.reports import Action, LabReport, Phase
from deploy.lab.state import folder
from deploy.lab.targets import UnknownTarget, select

_Answer = TypeVar("_Answer")
_Command = TypeVar("_Command", bound=Callable[..., object])

_FOLLOW_POLL = 0.2  # seconds between two looks at logs that are followed
_PROGRESS_POLL = 0.1  # seconds between two looks at a lab that starts


def _name_option(command: _Command) -> _Command:
    return click.option(
        "--name", metavar="NAME", default="lab", show_default=True, envvar="ISTHMUS_LAB", help="Which lab."
    )(command)


class _Duration(click.ParamType[timedelta]):
    """A span such as `250ms`, `10s` or `2m`."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Parses the text; a value that is a timedelta already stays."""
        if isinstance(value, timedelta):
            return value
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Url(click.ParamType[str]):
    """A URL that a workload calls through its sidecar."""

    name = "url"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuses what could not leave: nothing would be sent, and all requests counted as failed."""
        try:
            parts = urlsplit(str(value))
            is_right = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_right = False
        if not is_right:
            self.fail(f"{value!r} is not http://HOST[:PORT][/PATH] (the sidecars encrypt by themselves)", param, ctx)
        return str(value)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def lab() -> None:
    """Run a whole mesh on this machine: clusters, control planes, gateways, sidecars and programs.

    No root, no containers: real processes on addresses of their own in 127.0.0.0/8.

    TARGET is CLUSTER, CLUSTER/control[-N], CLUSTER/etcd[-N], CLUSTER/gateway[-N] or CLUSTER/NAMESPACE/WORKLOAD[-N], the
    last also with /app or /sidecar. Without N it means all of them; for `exec` and `load` the first.
    """


@lab.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--detach", is_flag=True, help="Return when everything is up; the lab goes on until `lab down`.")
@_name_option
def up(file: Path | None, *, detach: bool, name: str) -> None:
    """Start the lab of FILE (default: the bundled example of three clusters)."""
    lab_file, home = file or startup.BUNDLED, folder(name)
    progress_console = Console(stderr=False, highlight=False)
    if detach:
        process = startup.start_detached(home, lab_file)
        progress = display.Progress(progress_console)
        try:
            report = asyncio.run(startup.wait_up(home, process, progress.update))
        except BaseException:
            process.terminate()  # a lab whose start failed, or was interrupted, leaves nothing
            raise
        finally:
            progress.close()
        click.echo(display.next_steps(report))
        return

    async def watch(ask: Callable[[], Awaitable[LabReport]]) -> None:
        progress = display.Progress(progress_console)
        try:
            while True:
                report = await ask()
                progress.update(report)
                if report.phase is not Phase.STARTING:
                    break
                await asyncio.sleep(_PROGRESS_POLL)
        finally:
            progress.close()
        if report.phase is Phase.UP:
            click.echo(display.next_steps(report) + "\nCtrl-C ends it.")

    startup.run_here(home, lab_file, watch)


@lab.command()
@_name_option
def down(*, name: str) -> None:
    """End the lab: nothing of it keeps running. Its logs stay until it is started again."""
    asyncio.run(startup.end(folder(name)))
    click.echo(f"The lab {name!r} has ended.")


@lab.command()
@_name_option
@output_option
def status(output: str, *, name: str) -> None:
    """Show all processes and links, and the memory they take."""
    report = _ask(name, lambda client: client.status(with_memory=True))
    show(report, output, lambda: display.render_status(report))


@lab.command()
@click.argument("target")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="How many at most.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@_name_option
def logs(target: str, *, lines: int, follow: bool, name: str) -> None:
    """Print the logs of TARGET, also of a lab that has ended."""
    files = _log_files(name, target)
    shown: dict[str, int] = {}
    for process, path in files.items():
        whole, shown[process] = _read_lines(path, 0)
        _print_log(process if len(files) > 1 else "", whole[max(0, len(whole) - lines) :])
    while follow:
        time.sleep(_FOLLOW_POLL)
        for process, path in files.items():
            whole, shown[process] = _read_lines(path, shown[process])
            _print_log(process if len(files) > 1 else "", whole)


@lab.command("exec")
@click.argument("target")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_name_option
def exec_(target: str, command: Sequence[str], *, name: str) -> None:
    """Run a command as TARGET's program would: `isthmus lab exec east/shop/client -- curl http://cart/`."""
    surroundings = _ask(name, lambda client: client.environment(target))
    os.chdir(surroundings.folder)
    sys.stdout.flush()
    try:
        os.execvpe(command[0], list(command), surroundings.variables)  # noqa: S606 - to run the user's command is the purpose
    except OSError as error:
        raise CommandFailed(f"{command[0]}: {error.strerror}", "give a program that is on the PATH") from error


_DONE = {
    Action.KILL: "killed",
    Action.START: "started",
    Action.PAUSE: "paused",
    Action.RESUME: "resumed",
    Action.WIPE: "wiped",
}


def _action(action: Action, summary: str) -> None:
    """Adds the command for one thing that is done to processes."""

    @lab.command(action.value, help=summary)
    @click.argument("target")
    @_name_option
    @output_option
    def act(target: str, output: str, *, name: str) -> None:
        report = _ask(name, lambda client: client.act(action, target))
        lines = [f"{_DONE[action]}: {each}" for each in report.changed]
        lines += [f"already so, left alone: {each}" for each in report.unchanged]
        show(report, output, lambda: "\n".join(lines))


_action(Action.KILL, "End TARGET at once (kill -9), until it is started again.")
_action(Action.START, "Start what does not run of TARGET.")
_action(Action.PAUSE, "Freeze TARGET (SIGSTOP): it keeps its connections and answers nothing.")
_action(Action.RESUME, "Let a paused TARGET go on.")
_action(Action.WIPE, "End an etcd at once and delete its data: it comes back empty when it is started again.")


@lab.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@click.option("--refuse", is_flag=True, help="Refuse and reset connections; without it a black hole swallows them.")
@_name_option
@output_option
def cut(one: str, other: str, output: str, *, refuse: bool, name: str) -> None:
    """Cut the link between clusters A and B, in both directions, or between a control plane and its etcd.

    For the latter A and B are CLUSTER/control[-N] and CLUSTER/etcd[-N].
    """
    state = LinkState.REFUSING if refuse else LinkState.SILENT
    report = _ask(name, lambda client: client.set_link(one, other, state))
    how = "refused" if refuse else "nothing comes through"
    show(report, output, lambda: f"The link between {one} and {other} is cut: {how}.")


@lab.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@_name_option
@output_option
def heal(one: str, other: str, output: str, *, name: str) -> None:
    """Heal the link between clusters A and B, or CLUSTER/control[-N] and CLUSTER/etcd[-N]."""
    report = _ask(name, lambda client: client.set_link(one, other, LinkState.OPEN))
    show(report, output, lambda: f"The link between {one} and {other} is open.")


@lab.command()
@click.option("--rate", type=click.FloatRange(min=1), default=200, show_default=True, help="Requests per second.")
@_name_option
@output_option
def demo(output: str, *, rate: float, name: str) -> None:
    """Play the demo story on the bundled example; the exit code says whether the mesh kept its promise."""
    console = stdout_console()

    def tell(chapter: ChapterReport) -> None:
        if output == "table":
            console.print(chapter.sentence, markup=False)

    async def play(client: LabClient) -> DemoReport:
        return await run_demo(client, rate=rate, tell=tell)

    report = _ask(name, play)
    show(report, output, lambda: display.render_demo(report, name))
    if not report.held:
        sys.exit(1)
    if output == "table":
        click.echo("\n" + display.next_steps(_ask(name, lambda client: client.status())))


@lab.command()
@click.argument("target")
@click.argument("url", type=_Url())
@click.option("--rate", type=click.FloatRange(min=0.1), default=100, show_default=True, help="Requests per second.")
@click.option("--duration", type=_Duration(), default="10s", show_default=True, help="How long, such as 30s.")
@click.option("--method", "methods", multiple=True, default=("GET",), help="Give it several times to take turns.")
@_name_option
@output_option
def load(
    target: str, url: str, output: str, *, rate: float, duration: timedelta, methods: Sequence[str], name: str
) -> None:
    """Call URL as TARGET's program would, on schedule whatever happens, and count the answers.

    Ctrl-C ends it early and shows what was seen. Exit 1 if any request failed, or none was sent.
    """

    async def run(client: LabClient) -> LoadReport:
        surroundings = await client.environment(target)
        if "http_proxy" not in surroundings.variables:
            raise CommandFailed(f"{target} is no workload", "load comes from a workload, such as east/shop/client")
        generator = Load(
            url, proxy=surroundings.variables["http_proxy"], rate=rate, methods=[each.upper() for each in methods]
        )
        loop = asyncio.get_running_loop()

        def stop() -> None:
            generator.stop()
            loop.remove_signal_handler(signal.SIGINT)  # a second Ctrl-C does not wait for the last answers

        loop.add_signal_handler(signal.SIGINT, stop)
        await generator.run(duration)
        return summarise(generator.attempts, url, rate)

    report = _ask(name, run)
    show(report, output, lambda: display.render_load(report))
    if report.failed or not report.sent:
        sys.exit(1)


def _ask(name: str, question: Callable[[LabClient], Awaitable[_Answer]]) -> _Answer:
    async def run() -> _Answer:
        async with LabClient(folder(name)) as client:
            return await question(client)

    return asyncio.run(run())


def _log_files(name: str, target: str) -> dict[str, Path]:
    """Returns the logs of a target by the names of its processes."""
    files = folder(name).logs()
    if not files:
        raise CommandFailed(f"the lab {name!r} has written no logs", "isthmus lab up")
    try:
        return {str(process): files[process] for process in select(target, tuple(files))}
    except UnknownTarget as error:
        raise CommandFailed(error.message, error.hint) from error


def _read_lines(path: Path, start: int) -> tuple[list[str], int]:
    """Returns the whole lines of a file from a byte on, and where to go on; an unfinished line comes next time."""
    with path.open("rb") as opened:
        opened.seek(start)
        content = opened.read()
    whole = content[: content.rfind(b"\n") + 1]
    return whole.decode(errors="replace").splitlines(), start + len(whole)


def _print_log(title: str, lines: Sequence[str]) -> None:
    for line in lines:
        click.echo(f"{title}: {line}" if title else line)
