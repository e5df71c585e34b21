"""What a root remembers of whom it granted what, and therefore whom it may grant something again. Pure.

    join       a free name and a free key, and a request that was not granted before
    renewal    the generation that the trust bundle asks for, shown to be asked by the key on record for the name

A renewal may be granted more than once, until the member has shown that it has it: a grant can be lost on its way.
Until then the key before it counts as well, since the member may have no other; from then on it is worth nothing here.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from trust.certificates import key_fingerprint
from trust.joining import Introduction, JoinRefused, JoinRequest
from trust.refusals import AuthorityRefused
from trust.spiffe import ClusterName

VERSION = 1


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """A member: the key that was granted last (`key_fingerprint`), its generation, and until when it was signed.

    `before` is the key that held the name before; empty once the member has shown that it uses the other one.
    """

    introduction: Introduction
    key: str
    generation: int = 1
    granted: datetime
    not_after: datetime
    before: str = ""


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was granted."""

    cluster: ClusterName
    granted: datetime


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """The members of a mesh, and the requests that were granted, by their ids."""

    version: int = VERSION
    members: Mapping[ClusterName, Granted] = {}
    requests: Mapping[str, Spent] = {}


def check_join(ledger: Ledger, request: JoinRequest, key: ec.EllipticCurvePublicKey, *, replace: bool) -> None:
    """Checks that a request was not granted before, and that its name and its key are free; raises JoinRefused.

    With `replace`, the name need not be free.
    """
    name = request.cluster.name
    if request.continuity is not None or request.generation > 1:
        message = f"this request asks for the next authority of the member {name}, not to join"
        raise JoinRefused(message, f"it is granted by: isthmus trust rotate intermediate {name} --root DIR")
    _check_unspent(ledger, request)
    _check_key_is_free(ledger, name, key_fingerprint(key))
    held = ledger.members.get(name)
    if held is not None and held.key != key_fingerprint(key) and not replace:
        message = f"the name {name} is taken by another key, since {held.granted:%Y-%m-%d %H:%M:%S} UTC"
        hint = "choose another name; or, if this cluster lost its key, grant with --replace"
        raise JoinRefused(message, f"{hint} (the old certificate stays valid until {held.not_after:%Y-%m-%d})")


def check_renewal(
    ledger: Ledger,
    request: JoinRequest,
    key: ec.EllipticCurvePublicKey,
    *,
    holder: ec.EllipticCurvePublicKey,
    wanted: int,
) -> None:
    """Checks that the next authority of a member may be granted; raises JoinRefused.

    `holder` is the key that asks for it, `wanted` the generation that the trust bundle asks of the member.
    """
    name, asked = request.cluster.name, key_fingerprint(key)
    held = ledger.members.get(name)
    if held is None:
        raise JoinRefused(f"{name} is no member of this mesh", "let it join: isthmus join-request, isthmus grant")
    if key_fingerprint(holder) not in {held.key, held.before}:
        message = f"the authority that asks in the name of {name} is not the one that holds it"
        hint = f"if {name} lost its key, it joins anew and is granted with --replace; if not, somebody else asks"
        raise JoinRefused(message, hint)
    if request.generation != wanted:
        message = f"{name} asks for generation {request.generation}, and the trust bundle for {wanted}"
        hint = f"ask for another one, and hand over the newest documents: isthmus trust rotate intermediate {name}"
        raise JoinRefused(message, hint)
    if held.generation >= wanted and not held.before:
        message = f"{name} has its authority of generation {held.generation}, since {held.granted:%Y-%m-%d}"
        raise JoinRefused(message, f"ask for another one: isthmus trust rotate intermediate {name} --root DIR")
    if asked == key_fingerprint(holder):
        raise JoinRefused(f"{name} asks for a new authority with the key of the old one", "make a new key for it")
    _check_key_is_free(ledger, name, asked)
    if asked != held.key:
        _check_unspent(ledger, request)


def with_grant(
    ledger: Ledger,
    request: JoinRequest,
    certificate: x509.Certificate,
    *,
    key: ec.EllipticCurvePublicKey,
    generation: int,
    now: datetime,
    holder: ec.EllipticCurvePublicKey | None = None,
) -> Ledger:
    """Returns the ledger after a request was granted. `holder` is the key that asked for a renewal."""
    granted = now.astimezone(UTC)
    member = Granted(
        introduction=request.cluster,
        key=key_fingerprint(key),
        generation=generation,
        granted=granted,
        not_after=certificate.not_valid_after_utc,
        before="" if holder is None else key_fingerprint(holder),
    )
    spent = Spent(cluster=request.cluster.name, granted=granted)
    return msgspec.structs.replace(
        ledger,
        members={**ledger.members, request.cluster.name: member},
        requests={**ledger.requests, request.id: spent},
    )


def with_use(ledger: Ledger, cluster: ClusterName, key: str) -> Ledger:
    """Returns the ledger after a member has shown that it uses `key` (a fingerprint): the one before it is void."""
    held = ledger.members.get(cluster)
    if held is None or held.key != key or not held.before:
        return ledger
    return msgspec.structs.replace(
        ledger, members={**ledger.members, cluster: msgspec.structs.replace(held, before="")}
    )


def encode_ledger(ledger: Ledger) -> bytes:
    """Prints a ledger as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(ledger), indent=2) + b"\n"


def decode_ledger(text: bytes, where: object) -> Ledger:
    """Inverse of `encode_ledger`; raises AuthorityRefused, which names `where` it was read."""
    try:
        ledger = msgspec.json.decode(text, type=Ledger)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AuthorityRefused(f"{where} is broken: {error}", "restore the ledger from its backup") from error
    if ledger.version != VERSION:
        message = f"{where} has version {ledger.version}, this Isthmus knows version {VERSION}"
        raise AuthorityRefused(message, "use the newer Isthmus beside the root")
    return ledger


def _check_unspent(ledger: Ledger, request: JoinRequest) -> None:
    if (spent := ledger.requests.get(request.id)) is not None:
        message = f"this request of {spent.cluster} was granted already, at {spent.granted:%Y-%m-%d %H:%M:%S} UTC"
        raise JoinRefused(message, "make a new request in the cluster: isthmus join-request --new")


def _check_key_is_free(ledger: Ledger, name: ClusterName, key: str) -> None:
    for other, member in ledger.members.items():
        if other != name and key in {member.key, member.before}:
            # One key behind two names would make one stolen key speak for both.
            message = f"the key of the request belongs to the cluster {other}"
            raise JoinRefused(message, "give each cluster a data directory of its own")
