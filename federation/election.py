"""One leader per cluster: the replica that writes to etcd and speaks with the peers.

Skeleton: signatures are settled, bodies follow.
"""

from collections.abc import Awaitable, Callable
from datetime import timedelta

import msgspec

from federation.etcd import EtcdClient, Guard


class Leadership(msgspec.Struct, frozen=True):
    """Proof of leading: writes that carry `guard` are not done once somebody else leads."""

    holder: str
    guard: Guard


class Election:
    """Campaigns for the leader's key with a lease of `ttl`, under the name `holder`."""

    def __init__(self, etcd: EtcdClient, holder: str, *, ttl: timedelta = timedelta(seconds=5)) -> None:
        raise NotImplementedError

    @property
    def leader(self) -> str | None:
        """Name of the replica that leads, as far as this one knows; None while there is none."""
        raise NotImplementedError

    async def run(self, lead: Callable[[Leadership], Awaitable[None]]) -> None:
        """Campaigns for ever and awaits `lead(leadership)` while leading; cancels it when the leadership is lost.

        `lead` may raise Fenced or EtcdUnavailable: the leadership is given up and the campaign begins again. When it
        returns, the leadership is given up and `run` returns. Any other error is a bug and is raised.
        """
        raise NotImplementedError
