"""The command `isthmus`, as many processes of it as are asked for, its imports paid once.

A server imports what the command line imports, and forks for each command. So a command still has arguments, an
environment and a process of its own, and goes through the same `main`; only half a second of imports is not repeated.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path

from deploy.cli.main import COMMANDS, main

_CONTROL = "deploy.cli.control"
"""Not imported ahead: gRPC does not stand a fork."""


class Command:
    """A command that runs, or has run."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], said: Path) -> None:
        """Starts it. What it says goes into two files, `said` with .out and .err."""
        self._words = words
        self._files = said.with_suffix(".out"), said.with_suffix(".err")
        server = get_context("forkserver")
        # of pytest, because a process that is forked imports the main module of the one that asked for it
        server.set_forkserver_preload(["pytest", *sorted(_modules() - {_CONTROL})])
        # a daemon, so that what a failed test has left ends with the tests
        self._process = server.Process(target=_run, args=(words, dict(environment), self._files), daemon=True)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit code; None while it runs, negative after a signal."""
        return self._process.exitcode

    def interrupt(self) -> None:
        """Does what Ctrl-C does."""
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, signal.SIGINT)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Waits for its end and returns what it said on standard output and error.

        `timeout` is in seconds; whoever is late is killed, and it raises subprocess.TimeoutExpired.
        """
        self._process.join(timeout)
        is_late = self._process.is_alive()
        if is_late:
            self._process.kill()
            self._process.join()
        out, err = (file.read_text() if file.exists() else "" for file in self._files)
        if is_late:
            raise subprocess.TimeoutExpired(self._words, timeout, out, err)
        return out, err


def _modules() -> set[str]:
    return {place.partition(":")[0] for place, _ in COMMANDS.values()}


def _run(words: Sequence[str], environment: Mapping[str, str], files: Sequence[Path]) -> None:
    """What the process of a command does; it ends by SystemExit."""
    for number, file in enumerate(files, start=1):  # 1 is standard output, 2 standard error
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["isthmus", *words]
    main()
