"""TCP servers of tests, whose connections end with them."""

import asyncio
import socket
import ssl as tls
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

_GRACE = 1  # seconds
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serve_tcp(
    handle: Handler, address: str, port: int, *, ssl: tls.SSLContext | None = None, limit: int = 2**16
) -> AsyncIterator[None]:
    """Lets `handle` serve each connection of `address`:`port`. What is open at the end is reset, and its handler ended.

    The sockets are ours from the first moment to the last: a server of asyncio (3.11) leaves those open that come as it
    closes, or whose handler is cancelled before it began. `limit` is in bytes.
    """
    loop = asyncio.get_running_loop()
    taken: dict[asyncio.Task[None], socket.socket] = {}
    writers: set[asyncio.StreamWriter] = set()

    async def run(near: socket.socket) -> None:
        reader = asyncio.StreamReader(limit=limit)
        protocol = asyncio.StreamReaderProtocol(reader)
        with suppress(OSError):
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, near, ssl=ssl)
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            writers.add(writer)
            try:
                await handle(reader, writer)
            except BaseException:
                writer.transport.abort()
                raise
            finally:
                writers.discard(writer)

    def ended(task: asyncio.Task[None]) -> None:
        if task.cancelled():  # perhaps before it began: nobody else knows of the socket then
            taken[task].close()
        del taken[task]

    async with asyncio.TaskGroup() as group:

        def take() -> None:
            with suppress(OSError):
                near, _ = listening.accept()
                near.setblocking(False)
                task = group.create_task(run(near))
                taken[task] = near
                task.add_done_callback(ended)

        with socket.create_server((address, port), backlog=100) as listening:
            listening.setblocking(False)
            loop.add_reader(listening, take)
            try:
                yield
            finally:
                loop.remove_reader(listening)
                for writer in writers:
                    writer.transport.abort()
        # Most handlers end by that. One that is cancelled in the middle of a handshake leaves its TLS open.
        if taken:
            await asyncio.wait(taken, timeout=_GRACE)
        for task in taken:
            task.cancel()
