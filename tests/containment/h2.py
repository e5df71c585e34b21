"""HTTP/2 by hand (RFC 9113), as far as a thief needs it: one request, and what becomes of it."""

import asyncio
import ssl

from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from federation.peering.offer import FEDERATION_METHOD, FEDERATION_SERVICE
from federation.xds.resources import TypeUrl
from tests.support.connect_client import PREFACE, ask, frame, literal
from tests.support.envoy import PATIENCE

__all__ = ["ask", "listens"]

_DATA, _HEADERS, _RESET, _SETTINGS, _GOAWAY = 0x0, 0x1, 0x3, 0x4, 0x7
_END_STREAM, _END_HEADERS = 0x1, 0x4


async def listens(address: str, port: int, *, context: ssl.SSLContext, server_name: str) -> bool:
    """Says whether a control plane answers a federation stream with anything but a refusal."""
    context.set_alpn_protocols(["h2"])
    headers = {
        ":method": "POST",
        ":scheme": "https",
        ":path": f"/{FEDERATION_SERVICE}/{FEDERATION_METHOD}",
        ":authority": server_name,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(b"\0" + literal(name) + literal(value) for name, value in headers.items())
    said = DeltaDiscoveryRequest(node=Node(id="south"), type_url=TypeUrl.MEMBER).SerializeToString()
    body = b"\0" + len(said).to_bytes(4, "big") + said
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=server_name)
            try:
                writer.write(PREFACE + frame(_SETTINGS, 0, 0, b"") + frame(_HEADERS, _END_HEADERS, 1, block))
                writer.write(frame(_DATA, 0, 1, body))
                while True:
                    head = await reader.readexactly(9)
                    await reader.readexactly(int.from_bytes(head[:3], "big"))
                    match head[3]:
                        case 0x0:
                            return True
                        case 0x1 if head[4] & _END_STREAM:
                            return False
                        case 0x3 | 0x7:
                            return False
            finally:
                writer.close()
    except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
        return False
