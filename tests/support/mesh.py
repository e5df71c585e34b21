"""A whole mesh under test: a lab, driven by nothing but the command line that users have."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from itertools import count as counting
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import ProxyHandler, build_opener

from tests.support.command_line import Command
from tests.support.waiting import PATIENCE

Found = TypeVar("Found")


class Isthmus:
    """The `isthmus` command with a home of its own, and one lab in it."""

    def __init__(self, home: Path, name: str = "test") -> None:
        self.home = home
        self.name = name
        self._said = counting(1)
        self._mending: set[tuple[str, ...]] = set()
        self._loads: list[Load] = []
        self._environment = {**os.environ, "ISTHMUS_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "200"}

    def run(self, *words: str, seconds: float = 120, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Runs `isthmus WORDS`; fails unless it exits with `code` (None: any)."""
        return ended(self.start(*words), words, seconds=seconds, code=code)

    def json(self, *words: str) -> Any:
        """Runs a command with `-o json` and returns what it says."""
        return json.loads(self.run(*words, "-o", "json").stdout)

    def lab(self, verb: str, *words: str, seconds: float = 120) -> str:
        """Runs `isthmus lab VERB` on this lab. What is broken by it, `mend` mends."""
        cluster = words[0].partition("/")[0] if words else ""
        match verb:
            case "kill" | "wipe":
                self._mending.add(("start", cluster))
            case "pause":
                self._mending.add(("resume", cluster))
            case "cut":
                self._mending.add(("heal", *words[:2]))
        return self.run("lab", verb, "--name", self.name, *words, seconds=seconds).stdout

    def mend(self) -> bool:
        """Ends what loads are left, undoes what was done to processes and links, and says whether that was anything."""
        for load in self._loads:
            load.interrupt()
        self._loads.clear()
        broken = [("lab", verb, "--name", self.name, *words) for verb, *words in self._mending]
        self.all_of(*broken)
        self._mending.clear()
        return bool(broken)

    def all_of(self, *commands: tuple[str, ...]) -> list[str]:
        """Runs several commands at the same time and returns what each said."""
        started = [(self.start(*words), words) for words in commands]
        return [ended(command, words).stdout for command, words in started]

    def status(self) -> Any:
        """Returns `lab status`."""
        return json.loads(self.lab("status", "-o", "json"))

    @cached_property
    def _first_status(self) -> Any:
        return self.status()  # what never changes in a lab need not be asked for, and its memory measured, again

    @property
    def folder(self) -> Path:
        """The folder of the lab file."""
        return Path(self._first_status["file"]).parent

    def address(self, target: str) -> str:
        """Returns the IP address of one process."""
        processes = self._first_status["processes"]
        [found] = [process["address"] for process in processes if process["target"] == target]
        return str(found).partition(":")[0]

    def ask(self, cluster: str, view: str) -> Any:
        """Returns what a cluster's control plane says: `clusters`, `services`, `proxies`, `status`."""
        return self.json("--lab", self.name, "--cluster", cluster, view)

    def execute(self, target: str, *command: str, seconds: float = 60) -> str:
        """Runs a client program in the surroundings of a workload."""
        return self.lab("exec", target, "--", *command, seconds=seconds)

    def sequential(self, target: str, url: str, count: int) -> Counter[str]:
        """Sends requests one after the other over one connection; counts `status upstream`."""
        program = str(Path(__file__).parent.parent / "system" / "programs" / "sequential.py")
        return Counter(json.loads(self.execute(target, sys.executable, program, url, str(count))))

    def start_load(self, target: str, url: str, *, rate: int) -> "Load":
        """Starts `lab load` and returns when its requests flow. It goes on until somebody wants its report."""
        sidecar = self.address(f"{target}-1/sidecar")
        before = _requests(sidecar)
        words = ("lab", "load", "--name", self.name, target, url)
        load = Load(self.start(*words, "--rate", str(rate), "--duration", "10m", "-o", "json"))
        self._loads.append(load)
        eventually(lambda: _requests(sidecar) > before)
        return load

    def start(self, *words: str) -> Command:
        """Starts `isthmus WORDS` and returns at once: the caller waits for its end."""
        folder = self.home / "said"
        folder.mkdir(parents=True, exist_ok=True)
        return Command(words, self._environment, folder / str(next(self._said)))


class Load:
    """A load that runs."""

    def __init__(self, command: Command) -> None:
        self._command = command

    def interrupt(self) -> None:
        """Ends it, as Ctrl-C does."""
        self._command.interrupt()

    def report(self) -> Any:
        """Ends the load and returns what it saw."""
        self.interrupt()
        out, err = self._command.communicate(PATIENCE)
        assert out, err
        return json.loads(out)


def ended(
    command: Command, words: tuple[str, ...], *, seconds: float = 120, code: int | None = 0
) -> subprocess.CompletedProcess[str]:
    """Waits for the end of a command; fails unless it exits with `code` (None: any)."""
    out, err = command.communicate(seconds)
    assert command.returncode is not None
    if code is not None:
        assert command.returncode == code, f"{words}: {command.returncode}\n{out[-4000:]}\n{err[-4000:]}"
    return subprocess.CompletedProcess(words, command.returncode, out, err)


def _requests(sidecar: str) -> int:
    """Returns how many requests of its program a sidecar has seen."""
    url = f"http://{sidecar}:15000/stats?filter=%5Ehttp%5C.outbound%5C.downstream_rq_total$"
    with build_opener(ProxyHandler({})).open(url, timeout=10) as answer:
        return int(answer.read().decode().partition(": ")[2])


def eventually(check: Callable[[], Found], seconds: float = PATIENCE) -> Found:
    """Repeats `check` until what it returns is true and it raises no AssertionError; fails at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = check()
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        else:
            if found:
                return found
            assert time.monotonic() < deadline, f"not within {seconds} s; last seen: {found!r}"
        time.sleep(0.1)
