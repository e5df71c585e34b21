"""Join tokens: how a proxy proves which workload it stands beside, where no platform says so. Pure.

A token is 256 random bits that say nothing. What it stands for is a record that the cluster keeps under the token's
digest, so that who reads the records cannot become anybody. The caller keeps them (in etcd) and hands them back.

Envoy shows its token at every stream. So a token that is good once admits one node: the first one that shows it.
"""

import hashlib
import re
import secrets
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NewType

import msgspec
from msgspec import structs

from trust.attestation import HINT, AttestationRefused, Proof, TokenRole, check_subject
from trust.spiffe import Namespace, ServiceAccount

HOW = "join-token"
"""How a proof by join token calls itself."""

_PREFIX = "isthmus-"  # so that a scanner of repositories and logs can tell what it has found
_TOKEN = re.compile(_PREFIX + r"[A-Za-z0-9_-]{43}")
_ID = re.compile(r"[0-9a-f]{12}")
_USE_GRAIN = timedelta(hours=1)  # of `last_used`: a write for each stream would be one for each proxy and half hour
_KEPT = timedelta(days=1)  # after its expiry: long enough to be found by who asks why a proxy was refused

TokenId = NewType("TokenId", str)
"""The first 12 hex digits of a token's digest: it names the token in lists and logs, and says nothing of it."""


class TokenState(StrEnum):
    """How a token stands."""

    GOOD = "good"
    USED = "used"  # by the one node that it admits
    EXPIRED = "expired"
    BROKEN = "broken"  # nobody can read its record


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a token, under its digest: for whom it is. Without `expires` it is good until it is revoked.

    With `once` it admits one node, `claimed_by`. `last_used` is exact to an hour.
    """

    namespace: Namespace
    account: ServiceAccount
    role: TokenRole
    created: datetime
    created_by: str = ""
    expires: datetime | None = None
    once: bool = False
    claimed_by: str = ""
    claimed_at: datetime | None = None
    last_used: datetime | None = None


def new_token() -> str:
    """Makes a token: 256 random bits as text."""
    return _PREFIX + secrets.token_urlsafe(32)


def is_token(text: str) -> bool:
    """Says whether a text has the shape of a join token."""
    return _TOKEN.fullmatch(text) is not None


def digest(token: str) -> str:
    """Returns the hex SHA-256 under which the record of a token is kept. The digest of a token is as good as salted:
    nobody guesses 256 bits. Raises AttestationRefused for what is no token, and does not repeat it."""
    if not is_token(token):
        raise AttestationRefused("what was shown is not a join token", HINT)
    return hashlib.sha256(token.encode()).hexdigest()


def token_id(token_digest: str) -> TokenId:
    """Returns the id of the token with that digest."""
    return TokenId(token_digest[:12])


def parse_token_id(text: str) -> TokenId:
    """Returns `text` as the id of a token; raises AttestationRefused, and does not repeat what may be a token."""
    if _ID.fullmatch(text) is None:
        raise AttestationRefused(
            "that is not the id of a token: 12 of 0-9 and a-f", "`isthmus token list` shows the ids"
        )
    return TokenId(text)


def make_record(
    namespace: str,
    account: str,
    *,
    role: TokenRole,
    now: datetime,
    lifetime: timedelta | None = None,
    once: bool = False,
    created_by: str = "",
) -> TokenRecord:
    """Returns the record for a new token; raises AttestationRefused for names that may not have one."""
    if lifetime is not None and lifetime <= timedelta(0):
        raise AttestationRefused(f"a token cannot live for {lifetime}", "give a time from now on")
    check_subject(namespace, account, role)
    created = now.astimezone(UTC)
    try:
        expires = None if lifetime is None else created + lifetime
    except OverflowError as error:
        raise AttestationRefused(f"a token cannot live for {lifetime}", "leave the time out for no end") from error
    return TokenRecord(
        namespace=Namespace(namespace),
        account=ServiceAccount(account),
        role=role,
        created=created,
        created_by=created_by,
        expires=expires,
        once=once,
    )


def encode_record(record: TokenRecord) -> bytes:
    """Prints a record for keeping."""
    return msgspec.json.encode(record)


def decode_record(value: bytes) -> TokenRecord:
    """Inverse of `encode_record`; raises AttestationRefused. Fields that a later version added are skipped."""
    try:
        record = msgspec.json.decode(value, type=TokenRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AttestationRefused(f"the record of the token is broken: {error}", HINT) from error
    moments = (record.created, record.expires, record.claimed_at, record.last_used)
    if any(moment is not None and moment.tzinfo is None for moment in moments):
        raise AttestationRefused("the record of the token is broken: a moment without a time zone", HINT)
    return record


def check(record: TokenRecord | None, *, now: datetime, reference: TokenId) -> Proof:
    """Returns what the bearer of a token proves at `now`, else raises AttestationRefused.

    None stands for a token that nobody knows: it was never made, or has been revoked.
    """
    if record is None:
        raise AttestationRefused("the join token is unknown in this cluster", HINT, proof=f"{HOW} {reference}")
    if record.expires is not None and now >= record.expires:
        when = f"{record.expires:%Y-%m-%d %H:%M:%S} UTC"
        raise AttestationRefused(f"the join token expired at {when}", HINT, proof=f"{HOW} {reference}")
    check_subject(record.namespace, record.account, record.role)
    return Proof(namespace=record.namespace, account=record.account, role=record.role, how=HOW, reference=reference)


def claim(record: TokenRecord, node: str, *, now: datetime, reference: TokenId) -> TokenRecord:
    """Returns the record after `node` has used its token: the very same one when there is nothing to write.

    Raises AttestationRefused when the token admits another node: it was copied, perhaps stolen.
    """
    if not is_for(record, node):
        raise AttestationRefused(
            "the join token is good for one proxy, and another one has used it",
            HINT,
            proof=f"{HOW} {reference}",
            detail=f"it was claimed by {record.claimed_by}: was it copied?",
        )
    moment = now.astimezone(UTC)
    if record.once and not record.claimed_by:
        return structs.replace(record, claimed_by=node, claimed_at=moment, last_used=moment)
    if record.last_used is None or not record.last_used <= moment < record.last_used + _USE_GRAIN:
        return structs.replace(record, last_used=moment)
    return record


def is_for(record: TokenRecord, node: str) -> bool:
    """Says whether `node` is not kept out because the token is good for another one."""
    return not record.once or record.claimed_by in ("", node)


def state(record: TokenRecord | None, *, now: datetime) -> TokenState:
    """Returns how a token stands; None is a record that cannot be read."""
    if record is None:
        return TokenState.BROKEN
    if record.expires is not None and now >= record.expires:
        return TokenState.EXPIRED
    return TokenState.USED if record.once and record.claimed_by else TokenState.GOOD


def is_forgotten(record: TokenRecord, *, now: datetime) -> bool:
    """Says whether a record has expired so long ago that it need not be kept."""
    return record.expires is not None and now >= record.expires + _KEPT
