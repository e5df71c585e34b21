"""A WebSocket program that knows nothing of a mesh: a server (`serve ADDRESS PORT NAME`) and a client (`call URL`)."""

import asyncio
import sys

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve


async def run_server(address: str, port: str, name: str) -> None:
    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(f"{name}:{message}")

    async with serve(echo, address, int(port)) as server:
        await server.serve_forever()


async def call(url: str) -> None:
    async with asyncio.timeout(20), connect(url) as connection:
        for n in range(20):
            await connection.send(str(n))
            print(await connection.recv())


if __name__ == "__main__":
    asyncio.run({"serve": run_server, "call": call}[sys.argv[1]](*sys.argv[2:]))
