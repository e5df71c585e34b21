"""Programs that know nothing of a mesh: a server, and a client that holds a gRPC stream and a TCP connection open.

echo.py serve ADDRESS CLUSTER SICK     HTTP on 8080 (503 while the file SICK exists), gRPC on 50052, TCP on 7000
echo.py hold TARGET LINES FILE STOP    keeps a gRPC stream to TARGET and a TCP connection to LINES busy until the
                                       file STOP exists; FILE tells all the time how that goes
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
from aiohttp import web

STREAM = "/test.Echo/Both"
_BEAT = 0.1  # seconds between two messages


class Echo(grpc.GenericRpcHandler):
    def __init__(self, name: str) -> None:
        self._name = name

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return grpc.stream_stream_rpc_method_handler(self._both) if details.method == STREAM else None

    async def _both(self, requests: AsyncIterator[bytes], _: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        async for request in requests:
            yield f"{self._name}:{request.decode()}".encode()


async def serve(address: str, name: str, sick: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=name, status=503 if _exists(sick) else 200)

    async def lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(f"{name}:{line.decode()}".encode())
            await writer.drain()
        writer.close()

    streams = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    streams.add_generic_rpc_handlers((Echo(name),))
    streams.add_insecure_port(f"{address}:50052")
    await streams.start()
    await asyncio.start_server(lines, address, 7000)
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, address, 8080).start()
    await asyncio.Event().wait()


async def hold(target: str, lines: str, file: str, stop: str) -> None:
    """Each message has to come back from who answered the first one."""
    said = {"grpc": "", "tcp": "", "grpcMessages": 0, "tcpMessages": 0, "broken": ""}

    def take(kind: str, number: int, answer: str) -> None:
        who, _, back = answer.strip().partition(":")
        said[kind] = said[kind] or who
        if (who, back) != (said[kind], str(number)):
            said["broken"] = f"{kind}: {answer!r} came for {number} of {said[kind]}"
        said[f"{kind}Messages"] = number + 1

    async def over_grpc() -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            call = channel.stream_stream(STREAM)(wait_for_ready=True)
            number = 0
            while not _exists(stop):
                await call.write(str(number).encode())
                take("grpc", number, (await call.read()).decode())
                number += 1
                await asyncio.sleep(_BEAT)
            await call.done_writing()

    async def over_tcp() -> None:
        host, _, port = lines.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        number = 0
        while not _exists(stop):
            writer.write(f"{number}\n".encode())
            take("tcp", number, (await reader.readline()).decode())
            number += 1
            await asyncio.sleep(_BEAT)
        writer.close()

    async def tell() -> None:
        while not _exists(stop):
            await asyncio.to_thread(_replace, Path(file), json.dumps(said))
            await asyncio.sleep(_BEAT)

    try:
        async with asyncio.TaskGroup() as group:
            for part in (over_grpc(), over_tcp(), tell()):
                group.create_task(part)
    except* (grpc.aio.AioRpcError, OSError, AttributeError) as errors:  # a stream that ended answers with a mark
        said["broken"] = said["broken"] or "; ".join(map(repr, errors.exceptions))
    _replace(Path(file), json.dumps({**said, "ended": True}))


def _exists(file: str) -> bool:
    return Path(file).exists()


def _replace(file: Path, text: str) -> None:
    file.with_suffix(".new").write_text(text)
    file.with_suffix(".new").rename(file)


if __name__ == "__main__":
    asyncio.run({"serve": serve, "hold": hold}[sys.argv[1]](*sys.argv[2:]))
