"""One stream to one peer, through one of its gateways, until it ends or falls silent.

Three tasks: one reads (so that signs of life are never held up by etcd), one keeps what came, one writes the answers.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

import grpc
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from federation.etcd import EtcdRefused, EtcdUnavailable
from federation.peering.dialing import LARGEST_RESPONSE
from federation.peering.exports import LONGEST_VERSION
from federation.peering.farewells import Overtaken
from federation.peering.freshness import LONGEST_SILENCE
from federation.peering.offer import FEDERATION_METHOD, FEDERATION_SERVICE
from federation.xds.client import DeltaClient, InvalidResponse, Received
from federation.xds.resources import TypeUrl

TYPES = (
    TypeUrl.MEMBER,
    TypeUrl.EXPORT,
    TypeUrl.BEAT,
    TypeUrl.TRUST_BUNDLE,
    TypeUrl.TRUST_STATEMENT,
    TypeUrl.TRUST_GRANT,
)
"""What is asked of a peer; one that does not know a type says nothing about it."""

_MOST_WAITING = 8
"""Responses not kept yet. A peer sends one of a type and waits for the answer: more is no peer of ours. Together they
have no more bytes than one response may have."""

NOT_UNDERSTOOD = "not understood: "
"""Begins the reason of an end that is the peer's fault."""
_TOO_LARGE = "CLIENT: Received message larger than max"  # in what gRPC says of a message that it did not read

_UNSAID = "Internal error from Core"
"""What grpc.aio says, instead of the real status, when something was written to a stream that had just ended."""

Call = grpc.aio.StreamStreamCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]
Keep = Callable[[Received], Awaitable[str]]
"""Takes what came; returns why it is refused, or nothing."""


async def listen(
    channel: grpc.aio.Channel,
    *,
    node: Node,
    held: Mapping[TypeUrl, Mapping[str, str]],
    silence: timedelta,
    on_sign: Callable[[], None],
    keep: Keep,
    ends: Callable[[], Awaitable[str]],
) -> str:
    """Listens until the stream ends and returns why it did.

    `held` are the versions that we have, by type and name; `silence` is how long the peer may say nothing; `on_sign` is
    called at each sign of life; what `keep` raises is raised, but for an etcd that is away, and for a peer that is
    overtaken, which end the stream. So does `ends` when it returns, with its reason.
    """
    method = channel.stream_stream(
        f"/{FEDERATION_SERVICE}/{FEDERATION_METHOD}",
        request_serializer=DeltaDiscoveryRequest.SerializeToString,
        response_deserializer=DeltaDiscoveryResponse.FromString,
    )
    call: Call = method()
    session = _Session(call, silence.total_seconds(), on_sign, keep)
    session.open(node, held)
    try:
        async with asyncio.TaskGroup() as tasks:
            # That a stream ends is no error: each part returns why. Errors would hide a cancellation that comes at the
            # same moment (a TaskGroup of Python 3.11 then raises the errors alone), and this task would never end.
            parts = [
                tasks.create_task(part) for part in (session.read(), session.write(), session.keep_all(), _await(ends))
            ]
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in parts:
                part.cancel()
        return "; ".join(part.result() for part in done)
    finally:
        call.cancel()


async def _await(ends: Callable[[], Awaitable[str]]) -> str:
    return await ends()


class _Session:
    """What the three tasks of one stream share. Each runs until the stream ends, and returns why."""

    def __init__(self, call: Call, silence: float, on_sign: Callable[[], None], keep: Keep) -> None:
        self._call = call
        self._silence = silence  # seconds
        self._on_sign = on_sign
        self._keep = keep
        self._client = DeltaClient(TYPES)
        self._incoming: asyncio.Queue[Received] = asyncio.Queue(_MOST_WAITING)
        self._outgoing: asyncio.Queue[DeltaDiscoveryRequest] = asyncio.Queue()
        self._rest: list[DeltaDiscoveryRequest] = []
        self._waiting_bytes = 0

    def open(self, node: Node, held: Mapping[TypeUrl, Mapping[str, str]]) -> None:
        first, *self._rest = self._client.open(held, node)
        self._outgoing.put_nowait(first)

    async def read(self) -> str:
        while True:
            try:
                async with asyncio.timeout(self._silence):
                    response = await self._call.read()
            except TimeoutError:
                return f"silent for {self._silence:g} s"
            except grpc.aio.AioRpcError as error:
                if _TOO_LARGE in (error.details() or ""):
                    return f"{NOT_UNDERSTOOD}a response of more than {LARGEST_RESPONSE} bytes"
                return _say(error.code(), error.details())
            if not isinstance(response, DeltaDiscoveryResponse):
                return f"ended by the peer: {await self._status()}"
            self._on_sign()
            # Not before: a peer that refuses us does so at the first request, and gRPC forgets what it said when
            # another one is written to a stream that it has ended.
            while self._rest:
                self._outgoing.put_nowait(self._rest.pop(0))
            try:
                received = self._client.receive(response)
                if any(len(resource.version) > LONGEST_VERSION for resource in received.upserts):
                    return f"{NOT_UNDERSTOOD}a version of more than {LONGEST_VERSION} characters"
                if received.type_url is TypeUrl.BEAT:
                    self._client.acknowledge(received)  # nobody waits for the answer to a beat
                    if len(self._client.held[TypeUrl.BEAT]) > 1:
                        return f"{NOT_UNDERSTOOD}the beat of more than one cluster"
                else:
                    self._incoming.put_nowait(received)
                    self._waiting_bytes += _size(received)
                    if self._waiting_bytes > LARGEST_RESPONSE:
                        return f"{NOT_UNDERSTOOD}it sends without waiting for answers"
            except InvalidResponse as error:
                return f"{NOT_UNDERSTOOD}{error}"
            except asyncio.QueueFull:
                return f"{NOT_UNDERSTOOD}it sends without waiting for answers"

    async def keep_all(self) -> str:
        while True:
            received = await self._incoming.get()
            try:
                refusal = await self._keep(received)
                self._waiting_bytes -= _size(received)
            except (EtcdUnavailable, EtcdRefused, Overtaken) as error:
                return str(error)
            answer = self._client.reject(received, refusal) if refusal else self._client.acknowledge(received)
            self._outgoing.put_nowait(answer)

    async def write(self) -> str:
        while True:
            request = await self._outgoing.get()
            try:
                async with asyncio.timeout(LONGEST_SILENCE.total_seconds()):
                    await self._call.write(request)
            except TimeoutError:
                return f"takes nothing for {LONGEST_SILENCE.total_seconds():g} s"
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await asyncio.get_running_loop().create_future()  # the stream is over: the reader says why

    async def _status(self) -> str:
        try:
            async with asyncio.timeout(LONGEST_SILENCE.total_seconds()):
                return _say(await self._call.code(), await self._call.details())
        except TimeoutError:
            return "without a status"


def _size(received: Received) -> int:
    return sum(len(resource.name) + len(resource.body) for resource in received.upserts) + sum(
        map(len, received.removed)
    )


def _say(code: grpc.StatusCode, details: str | None) -> str:
    if code is grpc.StatusCode.INTERNAL and details == _UNSAID:
        return "the connection broke"
    name = code.name.lower().replace("_", " ")
    return f"{name}: {details}" if details else name
