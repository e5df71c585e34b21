"""Carries delta xDS streams over grpc.aio: the shell around `protocol`, for Envoy and for peers alike."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Protocol

import grpc
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from federation.xds.protocol import DeltaStream, Push, Reply
from federation.xds.resources import ResourceSet, TypeUrl

ADS_SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"

SERVER_OPTIONS: tuple[tuple[str, int], ...] = ()
"""Options that every grpc.aio server of ours needs (`grpc.aio.server(options=SERVER_OPTIONS)`)."""

ServicerContext = grpc.aio.ServicerContext[DeltaDiscoveryRequest, bytes]


class Refused(Exception):
    """The other side may not have a stream; the message is told to it."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unauthenticated(Refused):
    """The other side did not prove who it is."""

    code = grpc.StatusCode.UNAUTHENTICATED


class StreamObserver(Protocol):
    """Who is told what happens on a stream, as it happens."""

    def pushed(self, push: Push) -> None: ...
    def replied(self, reply: Reply) -> None: ...
    def stalled(self, types: tuple[TypeUrl, ...]) -> None: ...


async def read_first(context: ServicerContext) -> DeltaDiscoveryRequest:
    """Returns the first request of a stream, the one with the node; raises Refused when none comes in time."""
    raise NotImplementedError


async def serve_stream(
    context: ServicerContext,
    first: DeltaDiscoveryRequest,
    *,
    stream: DeltaStream,
    feed: AsyncIterator[ResourceSet],
    observer: StreamObserver | None = None,
    settle_limit: timedelta = timedelta(seconds=10),
) -> None:
    """Serves one stream until the client ends it or `feed` does.

    `feed` is asked for the next set whenever it was taken; it must wait until there is something newer, and give the
    latest, not every one. A push that nobody answers within `settle_limit` holds back the others no longer.
    """
    raise NotImplementedError


def delta_handler(
    service: str, method: str, behaviour: Callable[[ServicerContext], Awaitable[None]]
) -> grpc.GenericRpcHandler:
    """Returns the handler of one delta method: `async behaviour(context)`, which writes encoded responses.

    A behaviour that raises Refused ends the stream with that status and message.
    """
    raise NotImplementedError
