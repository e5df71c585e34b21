"""A client of the gateway's tunnel port: one HTTP/2 request by hand (RFC 9113, RFC 7541), the status of its answer."""

import asyncio
import ssl

from tests.support.envoy import PATIENCE

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS, _HEADERS = 0x4, 0x1
_END_HEADERS = 0x4
_STATIC_STATUS = {0x88: 200, 0x89: 204, 0x8A: 206, 0x8B: 304, 0x8C: 400, 0x8D: 404, 0x8E: 500}
_LITERAL_STATUS = {0x48, 0x08, 0x18}  # with, without, and never indexed; the name is entry 8 of the static table
_DIGITS = {"00000": "0", "00001": "1", "00010": "2"} | {f"{0b011001 + n:06b}": str(3 + n) for n in range(7)}


async def ask(
    address: str, port: int, *, context: ssl.SSLContext, server_name: str, headers: dict[str, str]
) -> int | None:
    """Returns the status that answers one request, or None when the connection is refused or closed before."""
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=server_name)
            block = b"".join(b"\0" + literal(name) + literal(value) for name, value in headers.items())
            writer.write(PREFACE + frame(_SETTINGS, 0, 0, b"") + frame(_HEADERS, _END_HEADERS, 1, block))
            try:
                while True:
                    head = await reader.readexactly(9)
                    payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                    if head[3] == _HEADERS:
                        return _status(payload)
            finally:
                writer.close()
    except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
        return None


def literal(text: str) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text.encode()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _status(block: bytes) -> int:
    while block[0] & 0xE0 == 0x20:  # a change of the table's size comes first
        block = block[1:]
    if block[0] in _STATIC_STATUS:
        return _STATIC_STATUS[block[0]]
    assert block[0] in _LITERAL_STATUS, block.hex()
    length = block[1] & 0x7F
    value = block[2 : 2 + length]
    return int(_unpacked(value) if block[1] & 0x80 else value)


def _unpacked(value: bytes) -> str:
    """Decodes Huffman-coded digits."""
    bits = "".join(f"{byte:08b}" for byte in value)
    digits = ""
    while len(digits) < 3:
        code = next(code for code in _DIGITS if bits.startswith(code))
        digits, bits = digits + _DIGITS[code], bits[len(code) :]
    return digits
