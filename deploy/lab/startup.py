"""Starting a lab: in this process, or in one of its own that outlives the command."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import msgspec
import psutil

from deploy.failures import CommandFailed
from deploy.lab import api, commands
from deploy.lab.addresses import SLOTS, Slot, assign, listeners, lock_address
from deploy.lab.bringup import bring_up
from deploy.lab.client import LabClient, LabNotRunning
from deploy.lab.plan import InvalidLab, Plan, read_plan
from deploy.lab.reports import LabReport, Phase
from deploy.lab.state import Folder, Running, claim, is_claimed, make_anew, socket_path, write_atomically
from deploy.lab.supervisor import Lab

BUNDLED = Path(__file__).parent.parent / "examples" / "lab.yaml"
"""The lab file that is used when none is given."""

Watch = Callable[[Callable[[], Awaitable[LabReport]]], Awaitable[None]]
"""Shows how a lab starts; is given a way to ask the lab about itself."""

_POLL = 0.1  # seconds between two looks at a lab that starts or ends
_END = timedelta(seconds=20)  # how long a lab may take to end


class InvalidLabFile(CommandFailed):
    """The lab file is wrong; `findings` say where."""

    def __init__(self, error: InvalidLab) -> None:
        lines = "\n".join(
            f"  {each.where}:{each.line}: {each.field + ': ' if each.field else ''}{each.message} ({each.hint})"
            for each in error.findings
        )
        super().__init__(
            f"the lab file is not valid:\n{lines}", "correct these lines; deploy/lab/README.md explains the lab file"
        )


def load_plan(file: Path) -> Plan:
    """Reads a lab file. Raises CommandFailed."""
    try:
        return read_plan(file.read_text(), str(file))
    except InvalidLab as error:
        raise InvalidLabFile(error) from error
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror}", "name a lab file: YAML") from error
    except UnicodeDecodeError as error:
        raise CommandFailed(f"{file} is no text: {error}", "name a lab file: YAML in UTF-8") from error


def run_here(folder: Folder, file: Path, watch: Watch) -> None:
    """Runs a lab in this process until it is told to end: by `lab down`, Ctrl-C or SIGTERM. Raises CommandFailed.

    `watch` runs beside it.
    """
    file = file.absolute()
    plan = load_plan(file)
    _check(plan, file)
    with claim(folder), claim_slot(plan) as slot:
        make_anew(folder)
        with socket_path(folder) as path:
            asyncio.run(_run(plan, slot, folder=folder, file=file, socket_file=path, watch=watch))


def start_detached(folder: Folder, file: Path) -> "subprocess.Popen[bytes]":
    """Starts a lab in a process and session of its own, whose errors go to the lab's output file."""
    load_plan(file)  # what is wrong with it is better said here
    folder.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_claimed(folder):
        with claim(folder):
            pass
    with folder.output.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "deploy.cli.main", "lab", "up", str(file.absolute()), "--name", folder.name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # how it starts is asked over its API
            stderr=output,
            start_new_session=True,
        )


async def wait_up(folder: Folder, process: "subprocess.Popen[bytes]", watch: Callable[[LabReport], None]) -> LabReport:
    """Waits until a detached lab is up; raises CommandFailed with what it said when it ended instead."""
    while True:
        if process.poll() is not None:
            said = folder.output.read_text(errors="replace").strip().removeprefix("error: ")
            raise CommandFailed(said or f"the lab's process ended with status {process.returncode}")
        running = folder.running()
        if running is not None and running.pid == process.pid:
            try:
                async with LabClient(folder) as client:
                    report = await client.status()
            except LabNotRunning:
                report = None
            if report is not None:
                watch(report)
                if report.phase is Phase.UP:
                    return report
        await asyncio.sleep(_POLL)


async def end(folder: Folder) -> None:
    """Ends a running lab and waits until nothing of it is left. Raises CommandFailed."""
    async with LabClient(folder) as client:
        pid = (await client.down()).pid
    try:
        async with asyncio.timeout(_END.total_seconds()):
            while True:
                if not is_claimed(folder) and not _runs(pid):
                    return
                await asyncio.sleep(_POLL)
    except TimeoutError as error:
        raise CommandFailed(
            f"the lab {folder.name!r} has not ended after {_END.total_seconds():.0f} s",
            "kill -9 its own process: its guard ends the rest; `isthmus lab status` shows it",
        ) from error


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # a container without init buries nobody
    except psutil.NoSuchProcess:
        return False


@contextmanager
def claim_slot(plan: Plan) -> Iterator[Slot]:
    """Owns the first block of addresses that is free for a plan while it lasts; raises CommandFailed when none is."""
    for slot in SLOTS:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as lock:
            try:
                lock.bind(lock_address(slot))
            except OSError:
                continue
            if not all(_is_free(*where) for where in listeners(assign(plan, slot))):
                continue  # no lab has it, but another program listens there
            yield slot
            return
    raise CommandFailed("all blocks of loopback addresses are taken by other labs", "end one with `isthmus lab down`")


def _is_free(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a lab that has ended do not count
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _check(plan: Plan, file: Path) -> None:
    """Says now what would otherwise fail in the middle of the start."""
    try:
        commands.envoy_program()
        commands.etcd_program()
    except commands.ProgramMissing as error:
        raise CommandFailed(str(error), "install Isthmus again: its requirements bring Envoy and etcd") from error
    for cluster in plan.clusters:
        for path in cluster.manifests:
            if not (file.parent / path).exists():
                raise CommandFailed(
                    f"{file}: cluster {cluster.name}: there are no manifests at {path}",
                    "paths are relative to the folder of the lab file",
                )


async def _run(
    plan: Plan,
    slot: Slot,
    *,
    folder: Folder,
    file: Path,
    socket_file: Path,
    watch: Watch,
) -> None:
    for cluster in plan.clusters:
        for part in ("control", "pods"):
            folder.of(cluster.name, part).mkdir(mode=0o700, parents=True)
    lab = Lab(plan, assign(plan, slot), folder=folder, source=file, environ=os.environ)
    write_atomically(folder.contexts, msgspec.json.encode(lab.contexts()).decode())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, lab.end)

    def opened() -> None:
        running = Running(name=folder.name, pid=os.getpid(), socket=str(socket_file), file=str(file))
        write_atomically(folder.mark, msgspec.json.encode(running).decode())

    async def serve() -> None:
        await api.serve(lab, socket_file, opened=opened)

    async def show() -> None:
        await watch(lab.report)

    await lab.run(bring_up, serve, show)
