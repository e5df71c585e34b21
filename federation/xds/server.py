"""Carries delta xDS streams over grpc.aio: the shell around `protocol`, for Envoy and for peers alike.

Three tasks live as long as a stream: one reads requests, one follows the feed of resource sets, one writes what is due.
They share the state machine and an event; nothing is queued, so a slow client gets the latest and not everything.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any, Protocol

import grpc
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from federation.xds.protocol import DeltaStream, Push, Reply
from federation.xds.resources import ResourceSet, TypeUrl

ADS_SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    # Two servers on one port would share it in silence; the second shall fail.
    ("grpc.so_reuseport", 0),
    # A whole configuration may be larger than the default of 4 MB, and could then never be delivered.
    ("grpc.max_send_message_length", -1),
    # A request is read before it is known who asks. Of an Envoy that comes back it names all that it has: 100,000
    # resources are some 20 MB.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # After a restart thousands of proxies come back at once; those beyond the default of 1,000 would be cancelled.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # Envoy pings every second, also without traffic; by default gRPC calls that an attack and closes.
    ("grpc.http2.min_ping_interval_without_data_ms", 100),
    ("grpc.http2.max_ping_strikes", 0),
    # A client that is frozen or cut off is noticed after 15 seconds (milliseconds here). The kernel of a frozen one
    # goes on confirming bytes, and with that gRPC is content for a minute: only the last of these asks for an answer.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
)
"""Options that every grpc.aio server of ours needs (`grpc.aio.server(options=SERVER_OPTIONS)`)."""
_PATIENCE = ("grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")

_FIRST_REQUEST_LIMIT = timedelta(seconds=10)
_WRITE_LIMIT = timedelta(seconds=30)
_STALLED_PATIENCE = 0.1  # of the settle limit: while a type is stalled, its later answers seldom come either

ServicerContext = grpc.aio.ServicerContext[DeltaDiscoveryRequest, bytes]


def patient_options(patience: timedelta) -> tuple[tuple[str, int], ...]:
    """Returns SERVER_OPTIONS for clients that may leave a ping unanswered for `patience`."""
    waits = round(patience / timedelta(milliseconds=1))
    return tuple((name, waits if name in _PATIENCE else value) for name, value in SERVER_OPTIONS)


class Refused(Exception):
    """The other side may not have a stream, or not any longer; the message is told to it."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unauthenticated(Refused):
    """The other side did not prove who it is."""

    code = grpc.StatusCode.UNAUTHENTICATED


class Unavailable(Refused):
    """The other side is welcome, later."""

    code = grpc.StatusCode.UNAVAILABLE


class Exhausted(Refused):
    """The other side has as many streams as it may have."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class StreamObserver(Protocol):
    """Who is told what happens on a stream, as it happens."""

    def pushed(self, push: Push) -> None: ...
    def replied(self, reply: Reply) -> None: ...
    def stalled(self, types: tuple[TypeUrl, ...]) -> None: ...


async def read_first(context: ServicerContext) -> DeltaDiscoveryRequest:
    """Returns the first request of a stream, the one with the node; raises Refused when none comes in time."""
    try:
        async with asyncio.timeout(_FIRST_REQUEST_LIMIT.total_seconds()):
            request = await context.read()
    except TimeoutError:
        raise Refused("no request came") from None
    if not isinstance(request, DeltaDiscoveryRequest):
        raise Refused("the stream ended before its first request")
    return request


async def serve_stream(
    context: ServicerContext,
    first: DeltaDiscoveryRequest,
    *,
    stream: DeltaStream,
    feed: AsyncIterator[ResourceSet],
    observer: StreamObserver | None = None,
    settle_limit: timedelta = timedelta(seconds=10),
) -> None:
    """Serves one stream until the client ends it or `feed` does. Raises Refused (in a group) if it does not read.

    `feed` is asked for the next set whenever it was taken; it must wait until there is something newer, and give the
    latest, not every one. A push that nobody answers within `settle_limit` holds back the others no longer.
    """
    carrier = _Carrier(context, stream, observer, settle_limit)
    carrier.take(first)
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(carrier.read())
        following = group.create_task(carrier.follow(feed))
        writing = group.create_task(carrier.write())
        await asyncio.wait((reading, following, writing), return_when=asyncio.FIRST_COMPLETED)
        for task in (reading, following, writing):
            task.cancel()


def delta_handler(
    service: str, method: str, behaviour: Callable[[ServicerContext], Awaitable[None]]
) -> grpc.GenericRpcHandler:
    """Returns the handler of one delta method: `async behaviour(context)`, as for `stream_handler`."""
    return stream_handler(service, method, behaviour, read=DeltaDiscoveryRequest.FromString)


def stream_handler(
    service: str,
    method: str,
    behaviour: Callable[[grpc.aio.ServicerContext[Any, bytes]], Awaitable[None]],
    *,
    read: Callable[[bytes], object] | None = None,
) -> grpc.GenericRpcHandler:
    """Returns the handler of one bidirectional method: `async behaviour(context)`, which writes encoded responses.

    Requests are what `read` makes of them, bytes without it. A behaviour that raises Refused ends the stream with that
    status and message.
    """

    async def serve(_: AsyncIterator[object], context: grpc.aio.ServicerContext[Any, bytes]) -> None:
        refusal: Refused | None = None
        try:
            await behaviour(context)
        except* Refused as group:
            refusal = _first_leaf(group)
        if refusal is not None:
            await context.abort(refusal.code, str(refusal))

    handler: grpc.RpcMethodHandler[Any, bytes] = grpc.stream_stream_rpc_method_handler(
        serve,
        request_deserializer=read,
        response_serializer=None,  # responses are bytes already
    )
    return grpc.method_handlers_generic_handler(service, {method: handler})


class _Carrier:
    """The three tasks of one stream, and what they share."""

    def __init__(
        self, context: ServicerContext, stream: DeltaStream, observer: StreamObserver | None, settle_limit: timedelta
    ) -> None:
        self._context = context
        self._stream = stream
        self._observer = observer
        self._settle_limit = settle_limit.total_seconds()
        self._news = asyncio.Event()
        self._began = asyncio.get_running_loop().time()
        self._sent_at: dict[str, float] = {}  # loop time by nonce

    def take(self, request: DeltaDiscoveryRequest) -> None:
        reply = self._stream.receive(request)
        if self._observer is not None:
            self._observer.replied(reply)
        self._news.set()

    async def read(self) -> None:
        # No deadline: a client may be content for days. Whether it still lives is seen by HTTP/2 keepalive.
        while isinstance(request := await self._context.read(), DeltaDiscoveryRequest):
            self.take(request)

    async def follow(self, feed: AsyncIterator[ResourceSet]) -> None:
        async for resources in feed:
            self._stream.offer(resources)
            self._news.set()

    async def write(self) -> None:
        while True:
            self._news.clear()
            try:
                for push in self._stream.due():
                    await self._send(push)
            except grpc.aio.InternalError:
                return  # the stream ended under a write: grpc does not always say so by a cancellation
            try:
                async with asyncio.timeout_at(self._deadline()):
                    await self._news.wait()
            except TimeoutError:
                self._sent_at.clear()
                types = self._stream.unblock()
                if self._observer is not None:
                    self._observer.stalled(types)

    async def _send(self, push: Push) -> None:
        self._sent_at[push.nonce] = asyncio.get_running_loop().time()
        if self._observer is not None:
            self._observer.pushed(push)
        try:
            async with asyncio.timeout(_WRITE_LIMIT.total_seconds()):
                await self._context.write(push.body)
        except TimeoutError:
            raise Unavailable("nobody reads what is sent") from None

    def _deadline(self) -> float | None:
        """Returns the loop time at which the oldest unanswered response is given up; None when there is none."""
        unanswered = {nonce for _, nonce in self._stream.unanswered}
        self._sent_at = {nonce: at for nonce, at in self._sent_at.items() if nonce in unanswered}
        if not self._stream.is_waiting:
            return None
        limit = self._settle_limit * (_STALLED_PATIENCE if self._stream.stalled else 1)
        return min(self._sent_at.values(), default=self._began) + limit


def _first_leaf(group: BaseExceptionGroup[Refused]) -> Refused:
    leaf = group.exceptions[0]
    return _first_leaf(leaf) if isinstance(leaf, BaseExceptionGroup) else leaf
