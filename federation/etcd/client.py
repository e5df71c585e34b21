"""etcd as a control plane needs it: a thin asyncio client of its v3 gRPC API that loses no change.

A failure is either EtcdUnavailable (another machine's, for now: try again) or says why it cannot be done. `follow`
waits out every outage: of a server that was killed, that is frozen or cut off, that forgot the history or all its data.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from math import ceil
from random import uniform
from types import TracebackType
from typing import Self, TypeVar

from grpc import aio
from msgspec import structs

from federation.etcd.api import etcd_rpc_pb2 as rpc
from federation.etcd.connection import (
    REQUIRE_LEADER,
    Connection,
    EtcdError,
    EtcdRefused,
    EtcdTls,
    EtcdUnavailable,
    LeaseExpired,
    Server,
)
from federation.etcd.health import Exchange, Health
from federation.etcd.messages import (
    NO_LEASE,
    Condition,
    Delete,
    Event,
    Guard,
    KeyValue,
    LeaseId,
    Listing,
    Operation,
    Outcome,
    Position,
    Put,
    compare,
    encode_key,
    event,
    key_value,
    outcome,
    range_of,
    request_op,
)

log = logging.getLogger(__name__)

_HEARTBEAT = timedelta(seconds=1)  # between our questions on a watch whether the server still lives, on average
_SPREAD = 0.5, 1.5
"""How much of it passes. Questions that keep time would for long miss a disk that is busy at the start of each second,
or a server that works in bursts, and all watches of all replicas would ask at one moment."""
_STALL = timedelta(seconds=4)  # without an answer to them: it does not. gRPC's keepalive misses a frozen etcd
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds between attempts to watch; doubles

_Watch = aio.StreamStreamCall[rpc.WatchRequest, rpc.WatchResponse]
_Answer = TypeVar("_Answer", rpc.WatchResponse, rpc.LeaseKeepAliveResponse)


class Fenced(EtcdError):
    """A guarded write was not done, because the guard holds no longer: this process leads no more."""


class _HistoryChanged(Exception):
    """What follows the last position cannot be told for certain: list again."""


class EtcdClient:
    """A connection to the etcd of this cluster; an async context manager.

    `endpoints` are URLs such as `http://127.0.0.1:2379`: the members of one etcd; ValueError for any other text. Every
    call but `follow` raises EtcdUnavailable when a server takes longer than `timeout`, and EtcdRefused.
    """

    def __init__(
        self, endpoints: tuple[str, ...], *, tls: EtcdTls | None = None, timeout: timedelta = timedelta(seconds=5)
    ) -> None:
        self._connection = Connection(endpoints, tls=tls)
        self._timeout = timeout

    @property
    def health(self) -> Health:
        """What this client's exchanges say of etcd."""
        return self._connection.health

    async def __aenter__(self) -> Self:
        await self._connection.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.__aexit__(kind, error, trace)

    async def get(self, key: str) -> KeyValue | None:
        """Returns a key, or None when there is no such key."""
        answer = await self._range(rpc.RangeRequest(key=encode_key(key)))
        return key_value(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str) -> Listing:
        """Returns all keys that begin with `prefix`."""
        listing, _ = await self._list(prefix)
        return listing

    async def put(self, key: str, value: bytes, *, lease: LeaseId = NO_LEASE, guard: Guard | None = None) -> int:
        """Writes a key and returns the revision of the write; raises Fenced when the guard does not hold."""
        return await self._write(Put(key, value, lease), guard)

    async def put_if_absent(self, key: str, value: bytes, *, lease: LeaseId = NO_LEASE) -> bool:
        """Writes a key that is not there yet; returns whether it did."""
        done = await self.transact([Guard(key, 0)], [Put(key, value, lease)])
        return done.succeeded

    async def delete(self, key: str, *, guard: Guard | None = None) -> int:
        """Removes a key if it is there and returns the revision; raises Fenced when the guard does not hold."""
        return await self._write(Delete(key), guard)

    async def transact(
        self, conditions: Sequence[Condition], on_success: Sequence[Operation], on_failure: Sequence[Operation] = ()
    ) -> Outcome:
        """Does `on_success` when all conditions hold, else `on_failure`; all at one moment.

        etcd takes at most 128 operations and 1.5 MiB, and no two writes of one key.
        """
        request = rpc.TxnRequest(
            compare=[compare(condition) for condition in conditions],
            success=[request_op(operation) for operation in on_success],
            failure=[request_op(operation) for operation in on_failure],
        )
        is_write = any(isinstance(operation, Put) for operation in (*on_success, *on_failure))
        async with self._exchange(Exchange.WRITE if is_write else Exchange.RENEWAL) as server:
            return outcome(await server.txn(request))

    async def grant_lease(self, ttl: timedelta) -> LeaseId:
        """Makes a lease: its keys vanish when it was not kept alive for `ttl`.

        etcd counts whole seconds (rounded up here) and makes a short lease longer: 2 s at its usual settings.
        """
        request = rpc.LeaseGrantRequest(TTL=ceil(ttl.total_seconds()))
        async with self._exchange(Exchange.WRITE) as server:
            return LeaseId((await server.lease_grant(request)).ID)

    async def keep_alive(self, lease: LeaseId) -> timedelta:
        """Renews a lease once and returns the time that it now lives; raises LeaseExpired."""

        async def requests() -> AsyncIterator[rpc.LeaseKeepAliveRequest]:
            yield rpc.LeaseKeepAliveRequest(ID=lease)

        async with self._exchange(Exchange.RENEWAL) as server:
            call = server.lease_keep_alive(requests(), metadata=REQUIRE_LEADER)
            try:
                answer = _received(await call.read(), rpc.LeaseKeepAliveResponse)
            finally:
                call.cancel()
        if answer.TTL <= 0:
            raise LeaseExpired(f"etcd knows no lease {lease:x}")
        return timedelta(seconds=answer.TTL)

    async def revoke(self, lease: LeaseId) -> None:
        """Ends a lease and removes its keys; a lease that is gone already is no error."""
        with suppress(LeaseExpired):
            async with self._exchange(Exchange.RENEWAL) as server:
                await server.lease_revoke(rpc.LeaseRevokeRequest(ID=lease))

    async def follow(self, prefix: str) -> AsyncGenerator[Listing | Event, None]:
        """Yields all keys under `prefix`, then every change, for ever.

        A Listing comes first, and again whenever the changes since the last item cannot be told for certain
        (compaction; etcd was restarted, lost data or was replaced): it replaces all that was known. Outages are waited
        out and never raised. Wrap it in `contextlib.aclosing`.
        """
        position: Position | None = None
        failures, is_interrupted, must_list = 0, False, False
        while True:
            try:
                if position is None:
                    listing, start = await self._list(prefix)
                elif must_list:
                    listing, start = await self._list_again(prefix, position)
                else:
                    listing, start = None, position
                async with self._watch(prefix, start) as (server, call, pulse):
                    if listing is None and not await self._stands(start.anchor):
                        raise _HistoryChanged
                    if is_interrupted:
                        log.info("etcd watch goes on", extra={"prefix": prefix})
                    failures, is_interrupted, must_list = 0, False, False
                    position = start
                    if listing is not None:
                        yield listing
                    while True:
                        for change in await self._changes(server, call, pulse):
                            position = position.after(change)
                            yield change
            except _HistoryChanged:
                must_list = True
            except EtcdError as error:
                if not is_interrupted:
                    log.warning("etcd watch interrupted", extra={"prefix": prefix, "reason": str(error)})
                is_interrupted = True
            await asyncio.sleep(min(_FIRST_PAUSE * 2**failures, _LONGEST_PAUSE))
            failures = min(failures + 1, 10)

    @asynccontextmanager
    async def _watch(self, prefix: str, start: Position) -> AsyncIterator[tuple[Server, _Watch, "_Pulse"]]:
        """Opens a watch of what comes after `start`; raises _HistoryChanged where that has lost its meaning.

        It must not hold a timeout or a task group over its `yield`: `follow` yields inside.
        """
        first, end = range_of(prefix)
        create = rpc.WatchCreateRequest(key=first, range_end=end, start_revision=start.revision + 1)
        server = self._connection.server
        ended, pulse = asyncio.Event(), _Pulse()
        call = server.watch(_watch_requests(create, ended, pulse), metadata=REQUIRE_LEADER)
        try:
            async with self._connection.exchange(server, self._timeout, Exchange.WATCH):
                created = _watched(await call.read())
            if not start.is_before(created.header):
                raise _HistoryChanged
            yield server, call, pulse
        finally:
            ended.set()
            call.cancel()

    async def _changes(self, server: Server, call: _Watch, pulse: "_Pulse") -> Sequence[Event]:
        """Returns the next changes of a watch: none when etcd only says that it lives.

        Such a sign of life is no proof of having received all before its revision: it does not move the position.
        """
        async with self._connection.exchange(server, _STALL, Exchange.WATCH):
            answer = _watched(await call.read())
        if not answer.events and (took := pulse.answered()) is not None:
            self.health.answered(Exchange.WATCH, took, now=datetime.now(UTC))
        return [event(message) for message in answer.events]

    async def _stands(self, anchor: KeyValue | None) -> bool | None:
        """Says whether `anchor` stands in etcd's history, at its revision and as it was seen; None: cannot be told."""
        if anchor is None:
            return None
        request = rpc.RangeRequest(key=encode_key(anchor.key), revision=anchor.mod_revision)
        try:
            answer = await self._range(request)
        except EtcdRefused:  # that revision is compacted, or still to come
            return None
        return [key_value(found) for found in answer.kvs] == [anchor]

    async def _list(self, prefix: str) -> tuple[Listing, Position]:
        first, end = range_of(prefix)
        answer = await self._range(rpc.RangeRequest(key=first, range_end=end))
        items = tuple(key_value(found) for found in answer.kvs)
        return Listing(answer.header.revision, items), Position.at(answer.header, items)

    async def _list_again(self, prefix: str, position: Position) -> tuple[Listing, Position]:
        """Lists for one who was at `position`, and says what has become of the history up to there."""
        listing, start = await self._list(prefix)
        is_other_history = start.cluster != position.cluster or start.revision < position.revision
        is_loss = is_other_history or await self._stands(position.anchor) is False
        if is_loss:
            self.health.lost(now=datetime.now(UTC))
        return structs.replace(listing, is_after_loss=is_loss), start

    async def _range(self, request: rpc.RangeRequest) -> rpc.RangeResponse:
        for _ in range(1, len(self._connection)):  # asking twice does no harm: ask each member
            with suppress(EtcdUnavailable):
                return await self._range_once(request)
        return await self._range_once(request)

    async def _range_once(self, request: rpc.RangeRequest) -> rpc.RangeResponse:
        async with self._exchange(Exchange.READ) as server:
            return await server.range(request)

    async def _write(self, operation: Put | Delete, guard: Guard | None) -> int:
        done = await self.transact([guard] if guard else [], [operation])
        if not done.succeeded:
            raise Fenced(f"{operation.key} was not written: {guard} holds no longer")
        return done.revision

    @asynccontextmanager
    async def _exchange(self, kind: Exchange) -> AsyncIterator[Server]:
        server = self._connection.server
        async with self._connection.exchange(server, self._timeout, kind):
            yield server


class _Pulse:
    """Measures how long etcd takes to say on a watch that it lives."""

    def __init__(self) -> None:
        self._asked: float | None = None

    def asks(self) -> None:
        """Notes that etcd is asked; of several questions without an answer the first one counts."""
        if self._asked is None:
            self._asked = asyncio.get_running_loop().time()

    def answered(self) -> timedelta | None:
        """Returns how long the answer took; None when nothing was asked."""
        asked, self._asked = self._asked, None
        return None if asked is None else timedelta(seconds=asyncio.get_running_loop().time() - asked)


async def _watch_requests(
    create: rpc.WatchCreateRequest, ended: asyncio.Event, pulse: _Pulse
) -> AsyncIterator[rpc.WatchRequest]:
    """Asks for a watch and then, each heartbeat, for a sign of life."""
    yield rpc.WatchRequest(create_request=create)
    while not ended.is_set():
        with suppress(TimeoutError):
            pause = _HEARTBEAT.total_seconds() * uniform(*_SPREAD)  # noqa: S311 - no secret
            async with asyncio.timeout(pause):
                await ended.wait()
        pulse.asks()
        yield rpc.WatchRequest(progress_request=rpc.WatchProgressRequest())


def _watched(message: object) -> rpc.WatchResponse:
    """Returns a message of a living watch; raises _HistoryChanged after a compaction, else EtcdUnavailable."""
    answer = _received(message, rpc.WatchResponse)
    if answer.canceled:
        if answer.compact_revision:
            raise _HistoryChanged
        raise EtcdUnavailable(f"etcd ended the watch: {answer.cancel_reason}")
    return answer


def _received(message: object, kind: type[_Answer]) -> _Answer:
    if not isinstance(message, kind):  # aio.EOF
        raise EtcdUnavailable("etcd ended the stream")
    return message
