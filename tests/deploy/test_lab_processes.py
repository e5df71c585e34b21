"""Processes of a lab: started, ended, frozen, and none left behind whatever happens to the lab."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from deploy.lab.processes import Child, Command, Guard, StartFailed, State, memory
from tests.support.waiting import eventually

PATIENCE = 60.0  # seconds
SLEEPER = (sys.executable, "-c", "import signal; print('here', flush=True); signal.pause()")
FAMILY = ("/bin/sh", "-c", "sleep 600 & echo child $!; wait")


def command(folder: Path, argv: tuple[str, ...], name: str = "log") -> Command:
    return Command(argv=argv, env=dict(os.environ), folder=folder, log=folder / name)


async def written(file: Path, text: str) -> str:
    """Waits until a file holds `text`, and returns the whole."""
    await eventually(lambda: text in content(file), f"{text!r} in {file.name}")
    return content(file)


def content(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def gone(pid: int) -> bool:
    """Says whether a process has ended; a zombie that nobody reaps has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_a_process_is_killed_and_started_again(tmp_path: Path) -> None:
    changes = []
    async with Guard() as guard, asyncio.TaskGroup() as group:
        child = Child(command(tmp_path, SLEEPER), guard, lambda: changes.append(child.state))
        assert child.state is State.NEW
        await child.start(group)
        await child.start(group)  # it runs: nothing happens
        await written(tmp_path / "log", "here")
        first = child.pid
        assert first is not None
        await child.kill()
        assert (child.state, child.exit_code, child.pid) == (State.KILLED, -signal.SIGKILL, None)
        assert gone(first)
        await child.start(group)
        assert child.pid not in (None, first)
        await child.stop(timedelta(seconds=10))
        assert child.exit_code == -signal.SIGTERM
    assert changes == [State.RUNNING, State.KILLED, State.RUNNING, State.KILLED]
    assert (tmp_path / "log").read_text().count("here") >= 1


async def test_children_of_a_process_end_with_it(tmp_path: Path) -> None:
    async with Guard() as guard, asyncio.TaskGroup() as group:
        child = Child(command(tmp_path, FAMILY), guard)
        await child.start(group)
        grandchild = int((await written(tmp_path / "log", "\nchild ")).split("\nchild ")[-1])
        assert not gone(grandchild)
        await child.kill()
        await eventually(lambda: gone(grandchild), "the child of the program is gone")


async def test_a_process_that_ends_by_itself_is_shown_so(tmp_path: Path) -> None:
    async with Guard() as guard, asyncio.TaskGroup() as group:
        child = Child(command(tmp_path, ("/bin/sh", "-c", "exit 3")), guard)
        await child.start(group)
        async with asyncio.timeout(PATIENCE):
            await child.wait()
        assert (child.state, child.exit_code) == (State.EXITED, 3)


async def test_a_program_that_is_not_there_exits_and_says_so_in_its_log(tmp_path: Path) -> None:
    async with Guard() as guard, asyncio.TaskGroup() as group:
        child = Child(command(tmp_path, ("no-such-program",)), guard)
        await child.start(group)
        async with asyncio.timeout(PATIENCE):
            await child.wait()
        assert child.exit_code == 127
        assert "not found" in (tmp_path / "log").read_text()
        nowhere = Command(argv=("true",), env={}, folder=tmp_path / "nowhere", log=tmp_path / "log")
        with pytest.raises(StartFailed, match="nowhere"):
            await Child(nowhere, guard).start(group)


async def test_a_paused_process_stands_still_and_goes_on(tmp_path: Path) -> None:
    async with Guard() as guard, asyncio.TaskGroup() as group:
        child = Child(command(tmp_path, SLEEPER), guard)
        await child.start(group)
        await written(tmp_path / "log", "here")
        pid = child.pid
        assert pid is not None
        child.pause()
        await eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "it stands still")
        assert child.state is State.PAUSED
        child.resume()
        assert child.state is State.RUNNING
        await eventually(lambda: psutil.Process(pid).status() != psutil.STATUS_STOPPED, "it goes on")
        child.pause()
        await child.stop(timedelta(seconds=10))  # a stopped process is ended too
        assert gone(pid)


async def test_who_ignores_the_request_to_end_is_killed(tmp_path: Path) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); signal.pause()"
    async with Guard() as guard, asyncio.TaskGroup() as group:
        child = Child(command(tmp_path, (sys.executable, "-c", deaf)), guard)
        await child.start(group)
        await written(tmp_path / "log", "\nhere")
        await child.stop(timedelta(milliseconds=100))
        assert (child.state, child.exit_code) == (State.KILLED, -signal.SIGKILL)


LAB = """
import asyncio, os, pathlib, sys
from deploy.lab.processes import Child, Command, Guard

async def main():
    folder = pathlib.Path(sys.argv[1])
    async with Guard() as guard, asyncio.TaskGroup() as group:
        for number in range(3):
            argv = ("/bin/sh", "-c", "sleep 600 & echo $$ $! ; wait")
            command = Command(argv, dict(os.environ), folder, folder / f"{number}.log")
            await Child(command, guard).start(group)
        stopped = Child(Command(("sleep", "600"), dict(os.environ), folder, folder / "stopped.log"), guard)
        await stopped.start(group)
        stopped.pause()
        print(guard.pid, stopped.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_kill_minus_nine_of_the_lab_leaves_nothing_running(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", LAB, str(tmp_path)], stdout=subprocess.PIPE, text=True) as lab:
        assert lab.stdout is not None
        guard, stopped = map(int, lab.stdout.readline().split())
        deadline = time.monotonic() + PATIENCE
        pids = [guard, stopped]
        while len(pids) < 8:
            assert time.monotonic() < deadline
            lines = [line for number in range(3) for line in (tmp_path / f"{number}.log").read_text().splitlines()]
            pids = [guard, stopped, *(int(pid) for line in lines if line[0].isdigit() for pid in line.split())]
            time.sleep(0.01)
        assert not any(gone(pid) for pid in pids)
        lab.kill()
        lab.wait()
        while not all(gone(pid) for pid in pids):
            assert time.monotonic() < deadline, [pid for pid in pids if not gone(pid)]
            time.sleep(0.01)


async def test_a_killed_guard_is_noticed(tmp_path: Path) -> None:
    async with Guard() as guard, asyncio.TaskGroup() as group:
        child = Child(command(tmp_path, SLEEPER), guard)
        await child.start(group)
        os.kill(guard.pid, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            await guard.watch()
        await child.kill()  # and what runs can still be ended
        assert child.state is State.KILLED


def test_memory_counts_a_process_and_its_children() -> None:
    mine = memory(os.getpid())
    assert mine.resident >= mine.proportional > 1024 * 1024
    assert memory(2**22 + 1).resident == 0
