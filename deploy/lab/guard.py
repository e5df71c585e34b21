"""Ends what a lab started when the lab's own process is gone, even by kill -9.

The lab holds the other end of this process's standard input and writes there which process groups live: a line `+ 123`
when one starts, `- 123` when one has ended. The pipe closes when the lab dies, however it dies; then every group that
is still named gets SIGKILL. Standard library alone: this process stays small and starts at once.

    lab --pipe--> guard          kill -9 lab  =>  end of file  =>  killpg(each, SIGKILL)
"""

import os
import signal
import sys
from typing import IO


def run(lines: IO[bytes]) -> set[int]:
    """Reads until the end of file; returns the process groups that have not ended."""
    alive: set[int] = set()
    for line in lines:
        sign, number = line.split()
        if sign == b"+":
            alive.add(int(number))
        else:
            alive.discard(int(number))
    return alive


def main() -> None:
    """Runs as a process of its own session: a Ctrl-C meant for the lab must not end its guard first."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for group in run(sys.stdin.buffer):
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it ended by itself meanwhile


if __name__ == "__main__":
    main()
