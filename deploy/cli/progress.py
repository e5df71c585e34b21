"""Shows on standard error what a command waits for: a line for each change, and on a terminal one that moves below."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.status import Status

_NAMED_AFTER = 3.0  # seconds: most waits are over by then, and a line for each proxy of a mesh would bury the others

_FIT = 12  # lines that move: more than a terminal is high cannot be taken back


class Progress:
    """Lines that stay (`say`), and what is waited for now (`wait_for`). `clock` counts seconds."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._status = Status("", console=console) if console.is_terminal else None
        self._what = ""
        self._since = 0.0
        self._named: frozenset[str] = frozenset()

    @property
    def is_moving(self) -> bool:
        """Says whether what is waited for is shown in place: then it may change often."""
        return self._status is not None

    def say(self, line: str) -> None:
        """Shows a line that stays."""
        self._console.print(line, markup=False, soft_wrap=True)

    def wait_for(self, what: str, *whom: str) -> None:
        """Shows what is waited for, and whom when it takes long: on a terminal in place, elsewhere a line for each that
        is new."""
        now = self._clock()
        is_new = what != self._what
        if is_new:
            self._what, self._since, self._named = what, now, frozenset()
        takes_long = now - self._since >= _NAMED_AFTER
        if self._status is not None:
            named = whom if takes_long else ()
            more = [f"and {len(named) - _FIT} more"] if len(named) > _FIT else []
            self._status.update(escape("\n  ".join((what, *named[:_FIT], *more))))
            self._status.start()
            return
        if is_new:
            self.say(what)
        if takes_long:
            for line in whom:
                if line not in self._named:
                    self.say(f"  {line}")
            self._named = frozenset(whom)

    def pause(self) -> None:
        """Ends what moves, so that something can be asked or shown."""
        if self._status is not None:
            self._status.stop()


@contextmanager
def progress() -> Iterator[Progress]:
    """Gives a Progress on standard error; what moves ends with the block."""
    shown = Progress(Console(stderr=True, highlight=False), time.monotonic)
    try:
        yield shown
    finally:
        shown.pause()
