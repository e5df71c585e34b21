"""Drives `isthmus drain` and `undrain` against a mesh that is made up, on virtual time."""

from collections.abc import Callable
from datetime import timedelta

from rich.table import Table

from deploy.cli.drain_driver import Order, drain, undrain
from deploy.cli.drain_outcome import DrainOutcome, Reached, UndrainOutcome
from deploy.cli.drain_run import Tools
from deploy.cli.draining import Scope
from tests.support import virtual_time
from tests.support.model_callers import ModelCallers, now

WEST = Scope(cluster="west")


class Drive:
    """A mesh, and what was said while it was drained."""

    def __init__(self, mesh: ModelCallers) -> None:
        self.mesh = mesh
        self.lines: list[str] = []
        self.seen: list[Reached] = []
        self.on_look: Callable[[Reached], None] = lambda _: None

    def drain(self, scope: Scope = WEST, *, over: int = 10, grace: int = 30, **more: object) -> DrainOutcome:
        order = Order(scope=scope, over=timedelta(seconds=over), grace=timedelta(seconds=grace), **more)  # type: ignore[arg-type]
        return virtual_time.run(drain(order, self._tools()))

    def undrain(self, scope: Scope = WEST, *, over: int = 0) -> UndrainOutcome:
        return virtual_time.run(undrain(scope, timedelta(seconds=over), self._tools()))

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    def _tools(self) -> Tools:
        def watch(_: str, found: Reached) -> None:
            self.seen.append(found)
            self.on_look(found)

        self.mesh.rewind()
        return Tools(mesh=self.mesh, clock=now, tell=self.lines.append, watch=watch)


def text(rendered: object) -> str:
    """Returns what people read of what is shown."""
    assert isinstance(rendered, list)
    columns = [cell for one in rendered if isinstance(one, Table) for c in one.columns for cell in c.cells]
    return "\n".join([*(one for one in rendered if isinstance(one, str)), *map(str, columns)])
