"""The entrance for proxies and peers: it ends their streams, and refuses new ones, while they are handed over.

The others are asked over their admin ports (`/healthz/etcd`), and only while this replica is cut from etcd.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from secrets import SystemRandom
from typing import Any

import aiohttp
import grpc

from deploy.control.handover import STEADY, Handover, Sight
from federation.etcd.health import Health
from federation.model import CONTROL_ADMIN_PORT
from federation.names import host_port

log = logging.getLogger(__name__)

_LOOK_EVERY = timedelta(seconds=0.5)
_ASK_LIMIT = timedelta(seconds=1)  # for an answer of another replica
_SPREAD = timedelta(seconds=1)  # within which streams end: not all proxies are to come to the others at one moment
_FIRST_LIMIT = timedelta(seconds=5)

_ELSEWHERE = "this replica is cut from etcd: another one serves"

_Behaviour = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Coroutine[Any, Any, None]]


class Entrance(grpc.aio.ServerInterceptor):
    """The interceptor of the servers for proxies and peers. `run` looks whether it is open."""

    def __init__(self, health: Health, others: Sequence[str]) -> None:
        """`health` is that of etcd as this replica sees it, `others` are the addresses of the other replicas."""
        self._health = health
        self._others = tuple(others)
        self._handover = Handover()
        self._handed_over = asyncio.Event()
        self._since: datetime | None = None

    @property
    def handed_over_since(self) -> datetime | None:
        """Since when proxies and peers are left to other replicas; None while they are served."""
        return self._since

    @property
    def is_steady(self) -> bool:
        """Says whether other replicas may leave their proxies and peers to this one."""
        return self._since is None and self._health.followed_for(datetime.now(UTC)) >= STEADY

    async def run(self) -> None:
        """Looks for ever; without other replicas there is nothing to look for."""
        if not self._others:
            return
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_ASK_LIMIT.total_seconds())) as http:
            while True:
                await self._look(http)
                await asyncio.sleep(_LOOK_EVERY.total_seconds())

    async def _look(self, http: aiohttp.ClientSession) -> None:
        is_vouched = False
        if self._handover.needs_others(self._health.cut_off_for(datetime.now(UTC))):
            async with asyncio.TaskGroup() as group:
                asking = [group.create_task(_is_steady(http, address)) for address in self._others]
            is_vouched = any(task.result() for task in asking)
        now = datetime.now(UTC)
        sight = Sight(self._health.cut_off_for(now), self._health.followed_for(now), is_vouched)
        is_over = self._handover.look(sight, asyncio.get_running_loop().time())
        if is_over and self._since is None:
            self._since = now
            self._handed_over.set()
            log.warning("proxies and peers are handed over", extra={"cut_off": sight.cut_off.total_seconds()})
        elif not is_over and self._since is not None:
            self._since = None
            self._handed_over.clear()
            log.info("proxies and peers are served again", extra={"is_vouched": is_vouched})

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":  # quoted: in running code it is not generic
        """Stands before what serves a stream."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.stream_stream is None:
            return handler
        behaviour: _Behaviour = handler.stream_stream  # type: ignore[assignment]  # typed as if it were not of grpc.aio

        async def serve(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            if self._handed_over.is_set():
                await _hear(context)
            elif not await self._ends(behaviour(requests, context)):
                return
            await context.abort(grpc.StatusCode.UNAVAILABLE, _ELSEWHERE)

        return grpc.stream_stream_rpc_method_handler(
            serve,
            handler.request_deserializer,
            handler.response_serializer,
        )

    async def _ends(self, serving: Coroutine[Any, Any, None]) -> bool:
        """Serves a stream; returns whether it ends because it is handed over, and not of itself."""
        is_over = False
        try:
            async with asyncio.TaskGroup() as group:
                served, leaving = group.create_task(serving), group.create_task(self._leave())
                await asyncio.wait((served, leaving), return_when=asyncio.FIRST_COMPLETED)
                is_over = not served.done()
                served.cancel()
                leaving.cancel()
        except* grpc.aio.AbortError:
            pass  # the stream was ended with a status: that has been sent, and gRPC remembers it
        return is_over

    async def _leave(self) -> None:
        """Returns at a moment of its own once this replica has handed over, unless it serves again by then."""
        while True:
            await self._handed_over.wait()
            await asyncio.sleep(SystemRandom().uniform(0, _SPREAD.total_seconds()))
            if self._handed_over.is_set():
                return


async def _hear(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Waits for a first request: who is refused while it still writes is not told why (gRPC)."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_FIRST_LIMIT.total_seconds()):
            await context.read()


async def _is_steady(http: aiohttp.ClientSession, address: str) -> bool:
    """Asks another replica whether it would serve our proxies and peers; one that does not answer would not."""
    try:
        async with http.get(f"http://{host_port(address, CONTROL_ADMIN_PORT)}/healthz/etcd") as response:
            return response.status == HTTPStatus.OK
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False
