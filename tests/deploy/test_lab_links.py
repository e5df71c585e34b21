"""Links between clusters: open, slow, silent, refusing, healed."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from deploy.lab.links import Link, LinkState, Pair
from federation.model import GatewayAddress
from tests.support.serving import serve_tcp

PATIENCE = 60.0  # seconds
NEAR, FAR = GatewayAddress("127.106.1.3", 20020), GatewayAddress("127.106.2.20", 15443)


class Done(Exception):
    """Leaves the group that runs a link."""


@asynccontextmanager
async def linked(delay: timedelta = timedelta()) -> AsyncIterator[Link]:
    """A link to an echo server that answers each line and ends when its caller does."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(b"echo " + line)
                await writer.drain()
            writer.write(b"bye\n")
        except OSError:
            return
        finally:
            writer.close()

    link = Link([Pair(NEAR, FAR)], delay)
    async with serve_tcp(echo, FAR.address, FAR.port, limit=2**25):
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(link.run())
                await link.wait_listening()
                async with asyncio.timeout(PATIENCE):
                    yield link
                raise Done
        except* Done:
            pass


async def call() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(NEAR.address, NEAR.port, limit=2**25)


async def ask(stream: tuple[asyncio.StreamReader, asyncio.StreamWriter], text: bytes) -> bytes:
    reader, writer = stream
    writer.write(text + b"\n")
    await writer.drain()
    return await reader.readline()


async def test_bytes_and_the_end_of_a_stream_pass() -> None:
    async with linked():
        stream = await call()
        assert await ask(stream, b"one") == b"echo one\n"
        stream[1].write_eof()
        assert await stream[0].read() == b"bye\n"  # half closed: the other direction still speaks
        stream[1].close()


async def test_much_passes_whole() -> None:
    async with linked(timedelta(milliseconds=1)):
        stream = await call()
        big = bytes(range(32, 127)) * 100_000
        assert await ask(stream, big) == b"echo " + big + b"\n"
        stream[1].close()


async def test_a_slow_link_delays_both_directions() -> None:
    async with linked(timedelta(milliseconds=60)):
        stream = await call()
        began = time.monotonic()
        assert await ask(stream, b"one") == b"echo one\n"
        assert time.monotonic() - began >= 0.12  # what it must do at least; how much more is the machine's business
        stream[1].close()


async def test_a_silent_link_swallows_and_gives_back_after_healing() -> None:
    async with linked() as link:
        old = await call()
        assert await ask(old, b"one") == b"echo one\n"
        await link.set(LinkState.SILENT)
        assert link.state is LinkState.SILENT
        new = await call()  # it is taken, and nobody speaks
        for stream, text in ((old, b"two"), (new, b"three")):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await ask(stream, text)
        await link.set(LinkState.OPEN)
        assert await old[0].readline() == b"echo two\n"
        assert await new[0].readline() == b"echo three\n"
        for stream in (old, new):
            stream[1].close()


@pytest.mark.parametrize("before", [LinkState.OPEN, LinkState.SILENT])
async def test_a_refusing_link_resets_and_refuses_until_healed(before: LinkState) -> None:
    async with linked() as link:
        old = await call()
        assert await ask(old, b"one") == b"echo one\n"
        await link.set(before)
        await link.set(LinkState.REFUSING)
        with pytest.raises(ConnectionResetError):
            await ask(old, b"two")
        with pytest.raises(ConnectionRefusedError):
            await call()
        await link.set(LinkState.OPEN)
        new = await call()
        assert await ask(new, b"three") == b"echo three\n"
        for stream in (old, new):
            stream[1].close()


async def test_a_target_that_is_down_resets_the_caller_and_may_come_back() -> None:
    link = Link([Pair(GatewayAddress("127.106.1.3", 20030), GatewayAddress("127.106.2.21", 15443))], timedelta())
    try:
        async with asyncio.TaskGroup() as group, asyncio.timeout(PATIENCE):
            group.create_task(link.run())
            await link.wait_listening()
            reader, writer = await asyncio.open_connection("127.106.1.3", 20030)
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            writer.close()
            raise Done
    except* Done:
        pass
