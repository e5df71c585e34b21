"""One leader per cluster: the replica that writes to etcd and speaks with the peers.

The leader's key hangs on a lease that only its holder renews. That bounds how long nobody leads; it cannot exclude that
for a moment two believe to lead (a process that was frozen wakes up). So what a leader writes carries `guard`, and etcd
itself refuses the writes of one who was replaced.

How long nobody leads: what peers say comes that much later, and nothing of it is lost. All the while every replica
serves its proxies and tells peers what changes here.

    the leader ends in order    it gives its lease back, and the next leads at once
    it is killed, is frozen,    until its lease has expired: ttl (5 s), up to 1 s in which etcd notices, and the pause
    or is cut off from etcd     after a failed campaign; an etcd whose own leader is new counts the lease anew
    etcd is away                as long as that: a leader whose lease outlives it goes on, and one that gave up gives
                                its lease back as soon as etcd answers; if it was killed, what is said above
    etcd is full (read-only)    who leads goes on, and nobody else can begin: a lease and a key have to be written
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import msgspec

from federation.etcd import (
    EtcdClient,
    EtcdError,
    EtcdUnavailable,
    Event,
    Fenced,
    Guard,
    KeyValue,
    LeaseExpired,
    LeaseId,
    Listing,
    Put,
)
from federation.names import LEADER_KEY

log = logging.getLogger(__name__)

_PAUSE = 1.0  # seconds before the next campaign after one that failed
_FAREWELL = 1.0  # seconds that giving back the lease may take; else it expires by itself


class Leadership(msgspec.Struct, frozen=True):
    """Proof of leading: writes that carry `guard` are not done once somebody else leads."""

    holder: str
    guard: Guard


class _Over(Exception):
    """The leadership is over; says why."""


class Election:
    """Campaigns for the leader's key with a lease of `ttl` (etcd wants 2 s or more), under the name `holder`."""

    def __init__(self, etcd: EtcdClient, holder: str, *, ttl: timedelta = timedelta(seconds=5)) -> None:
        self._etcd = etcd
        self._holder = holder
        self._ttl = ttl
        self._leader: str | None = None
        self._vacant_since: datetime | None = datetime.now(UTC)
        self._problem = ""
        self._kept: LeaseId | None = None  # a lease that could not be given back

    @property
    def vacant_since(self) -> datetime | None:
        """Since when nobody leads, as far as this one knows; None while somebody does."""
        return self._vacant_since

    @property
    def problem(self) -> str:
        """Why the last campaign of this one failed; empty when it did not."""
        return self._problem

    @property
    def leader(self) -> str | None:
        """Name of the replica that leads, as far as this one knows; None while there is none."""
        return self._leader

    async def run(self, lead: Callable[[Leadership], Awaitable[None]]) -> None:
        """Campaigns for ever and awaits `lead(leadership)` while leading; cancels it when the leadership is lost.

        `lead` may raise Fenced or EtcdUnavailable: the leadership is given up and the campaign begins again. When it
        returns, the leadership is given up and `run` returns. Any other error is a bug and is raised, in a group.
        """
        while True:
            await self._vacancy()
            try:
                async with self._lease() as (lease, expires):
                    leadership = await self._claim(lease)
                    self._problem = ""
                    if leadership is None:
                        continue
                    if await self._hold(lead, leadership, lease=lease, expires=expires):
                        return
            except EtcdError as error:
                if self._problem != str(error):
                    log.warning("campaign failed", extra={"holder": self._holder, "reason": str(error)})
                self._problem = str(error)
            await asyncio.sleep(_PAUSE)

    async def _vacancy(self) -> None:
        """Returns when nobody leads. A key of a leadership of ours that is over is given back.

        An etcd that was away counts all leases anew when it is back: ours would hold the others up as long again.
        """
        async with aclosing(self._holders()) as holders:
            async for item in holders:
                if item is None:
                    return
                if item.lease == self._kept:
                    await self._give_back(item.lease)

    async def _claim(self, lease: LeaseId) -> Leadership | None:
        free = Guard(LEADER_KEY, 0)
        done = await self._etcd.transact([free], [Put(LEADER_KEY, self._holder.encode(), lease)])
        return Leadership(self._holder, Guard(LEADER_KEY, done.revision)) if done.succeeded else None

    async def _hold(
        self,
        lead: Callable[[Leadership], Awaitable[None]],
        leadership: Leadership,
        *,
        lease: LeaseId,
        expires: float,
    ) -> bool:
        """Leads until the leadership is lost or `lead` returns; returns whether it was the latter."""
        over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        is_done = False

        async def office() -> None:
            nonlocal is_done
            await lead(leadership)
            is_done = True

        async def until_over(part: Coroutine[None, None, None]) -> None:
            reason = "done"
            try:
                await part
            except* (_Over, Fenced, EtcdUnavailable) as errors:
                reason = "; ".join(str(error) for error in _leaves(errors))
            if not over.done():
                over.set_result(reason)

        log.info("leadership gained", extra={"holder": self._holder})
        reason = ""
        try:
            # The end comes as a value: of a failure and a cancellation at the same moment a TaskGroup may keep only the
            # failure (CPython issue 116720), and who was told to end would campaign again.
            async with asyncio.TaskGroup() as group:
                parts = (self._renew(lease, expires), self._verify(leadership.guard), office())
                tasks = [group.create_task(until_over(part)) for part in parts]
                reason = await over
                for task in tasks:
                    task.cancel()
        finally:
            self._note(None)
            log.info("leadership over", extra={"holder": self._holder, "reason": reason})
        return is_done

    async def _renew(self, lease: LeaseId, expires: float) -> None:
        """Keeps the lease alive; raises _Over when it has, or may have, expired. `expires` is loop time."""
        loop, ttl = asyncio.get_running_loop(), self._ttl.total_seconds()
        pause = ttl / 3
        while True:
            await asyncio.sleep(max(0.0, min(pause, expires - loop.time())))
            # etcd counts from when it hears us, which is later: we never believe longer than etcd does.
            asked = loop.time()
            try:
                async with asyncio.timeout_at(expires):
                    await self._etcd.keep_alive(lease)
            except LeaseExpired as error:
                raise _Over(str(error)) from error
            except TimeoutError as error:
                raise _Over("the lease could not be renewed in time") from error
            except EtcdUnavailable:
                pause = ttl / 10
            else:
                expires, pause = asked + ttl, ttl / 3

    async def _verify(self, guard: Guard) -> None:
        """Raises _Over when the key is not ours any more: an etcd that lost data may keep the lease and not the key."""
        async with aclosing(self._holders()) as holders:
            async for item in holders:
                if item is None or item.create_revision != guard.create_revision:
                    raise _Over("the leader's key is gone")

    async def _holders(self) -> AsyncGenerator[KeyValue | None, None]:
        """Yields the leader's key (None: nobody leads), now and whenever it changes."""
        async with aclosing(self._etcd.follow(LEADER_KEY)) as changes:
            async for change in changes:
                match change:
                    case Listing(items=items):
                        found = [item for item in items if item.key == LEADER_KEY]
                        item = found[0] if found else None
                    case Event(key=key, item=item):
                        if key != LEADER_KEY:
                            continue
                self._note(item.value.decode(errors="replace") if item else None)
                yield item

    def _note(self, leader: str | None) -> None:
        self._leader = leader
        if leader is not None:
            self._vacant_since = None
        elif self._vacant_since is None:
            self._vacant_since = datetime.now(UTC)

    @asynccontextmanager
    async def _lease(self) -> AsyncIterator[tuple[LeaseId, float]]:
        """Has a lease and the loop time until which it certainly lives; gives it back at the end."""
        expires = asyncio.get_running_loop().time() + self._ttl.total_seconds()
        lease = await self._etcd.grant_lease(self._ttl)
        try:
            yield lease, expires
        finally:
            await self._give_back(lease)

    async def _give_back(self, lease: LeaseId) -> None:
        """Ends a lease of ours, or remembers that this is still to be done."""
        self._kept = lease
        with suppress(EtcdError, TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                await self._etcd.revoke(lease)
                self._kept = None


def _leaves(errors: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """Returns the errors of a group of groups."""
    return [
        leaf
        for error in errors.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]
