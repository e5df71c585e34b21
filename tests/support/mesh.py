"""A whole mesh under test: a lab, driven by nothing but the command line that users have."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Found = TypeVar("Found")


class Isthmus:
    """The `isthmus` command with a home of its own, and one lab in it."""

    def __init__(self, home: Path, name: str = "test") -> None:
        self.home = home
        self.name = name
        self.is_disturbed = False
        self._environment = {**os.environ, "ISTHMUS_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "200"}

    def run(self, *words: str, seconds: float = 120, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Runs `isthmus WORDS`; fails unless it exits with `code` (None: any)."""
        done = subprocess.run(
            [sys.executable, "-m", "deploy.cli.main", *words],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if code is not None:
            assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    def json(self, *words: str) -> Any:
        """Runs a command with `-o json` and returns what it says."""
        return json.loads(self.run(*words, "-o", "json").stdout)

    def lab(self, verb: str, *words: str, seconds: float = 120) -> str:
        """Runs `isthmus lab VERB` on this lab."""
        self.is_disturbed = self.is_disturbed or verb in {"kill", "pause", "cut"}
        return self.run("lab", verb, "--name", self.name, *words, seconds=seconds).stdout

    def status(self) -> Any:
        """Returns `lab status`."""
        return json.loads(self.lab("status", "-o", "json"))

    @property
    def folder(self) -> Path:
        """The folder of the lab file."""
        return Path(self.status()["file"]).parent

    def address(self, target: str) -> str:
        """Returns the IP address of one process."""
        [found] = [process["address"] for process in self.status()["processes"] if process["target"] == target]
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

    def load(self, target: str, url: str, *, rate: int, seconds: int) -> Any:
        """Runs `lab load` to its end."""
        words = (target, url, "--rate", str(rate), "--duration", f"{seconds}s", "-o", "json")
        return json.loads(self.lab("load", *words, seconds=seconds + 60))

    def start_load(self, target: str, url: str, *, rate: int, seconds: int) -> "Load":
        """Starts `lab load` and returns at once."""
        words = ("lab", "load", "--name", self.name, target, url)
        return Load(self.start(*words, "--rate", str(rate), "--duration", f"{seconds}s", "-o", "json"), seconds)

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """Starts `isthmus WORDS` and returns at once: the caller waits for its end."""
        command = [sys.executable, "-m", "deploy.cli.main", *words]
        return subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


class Load:
    """A load that runs."""

    def __init__(self, process: subprocess.Popen[str], seconds: int) -> None:
        self._process = process
        self._seconds = seconds

    def report(self) -> Any:
        """Waits for the end and returns what the load saw."""
        out, err = self._process.communicate(timeout=self._seconds + 60)
        assert out, err
        return json.loads(out)


def eventually(check: Callable[[], Found], seconds: float = 30) -> Found:
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
