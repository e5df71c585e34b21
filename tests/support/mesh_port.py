"""A client of the mesh port by hand: says something over TLS and returns what comes back."""

import asyncio
import ssl

from federation.model import MESH_PORT
from tests.support.envoy import PATIENCE


async def converse(
    address: str, context: ssl.SSLContext | None, server_name: str | None, say: bytes, *, enough: int = 0
) -> bytes:
    """Returns what the mesh port answers until it closes, or has sent `enough` bytes.

    Nothing when it closes without an answer, however it does so.
    """
    answer = b""
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(address, MESH_PORT, ssl=context, server_hostname=server_name)
            writer.write(say)
            while part := await reader.read(65536):
                answer += part
                if enough and len(answer) >= enough:
                    break
            writer.close()
    except (ssl.SSLError, ConnectionError):
        pass
    return answer
