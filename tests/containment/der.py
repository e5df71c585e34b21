"""Certificates written byte by byte (X.690, RFC 5280): what no library would make for a thief.

`cryptography` makes nothing that is wrong; here everything may be: tags, lengths, versions, two extensions of one kind.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

SAN, BASIC, USAGE, EXTENDED_USAGE = "2.5.29.17", "2.5.29.19", "2.5.29.15", "2.5.29.37"
SUBJECT_KEY, AUTHORITY_KEY, CONSTRAINTS = "2.5.29.14", "2.5.29.35", "2.5.29.30"
SERVER_AUTH, CLIENT_AUTH, ANY_USAGE, CODE_SIGNING = (
    "1.3.6.1.5.5.7.3.1",
    "1.3.6.1.5.5.7.3.2",
    "2.5.29.37.0",
    "1.3.6.1.5.5.7.3.3",
)
COMMON_NAME = "2.5.4.3"
UTF8, PRINTABLE, T61, IA5, UNIVERSAL, BMP = 0x0C, 0x13, 0x14, 0x16, 0x1C, 0x1E

_SIGNATURES = {
    ("ec", "sha256"): "1.2.840.10045.4.3.2",
    ("ec", "sha1"): "1.2.840.10045.4.1",
    ("ec", "sha384"): "1.2.840.10045.4.3.3",
    ("rsa", "sha256"): "1.2.840.113549.1.1.11",
}
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha1": hashes.SHA1(),
    "sha384": hashes.SHA384(),
}


def tlv(tag: int, *parts: bytes, extra: int = 0) -> bytes:
    """Returns tag, length and value; `extra` bytes too many for the length (BER allows it, DER does not)."""
    body = b"".join(parts)
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8 or 1, "big")
    if not extra and len(body) < 128:
        return bytes([tag, len(body)]) + body
    length = b"\0" * extra + length
    return bytes([tag, 0x80 | len(length)]) + length + body


def sequence(*parts: bytes) -> bytes:
    return tlv(0x30, *parts)


def integer(number: int) -> bytes:
    return tlv(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True))


def octets(*parts: bytes) -> bytes:
    return tlv(0x04, *parts)


def bits(value: bytes, unused: int = 0) -> bytes:
    return tlv(0x03, bytes([unused]), value)


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    body = b""
    for number in (first * 40 + second, *rest):
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.append(0x80 | number & 0x7F)
        body += bytes(reversed(digits))
    return tlv(0x06, body)


def common_name(text: bytes, tag: int = UTF8) -> bytes:
    """Returns a distinguished name of one attribute."""
    return sequence(tlv(0x31, sequence(oid(COMMON_NAME), tlv(tag, text))))


def uri(text: str | bytes) -> bytes:
    return _name(0x86, text)


def dns(text: str | bytes) -> bytes:
    return _name(0x82, text)


def email(text: str | bytes) -> bytes:
    return _name(0x81, text)


def ip(address: bytes) -> bytes:
    return tlv(0x87, address)


def directory(name: bytes) -> bytes:
    return tlv(0xA4, name)


def registered(dotted: str) -> bytes:
    return tlv(0x88, oid(dotted)[2:])


def other_name(kind: str, value: bytes) -> bytes:
    return tlv(0xA0, oid(kind), tlv(0xA0, value))


def _name(tag: int, text: str | bytes) -> bytes:
    return tlv(tag, text.encode() if isinstance(text, str) else text)


def extension(kind: str, value: bytes, *, critical: bool = False) -> bytes:
    return sequence(oid(kind), b"\x01\x01\xff" if critical else b"", octets(value))


def names(*general: bytes, critical: bool = True) -> bytes:
    """Returns the extension of subject alternative names."""
    return extension(SAN, sequence(*general), critical=critical)


def basic(*, ca: bool, path_length: int | None = None) -> bytes:
    length = b"" if path_length is None else integer(path_length)
    return extension(BASIC, sequence(b"\x01\x01\xff" if ca else b"", length), critical=True)


def usage(mask: int) -> bytes:
    """Returns the extension of key usage; 0x80 is digitalSignature, 0x06 what an authority has."""
    unused = (mask & -mask).bit_length() - 1 if mask else 7
    return extension(USAGE, bits(bytes([mask]), unused), critical=True)


def purposes(*of: str) -> bytes:
    return extension(EXTENDED_USAGE, sequence(*map(oid, of)))


def public(key: Key) -> bytes:
    """Returns the SubjectPublicKeyInfo."""
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """Who signs: a name (DER), a key, and the key id that goes into what is signed."""

    name: bytes
    key: Key
    key_id: bytes


def certificate(
    issuer: Issued,
    key: Key,
    *extensions: bytes,
    subject: bytes = b"\x30\x00",
    starts: datetime | None = None,
    ends: datetime | None = None,
    serial: int = 0x1234567890ABCDEF,
    version: int | None = 3,
    digest: str = "sha256",
    extra: int = 0,
    garbage: bytes = b"",
) -> bytes:
    """Returns a certificate (DER) for `key`. `extra` makes the length of what is signed too long."""
    now = datetime.now(UTC)
    kind = "rsa" if isinstance(issuer.key, rsa.RSAPrivateKey) else "ec"
    algorithm = sequence(oid(_SIGNATURES[kind, digest]))
    signed = tlv(
        0x30,
        b"" if version in (None, 1) else tlv(0xA0, integer(version - 1)),
        integer(serial),
        algorithm,
        issuer.name,
        sequence(_moment(starts or now - timedelta(minutes=5)), _moment(ends or now + timedelta(hours=1))),
        subject,
        public(key),
        tlv(0xA3, sequence(*extensions)) if extensions else b"",
        garbage,
        extra=extra,
    )
    return sequence(signed, algorithm, bits(_sign(issuer.key, signed, _HASHES[digest])))


def leaf_extensions(issuer: Issued, *alternative: bytes) -> tuple[bytes, ...]:
    """Returns the extensions that an honest leaf has, with these alternative names (the whole extension) at the end."""
    return (
        basic(ca=False),
        usage(0x80),
        purposes(SERVER_AUTH, CLIENT_AUTH),
        extension(AUTHORITY_KEY, sequence(tlv(0x80, issuer.key_id))),
        *alternative,
    )


def authority_extensions(
    issuer: Issued, key_id: bytes, *more: bytes, path_length: int | None = None
) -> Sequence[bytes]:
    """Returns the extensions of an authority."""
    return (
        basic(ca=True, path_length=path_length),
        usage(0x06),
        extension(SUBJECT_KEY, octets(key_id)),
        extension(AUTHORITY_KEY, sequence(tlv(0x80, issuer.key_id))),
        *more,
    )


def _moment(when: datetime) -> bytes:
    return tlv(0x17, when.strftime("%y%m%d%H%M%SZ").encode())


def _sign(key: Key, message: bytes, digest: hashes.HashAlgorithm) -> bytes:
    match key:
        case rsa.RSAPrivateKey():
            return key.sign(message, padding.PKCS1v15(), digest)
        case ec.EllipticCurvePrivateKey():
            return key.sign(message, ec.ECDSA(digest))
    raise ValueError("this key signs no certificates")
