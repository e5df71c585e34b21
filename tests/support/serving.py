"""TCP servers of tests, whose connections end with them."""

import asyncio
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

    A server of asyncio leaves connections open whose handler is cancelled before it began; `limit` is in bytes.
    """
    open_now: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                await handle(reader, writer)
        finally:
            open_now.pop(writer)

    async with asyncio.TaskGroup() as group:

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if server.is_serving():
                open_now[writer] = group.create_task(run(reader, writer))
            else:
                writer.transport.abort()

        server = await asyncio.start_server(accept, address, port, ssl=ssl, limit=limit)
        try:
            yield
        finally:
            server.close()
            for writer in tuple(open_now):
                writer.transport.abort()
            # Most handlers end by that. One that is cancelled in the middle of a handshake leaves its TLS open.
            if open_now:
                await asyncio.wait(open_now.values(), timeout=_GRACE)
            for task in open_now.values():
                task.cancel()
