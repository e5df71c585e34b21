"""The links between the clusters of a lab: relays that can be slow, silent or refusing.

Cluster A reaches the gateways of cluster B at addresses of its own, where a relay listens and passes bytes on. A link
is what two clusters share: to cut it, both sides' relays are told.

    OPEN      bytes pass, each after half the link's round trip
    SILENT    a black hole: connections are taken and nothing moves; what was on its way arrives after the healing
    REFUSING  nobody listens and what is open is reset
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum

import msgspec

from federation.model import GatewayAddress

_CHUNK = 65_536  # bytes of one read
_IN_FLIGHT = 16 * 1024 * 1024  # bytes that a slow direction holds, the outer stream window of a gateway tunnel
_CONNECT = timedelta(seconds=5)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with zero seconds: closing sends RST


class LinkState(StrEnum):
    """What a link does with bytes."""

    OPEN = "open"
    SILENT = "silent"
    REFUSING = "refusing"


class Pair(msgspec.Struct, frozen=True):
    """One listening address and where it leads."""

    listen: GatewayAddress
    target: GatewayAddress


class Link:
    """All relays between two clusters, in both directions. `delay` is for one direction."""

    def __init__(self, pairs: Sequence[Pair], delay: timedelta) -> None:
        self._pairs = tuple(pairs)
        self._delay = delay.total_seconds()
        self._state = LinkState.OPEN
        self._changed = asyncio.Event()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._settled = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def state(self) -> LinkState:
        """What the link does now."""
        return self._state

    async def run(self) -> None:
        """Relays until cancelled. Raises OSError when an address cannot be bound."""
        servers: list[asyncio.Server] = []
        async with asyncio.TaskGroup() as group:
            try:
                while True:
                    self._changed.clear()
                    if self._state is LinkState.REFUSING:
                        _close(servers)
                        for writer in tuple(self._writers):
                            _reset(writer)
                    elif not servers:
                        servers = await self._listen(group)
                    self._settled.set()
                    await self._changed.wait()
            finally:
                _close(servers)

    async def set(self, state: LinkState) -> None:
        """Changes what the link does and returns when it is so."""
        if state is self._state:
            return
        self._state = state
        if state is LinkState.SILENT:
            self._flowing.clear()
        else:
            self._flowing.set()
        self._settled.clear()
        self._changed.set()
        await self._settled.wait()

    async def wait_listening(self) -> None:
        """Waits until the relays listen."""
        await self._settled.wait()

    async def _listen(self, group: asyncio.TaskGroup) -> list[asyncio.Server]:
        servers = []
        for pair in self._pairs:

            def accept(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: GatewayAddress = pair.target
            ) -> None:
                group.create_task(self._relay(reader, writer, target))

            servers.append(await asyncio.start_server(accept, pair.listen.address, pair.listen.port, limit=_CHUNK))
        return servers

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: GatewayAddress) -> None:
        """Connects one caller with the target until both directions have ended or one is broken."""
        self._writers.add(writer)
        try:
            await self._flowing.wait()
            async with asyncio.timeout(_CONNECT.total_seconds()):
                far_reader, far_writer = await asyncio.open_connection(target.address, target.port, limit=_CHUNK)
        except (OSError, TimeoutError):
            _reset(writer)  # the target is down: say so to the caller
            self._writers.discard(writer)
            return
        self._writers.add(far_writer)
        try:
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._pass_on(reader, far_writer))
                directions.create_task(self._pass_on(far_reader, writer))
        except* OSError:
            # one side broke off: so must the other
            _reset(writer)
            _reset(far_writer)
        finally:
            for each in (writer, far_writer):
                self._writers.discard(each)
                each.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Moves bytes of one direction, and its end, each after the delay."""
        line = _DelayLine(self._delay)
        async with asyncio.TaskGroup() as group:
            group.create_task(line.fill(reader))
            while True:
                chunk = await line.take()
                await self._flowing.wait()
                if not chunk:
                    if writer.can_write_eof():
                        writer.write_eof()
                    return
                writer.write(chunk)
                await writer.drain()


class _DelayLine:
    """Bytes on their way: each chunk may be taken `delay` seconds after it came; `b""` is the end."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._came = asyncio.Event()
        self._left = asyncio.Event()

    async def fill(self, reader: asyncio.StreamReader) -> None:
        """Reads until the end; stops reading while too much is on its way, so that the sender feels it."""
        now = asyncio.get_running_loop().time
        while True:
            chunk = await reader.read(_CHUNK)
            self._chunks.append((now() + self._delay, chunk))
            self._size += len(chunk)
            self._came.set()
            if not chunk:
                return
            while self._size > _IN_FLIGHT:
                self._left.clear()
                await self._left.wait()

    async def take(self) -> bytes:
        """Waits for the next chunk to arrive."""
        while not self._chunks:
            self._came.clear()
            await self._came.wait()
        due, chunk = self._chunks.popleft()
        self._size -= len(chunk)
        self._left.set()
        wait = due - asyncio.get_running_loop().time()
        if wait > 0:
            await asyncio.sleep(wait)
        return chunk


def _reset(writer: asyncio.StreamWriter) -> None:
    """Breaks a connection off with RST."""
    plain = writer.get_extra_info("socket")
    if plain is not None and not writer.is_closing():
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()


def _close(servers: list[asyncio.Server]) -> None:
    while servers:
        servers.pop().close()
