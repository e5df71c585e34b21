"""Shows a forged chain in a real TLS handshake: to a server, or as a server to whoever calls."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal, TypeVar

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.containment.thief import Forgery
from tests.support.envoy import PATIENCE
from tests.support.serving import serve_tcp

_T = TypeVar("_T")


def tls_context(forgery: Forgery, side: Literal["client", "server"], *alpn: str) -> ssl.SSLContext | None:
    """Returns what shows this chain and trusts anybody; None when OpenSSL itself will not load it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if side == "client" else ssl.PROTOCOL_TLS_SERVER)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("DEFAULT@SECLEVEL=0")  # a thief is not choosy
    if alpn:
        context.set_alpn_protocols(list(alpn))
    key = forgery.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with open(os.memfd_create("forgery"), "wb") as file:
        file.write(key + "".join(map(ssl.DER_cert_to_PEM_cert, forgery.chain)).encode())
        file.flush()
        try:
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
        except ssl.SSLError:
            return None
    return context


async def converse(address: str, port: int, context: ssl.SSLContext, server_name: str, say: bytes) -> bytes:
    """Returns all that a server answers, of a refusal (HTTP status 4xx) the beginning; nothing when it just closes."""
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=server_name)
            try:
                writer.write(say)
                answer = b""
                while not answer.startswith(b"HTTP/1.1 4") and (chunk := await reader.read(65536)):
                    answer += chunk
                return answer
            finally:
                writer.close()
    except (ssl.SSLError, ConnectionError):
        return b""


class Impostor:
    """A TLS server that shows a forgery.

    `believed` holds the server names under which somebody said something to it: who refuses a certificate says nothing.
    `refused` counts the connections that ended before.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.believed: set[str] = set()
        self.refused = 0
        self._context = context
        context.sni_callback = _note_name

    @asynccontextmanager
    async def serve(self, address: str, port: int) -> AsyncIterator[None]:
        async with serve_tcp(self._meet, address, port):
            yield

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # asyncio's own start_tls trips over a caller that goes in the middle of it (3.11), as those here do.
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        connection = self._context.wrap_bio(incoming, outgoing, server_side=True)

        async def done(step: Callable[[], _T]) -> _T:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    pass
                finally:
                    writer.write(outgoing.read())
                received = await reader.read(65536)
                if not received:
                    raise ConnectionResetError
                incoming.write(received)

        try:
            await done(connection.do_handshake)
            await done(lambda: connection.write(b"believed\n"))
            if await done(lambda: connection.read(1)):
                self.believed.add(connection.called)  # type: ignore[attr-defined]
            else:
                self.refused += 1
        except (ssl.SSLError, ConnectionError):
            self.refused += 1
        finally:
            writer.close()


def _note_name(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
    connection.called = name or ""  # type: ignore[attr-defined]
