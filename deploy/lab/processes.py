"""Starts, stops, kills and pauses the processes of a lab, and leaves none behind.

Each process leads a session and process group of its own, so a signal reaches its children too. No program runs before
the guard knows its group: it starts as a shell that waits for one line, and the line is sent after the guard was told.
When the lab dies in between, the shell reads the end of file and ends.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Self

import msgspec
import psutil

_GATE = 'read -r _ && exec "$@" </dev/null'
_REAP = timedelta(seconds=10)  # how long the kernel may take to end a process after SIGKILL
_LEFTOVERS = timedelta(seconds=2)  # the same for its children; in a container without init zombies stay for ever
_POLL = 0.02  # seconds between two looks at a process group that is ending


class Command(msgspec.Struct, frozen=True):
    """How to start a program. `env` is the whole environment; output of both kinds goes to the end of `log`."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    folder: Path
    log: Path


class State(StrEnum):
    """What is known of a process. EXITED: it ended by itself; KILLED: we ended it."""

    NEW = "new"
    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"
    KILLED = "killed"


class StartFailed(Exception):
    """A program could not be started at all; the message says why."""


class Guard:
    """The process that ends the others when we are gone. An async context manager."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deploy.lab.guard", stdin=asyncio.subprocess.PIPE, start_new_session=True
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        guard = self._running()
        if guard.stdin is not None:
            guard.stdin.close()  # it ends by itself, after whatever is still alive
        await guard.wait()

    async def watch(self) -> None:
        """Returns when the guard has ended, which it never should while the lab lives."""
        await self._running().wait()

    @property
    def pid(self) -> int:
        """The guard's process id."""
        return self._running().pid

    async def tell(self, sign: str, group: int) -> None:
        """Says that a process group lives ("+") or has ended ("-")."""
        guard = self._running()
        if guard.stdin is not None and not guard.stdin.is_closing():
            with contextlib.suppress(ConnectionError):  # `watch` says that the guard is gone
                guard.stdin.write(f"{sign} {group}\n".encode())
                await guard.stdin.drain()

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError("the guard is used outside of its `async with`")
        return self._process


class Child:
    """One process that may be started again after it ended.

    `on_change` is called after every change of state, from the event loop.
    """

    def __init__(self, command: Command, guard: Guard, on_change: Callable[[], None] = lambda: None) -> None:
        self.command = command
        self._guard = guard
        self._on_change = on_change
        self._process: asyncio.subprocess.Process | None = None
        self._ended = asyncio.Event()
        self._is_starting = False
        self._is_stopping = False
        self.state = State.NEW
        self.started: datetime | None = None
        self.exit_code: int | None = None
        """Exit status of the last run; negative: minus the signal that ended it."""

    @property
    def pid(self) -> int | None:
        """Process id and process group while it lives."""
        return self._process.pid if self._process is not None and self.is_alive else None

    @property
    def is_alive(self) -> bool:
        """Whether the process exists, paused or not."""
        return self.state in (State.RUNNING, State.PAUSED)

    async def start(self, group: asyncio.TaskGroup) -> None:
        """Starts the program unless it runs; `group` gets the task that waits for its end. Raises StartFailed."""
        if self.is_alive or self._is_starting:
            return
        self._is_starting = True
        try:
            await self._start(self.command, group)
        finally:
            self._is_starting = False

    async def _start(self, command: Command, group: asyncio.TaskGroup) -> None:
        with command.log.open("ab") as log:
            log.write(f"--- {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} start: {' '.join(command.argv)}\n".encode())
            log.flush()
            try:
                process = await asyncio.create_subprocess_exec(
                    *("/bin/sh", "-c", _GATE, "sh", *command.argv),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=command.env,
                    cwd=command.folder,
                    start_new_session=True,
                )
            except OSError as error:
                raise StartFailed(f"{command.argv[0]} cannot be started in {command.folder}: {error}") from error
        self._process, self._is_stopping = process, False
        self._ended = asyncio.Event()
        self.state, self.started, self.exit_code = State.RUNNING, datetime.now(UTC), None
        await self._guard.tell("+", process.pid)
        if process.stdin is not None:
            process.stdin.write(b"go\n")
            process.stdin.close()
        group.create_task(self._reap(process, self._ended), name=f"reap {command.argv[0]}")
        self._on_change()

    async def kill(self) -> None:
        """Ends it and its children at once (SIGKILL) and waits until they are gone."""
        await self._signal_and_wait(signal.SIGKILL, _REAP)

    async def stop(self, grace: timedelta) -> None:
        """Asks it to end (SIGTERM); what still lives after `grace` is killed."""
        if self.state is State.PAUSED:
            self._send(signal.SIGCONT)  # a stopped process sees no SIGTERM
        try:
            await self._signal_and_wait(signal.SIGTERM, grace)
        except TimeoutError:
            await self.kill()

    def pause(self) -> None:
        """Freezes it (SIGSTOP): it keeps its sockets and answers nothing."""
        if self.state is State.RUNNING:
            self._send(signal.SIGSTOP)
            self.state = State.PAUSED
            self._on_change()

    def resume(self) -> None:
        """Lets a paused process go on."""
        if self.state is State.PAUSED:
            self._send(signal.SIGCONT)
            self.state = State.RUNNING
            self._on_change()

    async def wait(self) -> None:
        """Waits until the present run has ended; returns at once when there is none."""
        if self.is_alive:
            await self._ended.wait()

    async def _signal_and_wait(self, number: signal.Signals, limit: timedelta) -> None:
        if not self.is_alive:
            return
        self._is_stopping = True
        self._send(number)
        async with asyncio.timeout(limit.total_seconds()):
            await self._ended.wait()

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return  # it ended by itself in this moment; _reap sees it

    async def _reap(self, process: asyncio.subprocess.Process, ended: asyncio.Event) -> None:
        """Waits for the end of one run, then ends children that outlived their parent."""
        self.exit_code = await process.wait()
        await _end_group(process.pid)
        await self._guard.tell("-", process.pid)
        self.state = State.KILLED if self._is_stopping else State.EXITED
        ended.set()
        self._on_change()


async def _end_group(group: int) -> None:
    """Kills what is left of a process group and waits until it is empty, so that its addresses are free again."""
    try:
        async with asyncio.timeout(_LEFTOVERS.total_seconds()):
            while True:
                os.killpg(group, signal.SIGKILL)
                await asyncio.sleep(_POLL)
    except (ProcessLookupError, PermissionError, TimeoutError):
        return  # macOS says PermissionError for a group of zombies


class Memory(msgspec.Struct, frozen=True):
    """Bytes of memory: `resident` counts shared pages in every process, `proportional` splits them among its users."""

    resident: int = 0
    proportional: int = 0

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(self.resident + other.resident, self.proportional + other.proportional)


def memory(pid: int, *, with_children: bool = True) -> Memory:
    """Returns the memory of a process and its children; nothing when it is gone. Blocks for some milliseconds."""
    total = Memory()
    try:
        root = psutil.Process(pid)
        family = [root, *(root.children(recursive=True) if with_children else [])]
    except psutil.Error:
        return total
    for process in family:
        try:
            resident = process.memory_info().rss
            full = process.memory_full_info()
        except psutil.Error:
            continue
        # only Linux splits shared pages
        total += Memory(resident, getattr(full, "pss", resident))
    return total
