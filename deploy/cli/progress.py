"""Shows on standard error what a command waits for: a line for each change, and on a terminal one that moves below."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.status import Status


class Progress:
    """Lines that stay (`say`), and what is waited for now (`wait_for`): told again only when it has changed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = Status("", console=console) if console.is_terminal else None
        self._waits: tuple[str, ...] = ()

    def say(self, line: str) -> None:
        """Shows a line that stays."""
        self._console.print(line, markup=False, soft_wrap=True)

    def wait_for(self, what: str, *whom: str) -> None:
        """Shows what is waited for, and whom: on a terminal in place, elsewhere a line for each that is new."""
        if self._status is not None:
            self._status.update(escape("\n  ".join((what, *whom))))
            self._status.start()
            return
        for line in (what, *whom):
            if line not in self._waits:
                self.say(line if line == what else f"  {line}")
        self._waits = (what, *whom)

    def pause(self) -> None:
        """Ends what moves, so that something can be asked or shown."""
        if self._status is not None:
            self._status.stop()


@contextmanager
def progress() -> Iterator[Progress]:
    """Gives a Progress on standard error; what moves ends with the block."""
    shown = Progress(Console(stderr=True, highlight=False))
    try:
        yield shown
    finally:
        shown.pause()
