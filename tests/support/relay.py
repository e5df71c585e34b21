"""A TCP relay between a client and a server under test: the network that can be cut, or turn into a black hole."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from tests.support.addresses import free_address
from tests.support.serving import serve_tcp

_CHUNK = 65536  # bytes


class Relay:
    """Listens on `address`:`port` and passes every connection on to its target."""

    def __init__(self, target: tuple[str, int], address: str, port: int) -> None:
        self.address, self.port = address, port
        self.brought = 0
        """Bytes that came from the target."""
        self._target = target
        self._listening: AsyncExitStack | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()

    async def open(self) -> None:
        """Accepts connections, and lets them flow."""
        self._flows.set()
        if self._listening is None:
            self._listening = AsyncExitStack()
            await self._listening.enter_async_context(serve_tcp(self._serve, self.address, self.port))

    def lead_to(self, address: str) -> None:
        """Passes new connections on to another address, on the same port."""
        self._target = (address, self._target[1])

    async def cut(self) -> None:
        """Resets all connections and refuses new ones."""
        self._flows.set()
        self.drop()
        listening, self._listening = self._listening, None
        if listening is not None:
            await listening.aclose()

    def drop(self) -> None:
        """Resets all connections; new ones are accepted."""
        for writer in tuple(self._connections):
            writer.transport.abort()

    def freeze(self) -> None:
        """Accepts everything and passes nothing on: a black hole. `open` lets all of it arrive."""
        self._flows.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            self._connections.add(far_writer)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, far_writer))
                    group.create_task(self._pump(far_reader, writer, is_answer=True))
            finally:
                far_writer.transport.abort()
                self._connections.discard(far_writer)
        finally:
            writer.transport.abort()
            self._connections.discard(writer)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool = False
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                self.brought += len(data) * is_answer
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@asynccontextmanager
async def start_relay(target: tuple[str, int], *, port: int = 2379) -> AsyncIterator[Relay]:
    """Runs a relay to `target` on a loopback address of its own."""
    relay = Relay(target, free_address(), port)
    await relay.open()
    try:
        yield relay
    finally:
        await relay.cut()
