"""When this machine stood still a row shows nothing of the mesh: then the mesh is broken once more."""

from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import ParamSpec

from deploy.lab.load import TIMEOUT, Attempt

_LATE = 1.0  # seconds
_MOST = 0.05
"""What part of the requests may say nothing. On two cores under a load of 12 up to 3 % did, and under a load of 34
enough to hide 25 GETs that failed. In a row of 10 s it is half a second, beside the second that each may be late."""

Fixtures = ParamSpec("Fixtures")


class StoodStill(Exception):
    """Too many requests say nothing of the mesh."""


def counted(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Returns the requests that say something of the mesh: not those which this process itself sent, or gave up, more
    than a second late, because the machine ran nothing meanwhile."""
    limit = TIMEOUT.total_seconds() + _LATE
    return [each for each in attempts if each.sent - each.due < _LATE and each.ended - each.sent < limit]


def check_counted(attempts: Sequence[Attempt]) -> None:
    """Raises StoodStill when too few requests count."""
    left = len(attempts) - len(counted(attempts))
    if left > _MOST * len(attempts):
        raise StoodStill(
            f"{left} of {len(attempts)} requests were sent or given up more than {_LATE:g} s late: this machine stood "
            "still, and the row shows nothing; run it again where less else runs"
        )


def repeated(row: Callable[Fixtures, Awaitable[None]]) -> Callable[Fixtures, Awaitable[None]]:
    """Returns a row that is tried once more when the machine stood still, and only then."""

    @wraps(row)
    async def run(*args: Fixtures.args, **fixtures: Fixtures.kwargs) -> None:
        try:
            await row(*args, **fixtures)
        except StoodStill:
            pass
        else:
            return
        await row(*args, **fixtures)

    return run
