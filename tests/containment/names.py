"""Forged names: other identities, what looks like them, and bytes that two parsers may read differently."""

from collections.abc import Iterator

import msgspec

from tests.containment import der
from tests.containment.thief import Forgery, Thief


def names(thief: Thief) -> Iterator[Forgery]:
    """URI names: of others, and whatever looks like our own."""
    aim = thief.aim
    own, domain = aim.own.cluster, aim.domain
    yield msgspec.structs.replace(thief.leaf("own", der.uri(aim.ours), is_own=True), is_sound=True)
    yield thief.leaf("own and another of its own", der.uri(aim.ours), der.uri(f"{aim.ours}2"), is_own=True)
    yield thief.leaf("victim", der.uri(aim.foreign))
    path = f"/ns/{aim.victim.namespace}/sa/{aim.victim.account}"
    ours = f"{own}.{domain}"
    theirs = f"{aim.victim.cluster}.{domain}"
    for what, text in {
        "another mesh": f"spiffe://{aim.victim.cluster}.other.test{path}",
        "the mesh itself": f"spiffe://{domain}{path}",
        "own slice as a prefix": f"spiffe://{ours}.evil{path}",
        "own slice without a dot": f"spiffe://{own}{domain}{path}",
        "own slice as a suffix": f"spiffe://x{ours}{path}",
        "below its own slice": f"spiffe://{aim.victim.cluster}.{ours}{path}",
        "trailing dot": f"spiffe://{theirs}.{path}",
        "own with a trailing dot": f"spiffe://{ours}.{path}",
        "upper case": f"spiffe://{theirs.upper()}{path}",
        "upper-case scheme": f"SPIFFE://{theirs}{path}",
        "other scheme": f"https://{theirs}{path}",
        "no scheme": f"{theirs}{path}",
        "no authority": f"spiffe:{theirs}{path}",
        "one slash": f"spiffe:/{theirs}{path}",
        "percent-encoded dot": f"spiffe://{theirs.replace('.', '%2e')}{path}",
        "percent-encoded slash": f"spiffe://{ours}%2f..%2f{theirs}{path}",
        "percent-encoded end": f"spiffe://{theirs}%00.{ours}{path}",
        "punycode": f"spiffe://xn--{aim.victim.cluster}-.{domain}{path}",
        "user": f"spiffe://{theirs}@{ours}{path}",
        "victim behind a user": f"spiffe://{ours}@{theirs}{path}",
        "victim behind a user with a port": f"spiffe://{ours}:443@{theirs}{path}",
        "victim behind a slashed user": f"spiffe://{ours}/@{theirs}{path}",
        "backslash": f"spiffe://{ours}\\@{theirs}{path}",
        "port": f"spiffe://{theirs}:443{path}",
        "own with a port": f"spiffe://{ours}:443{path}",
        "own with a query": f"{aim.ours}?{aim.foreign}",
        "own with a fragment": f"{aim.ours}#{aim.foreign}",
        "own without a path": f"spiffe://{ours}",
        "own with an empty path": f"spiffe://{ours}/",
        "own with a longer path": f"{aim.ours}/{path}",
        "own with an empty part": f"spiffe://{ours}/{path}",
        "own with dots": f"spiffe://{ours}/../{theirs}{path}",
        "own with a comma": f"{aim.ours},URI={aim.foreign}",
        "own with a semicolon": f"{aim.ours};URI={aim.foreign}",
        "own with a new line": f"{aim.ours}\n{aim.foreign}",
        "own with a quote": f'{aim.ours}";URI="{aim.foreign}',
        "blank before": f" {aim.foreign}",
        "own and a path of capitals": f"spiffe://{ours}/ns/Shop/sa/client",
        "unicode dot": f"spiffe://{theirs.replace('.', chr(0x3002))}{path}",
        "unicode letter": f"spiffe://{theirs.replace('e', chr(0x0435))}{path}",
        "an address": f"spiffe://127.0.0.1{path}",
        "an IPv6 address": f"spiffe://[::1]{path}",
        "empty host": f"spiffe://{path}",
    }.items():
        yield thief.leaf(f"URI, {what}", der.uri(text))
    yield thief.leaf("URI, NUL after the victim", der.uri(f"{aim.foreign}\0.{ours}"))
    yield thief.leaf("URI, NUL in the host", der.uri(f"spiffe://{theirs}\0.{ours}{path}"))
    yield thief.leaf("URI, NUL after its own host", der.uri(f"spiffe://{ours}\0.{theirs}{path}"))
    yield thief.leaf("URI, no text", der.uri(""))
    yield thief.leaf("URI, invalid UTF-8", der.uri(b"spiffe://\xff\xfe" + theirs.encode() + path.encode()))
    for first, second, what in (
        (aim.ours, aim.foreign, "own, then victim"),
        (aim.foreign, aim.ours, "victim, then own"),
    ):
        yield thief.leaf(f"two URIs: {what}", der.uri(first), der.uri(second))
    yield thief.leaf("three URIs", der.uri(aim.ours), der.uri(aim.foreign), der.uri(aim.ours))
    yield thief.leaf("many URIs", *[der.uri(f"{aim.ours}{n}") for n in range(200)], der.uri(aim.foreign))


def hosts(thief: Thief) -> Iterator[Forgery]:
    """Names that are no URI: alone, beside a good one, and what stands in for them."""
    aim = thief.aim
    ours, host = f"{aim.own.cluster}.{aim.domain}", aim.host
    theirs = f"{aim.victim.cluster}.{aim.domain}"
    good = der.uri(aim.ours)
    for what, text in {
        "victim": host,
        "control plane": f"control.{theirs}",
        "gateway": f"gateway.{theirs}",
        "slice": theirs,
        "wildcard": f"*.{theirs}",
        "wildcard of all": "*",
        "wildcard of the mesh": f"*.{aim.domain}",
        "wildcard inside": f"c*.{theirs}",
        "upper case": host.upper(),
        "trailing dot": f"{host}.",
        "leading dot": f".{host}",
        "URI": aim.foreign,
        "NUL": f"{host}\0.{ours}",
        "unicode": host.replace("e", chr(0x0435)),
    }.items():
        yield thief.leaf(f"DNS, {what}", der.dns(text))
        # BoringSSL holds a constraint against the end of a name, after the NUL: the URI alone says who it is.
        yield thief.leaf(f"own and DNS, {what}", good, der.dns(text), is_own=what == "NUL")
    yield thief.leaf("own and DNS below its own", good, der.dns(f"{host}.{ours}"), is_own=True)
    for what, stand_in in {
        "e-mail of the victim's host": der.email(host),
        "e-mail at the victim's": der.email(f"x@{theirs}"),
        "e-mail that is a URI": der.email(aim.foreign),
        "e-mail of a wildcard": der.email(f"*.{theirs}"),
        "IP address": der.ip(bytes([127, 0, 0, 1])),
        "IP address of text": der.ip(host.encode()),
        "otherName": der.other_name("1.3.6.1.5.5.7.8.7", der.tlv(der.IA5, host.encode())),
        "otherName that is a URI": der.other_name("1.3.6.1.4.1.311.20.2.3", der.tlv(der.UTF8, aim.foreign.encode())),
        "directoryName": der.directory(der.common_name(host.encode())),
        "directoryName that is a URI": der.directory(der.common_name(aim.foreign.encode())),
        "registeredID": der.registered("1.2.3.4"),
    }.items():
        yield thief.leaf(f"{what}", stand_in)
        yield thief.leaf(f"{what}, and CN", stand_in, subject=der.common_name(host.encode()))
        yield thief.leaf(f"own and {what}", good, stand_in, is_own=True)
    for tag, encoding, how in (
        (der.UTF8, "utf-8", "UTF8String"),
        (der.PRINTABLE, "ascii", "PrintableString"),
        (der.T61, "latin-1", "T61String"),
        (der.IA5, "ascii", "IA5String"),
        (der.BMP, "utf-16-be", "BMPString"),
        (der.UNIVERSAL, "utf-32-be", "UniversalString"),
    ):
        subject = der.common_name(host.encode(encoding), tag)
        yield thief.leaf(f"CN alone, {how}", subject=subject)
        yield thief.leaf(f"own and CN, {how}", good, subject=subject, is_own=True)
    for what, text in {
        "URI": aim.foreign,
        "trailing dot": f"{host}.",
        "NUL": f"{host}\0.{ours}",
        "wildcard": f"*.{theirs}",
        "underscore": f"_.{theirs}",
        "blank": f"{host} ",
    }.items():
        yield thief.leaf(f"CN alone, {what}", subject=der.common_name(text.encode()))
    yield thief.leaf("no name at all")


def encodings(thief: Thief) -> Iterator[Forgery]:
    """Bytes that two parsers may read differently."""
    aim, issuer = thief.aim, thief.stolen.issued
    good, bad = der.uri(aim.ours), der.uri(aim.foreign)
    text = aim.foreign.encode()
    for what, alternative in {
        "constructed URI": der.names(der.tlv(0xA6, der.tlv(der.IA5, text))),
        "URI as UTF8String": der.names(der.tlv(der.UTF8, text)),
        "URI as IA5String": der.names(der.tlv(der.IA5, text)),
        "over-long length of a URI": der.names(der.tlv(0x86, text, extra=1)),
        "over-long length of the names": der.extension(der.SAN, der.tlv(0x30, good, bad, extra=2)),
        "indefinite length": der.extension(der.SAN, b"\x30\x80" + bad + b"\0\0"),
        "names after the end": der.extension(der.SAN, der.sequence(good) + der.sequence(bad)),
        "name cut off": der.extension(der.SAN, der.sequence(good, bad[:-3])),
        "no names in the extension": der.names(),
        "extension of no bytes": der.extension(der.SAN, b""),
        "the old extension of names": der.extension("2.5.29.7", der.sequence(bad)),
        "names of the issuer": der.extension("2.5.29.18", der.sequence(bad)),
        "unknown kind of name": der.names(der.tlv(0x89, text)),
    }.items():
        leaf = der.certificate(issuer, thief.key, *der.leaf_extensions(issuer, alternative))
        yield Forgery(name=f"encoding: {what}", chain=(leaf, thief.stolen.encoded), key=thief.key)
    for what, first, second in (("own, then victim", good, bad), ("victim, then own", bad, good)):
        twice = der.leaf_extensions(issuer, der.names(first), der.names(second))
        leaf = der.certificate(issuer, thief.key, *twice)
        yield Forgery(name=f"names twice: {what}", chain=(leaf, thief.stolen.encoded), key=thief.key)
    for what, options in {
        "over-long certificate": {"extra": 1},
        "negative serial": {"serial": -5},
        "something after the extensions": {"garbage": der.tlv(0xA4, der.sequence(bad))},
        "version 1 with extensions": {"version": 1},
        "version 2 with extensions": {"version": 2},
        "version 4": {"version": 4},
    }.items():
        leaf = der.certificate(issuer, thief.key, *der.leaf_extensions(issuer, der.names(bad)), **options)
        yield Forgery(name=f"victim, {what}", chain=(leaf, thief.stolen.encoded), key=thief.key)
    bare = der.certificate(issuer, thief.key, version=1, subject=der.common_name(aim.host.encode()))
    yield Forgery(name="version 1, CN alone", chain=(bare, thief.stolen.encoded), key=thief.key)
