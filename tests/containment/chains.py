"""Forged chains: authorities that may not be, and leaves that may not serve."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.containment import der
from tests.containment.der import Issued, Key
from tests.containment.thief import Forgery, Thief
from trust.certificates import new_key


def chains(thief: Thief) -> Iterator[Forgery]:
    """More authorities than there are, or others."""
    aim, stolen, key = thief.aim, thief.stolen, thief.key
    root_name, their_name = thief.root.subject.public_bytes(), thief.others.subject.public_bytes()
    root_id = thief.root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    their_id = thief.others.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    theirs, root = (one.public_bytes(Encoding.DER) for one in (thief.others, thief.root))
    wide = der.extension(
        der.CONSTRAINTS,
        der.sequence(
            der.tlv(
                0xA0,
                *(der.sequence(one(f"{aim.victim.cluster}.{aim.domain}")) for one in (der.uri, der.dns)),
            )
        ),
        critical=True,
    )

    def leaf(issuer: Issued, who: str = aim.foreign) -> bytes:
        return der.certificate(issuer, key, *der.leaf_extensions(issuer, der.names(der.uri(who))))

    def below(issuer: Issued, name: bytes, signer: Key, *more: bytes, length: int | None = None) -> bytes:
        key_id = b"\x11" * 20
        return der.certificate(
            issuer,
            signer,
            *der.authority_extensions(issuer, key_id, *more, path_length=length),
            subject=name,
        )

    def forged(name: str, *chain: bytes, is_own: bool = False) -> Forgery:
        return Forgery(name=f"chain: {name}", chain=chain, key=key, is_own=is_own)

    sub_key = new_key()
    sub = Issued(name=der.common_name(b"sub"), key=sub_key, key_id=b"\x11" * 20)
    for what, name, more in (
        ("sub-CA", sub.name, ()),
        ("sub-CA with the victim's constraints", sub.name, (wide,)),
        ("sub-CA by the name of its issuer", stolen.issued.name, ()),
        ("sub-CA by the name of the victim's", their_name, (wide,)),
        ("sub-CA by the name of the root", root_name, ()),
    ):
        issuer = msgspec.structs.replace(sub, name=name)
        for whose, who in (("victim", aim.foreign), ("own", aim.ours)):
            chain = (leaf(issuer, who), below(stolen.issued, name, sub_key, *more), stolen.encoded)
            # The name of its issuer makes it "self-issued", which a path length does not count (RFC 5280, 6.1).
            is_own = whose == "own" and name == stolen.issued.name
            yield forged(f"{what}, {whose}", *chain, is_own=is_own)
    honest = der.certificate(stolen.issued, sub_key, *der.leaf_extensions(stolen.issued, der.names(der.uri(aim.ours))))
    by_leaf = Issued(name=b"\x30\x00", key=sub_key, key_id=b"\x11" * 20)
    yield forged("a leaf as authority", leaf(by_leaf), honest, stolen.encoded)
    links, issuer = [stolen.encoded], stolen.issued
    for number in range(100):
        name = der.common_name(f"link {number}".encode())
        links.insert(0, below(issuer, name, sub_key))
        issuer = msgspec.structs.replace(sub, name=name)
    yield forged("100 authorities, victim", leaf(issuer), *links)
    yield forged("100 authorities, own", leaf(issuer, aim.ours), *links)
    yield forged("100 times the same, own", leaf(stolen.issued, aim.ours), *[stolen.encoded] * 100, is_own=True)
    as_theirs = Issued(name=their_name, key=stolen.key, key_id=their_id)
    yield forged("in the name of the victim's authority", leaf(as_theirs), theirs)
    yield forged("in the name of the victim's, with its own", leaf(as_theirs), theirs, stolen.encoded)
    yield forged("the victim's authority first", leaf(stolen.issued), theirs, stolen.encoded)
    yield forged(
        "own, the victim's authority first", leaf(stolen.issued, aim.ours), theirs, stolen.encoded, is_own=True
    )
    yield forged("without its authority", leaf(stolen.issued))
    yield forged("own, with the root", leaf(stolen.issued, aim.ours), stolen.encoded, root, is_own=True)
    as_root = Issued(name=root_name, key=stolen.key, key_id=root_id)
    yield forged("in the name of the root", leaf(as_root), root)
    own_root_key = new_key()
    own_root = Issued(name=root_name, key=own_root_key, key_id=root_id)
    self_signed = der.certificate(
        own_root,
        own_root_key,
        *der.authority_extensions(own_root, root_id, path_length=1),
        subject=root_name,
    )
    copied = der.certificate(
        own_root,
        sub_key,
        *der.authority_extensions(own_root, their_id, wide, path_length=0),
        subject=their_name,
    )
    copy = Issued(name=their_name, key=sub_key, key_id=their_id)
    yield forged("a root of the same name and key id", leaf(copy), copied, self_signed)
    yield forged("a root of the same name, left out", leaf(copy), copied)
    yield forged("a root of the same name, and the real one", leaf(copy), copied, self_signed, root)
    freed = der.certificate(
        own_root,
        stolen.key,
        *der.authority_extensions(own_root, stolen.issued.key_id),
        subject=stolen.issued.name,
    )
    yield forged("its own key without constraints, by such a root", leaf(stolen.issued), freed, self_signed)
    yield forged("both of its own", leaf(stolen.issued), freed, stolen.encoded, self_signed)
    itself = below(stolen.issued, stolen.issued.name, stolen.key)
    yield forged("its own key, signed by itself", leaf(stolen.issued), itself, stolen.encoded)
    alone = Issued(name=b"\x30\x00", key=key, key_id=b"\x12" * 20)
    yield forged("self-signed", leaf(alone))


def profiles(thief: Thief) -> Iterator[Forgery]:
    """What may not serve although it is signed: of the thief's own names, for no constraint to stand before it."""
    aim, stolen, key = thief.aim, thief.stolen, thief.key
    issuer, now = stolen.issued, datetime.now(UTC)
    ours, san = der.uri(aim.ours), der.names(der.uri(aim.ours))
    past = {"starts": now - timedelta(hours=2), "ends": now - timedelta(hours=1)}
    future = {"starts": now + timedelta(hours=1), "ends": now + timedelta(hours=2)}

    def forged(name: str, leaf: bytes, key: Key = key, *, is_own: bool = False) -> Forgery:
        return Forgery(name=f"profile: {name}", chain=(leaf, stolen.encoded), key=key, is_own=is_own)

    for what, options, is_own in (
        ("expired", past, False),
        ("not yet valid", future, False),
        ("SHA-1", {"digest": "sha1"}, True),
        ("SHA-384", {"digest": "sha384"}, True),
        ("negative serial", {"serial": -7}, True),
    ):
        leaf = der.certificate(issuer, key, *der.leaf_extensions(issuer, san), **options)
        yield forged(what, leaf, is_own=is_own)
    foreign = der.leaf_extensions(issuer, der.names(der.uri(aim.foreign)))
    yield forged("victim, expired", der.certificate(issuer, key, *foreign, **past))
    unknown = der.extension("1.2.3.4.5", b"\x05\x00", critical=True)
    leaf_only, purposes = der.basic(ca=False), der.purposes(der.SERVER_AUTH, der.CLIENT_AUTH)
    signs, identifier = der.usage(0x80), der.leaf_extensions(issuer)[3]
    for what, is_own, extensions in (
        ("no key usage", True, (leaf_only, purposes, identifier, san)),
        ("key usage without digitalSignature", False, (leaf_only, der.usage(0x20), purposes, identifier, san)),
        ("key usage of an authority", False, (leaf_only, der.usage(0x06), purposes, identifier, san)),
        ("leaf that is an authority", True, (der.basic(ca=True), der.usage(0x86), purposes, identifier, san)),
        ("no purpose", True, (leaf_only, signs, identifier, san)),
        ("any purpose", False, (leaf_only, signs, der.purposes(der.ANY_USAGE), identifier, san)),
        ("serverAuth alone", False, (leaf_only, signs, der.purposes(der.SERVER_AUTH), identifier, san)),
        ("clientAuth alone", True, (leaf_only, signs, der.purposes(der.CLIENT_AUTH), identifier, san)),
        ("code signing", False, (leaf_only, signs, der.purposes(der.CODE_SIGNING), identifier, san)),
        ("unknown critical extension", False, (*der.leaf_extensions(issuer, san), unknown)),
        ("names that are not critical", True, der.leaf_extensions(issuer, der.names(ours, critical=False))),
    ):
        yield forged(what, der.certificate(issuer, key, *extensions), is_own=is_own)
    for what, other in thief.odd_keys.items():
        leaf = der.certificate(issuer, other, *der.leaf_extensions(issuer, san))
        yield forged(what, leaf, other, is_own=what in ("RSA", "P-384"))
