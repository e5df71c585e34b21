"""What a member says of its trust to the others: what its proxies have taken, and what its authority is. Pure values.

It proves nothing to a machine: a member can lie about its own proxies, to its own harm. It tells the holder of the root
whether the next stage of a rotation would leave anybody behind.
"""

from datetime import datetime
from typing import Annotated

import msgspec

from trust.joining import JoinRequest
from trust.refusals import Refusal
from trust.spiffe import ClusterName

MOST_WAITING = 20
MOST_AUTHORITIES = 16
MOST_REVOKED = 2000
"""A thousand of the root and as many of the own admin. Who says more is not understood by anybody."""
LARGEST = 64 * 1024
"""Bytes of one statement."""

_Word = Annotated[str, msgspec.Meta(max_length=512, pattern=r"\A[^\x00-\x1f\x7f-\x9f]*\Z")]
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]
_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class StatementRefused(Refusal):
    """A statement that nobody can read."""


class AuthorityState(msgspec.Struct, frozen=True, kw_only=True):
    """One authority of a member. `fingerprint` and `root` are the hex SHA-256 of its key and of the root's key that
    signed it. `is_active`: it signs now; another one is kept until its last certificate has been replaced."""

    generation: _Count
    fingerprint: _Word
    root: _Word
    not_after: _Moment
    is_active: bool


class Waiting(msgspec.Struct, frozen=True, order=True):
    """A proxy that holds something up, by its node id, and why, for people."""

    node: _Word
    reason: _Word


class TrustStatement(msgspec.Struct, frozen=True, kw_only=True):
    """The trust of one member, as its control plane knows it at `at`.

    `sequence` is the number of the trust bundle that it follows, `bundle` the digest of its roots. Of its `proxies`
    (those that hold a certificate that has not expired), `trusting` have taken that bundle, `renewed` a certificate of
    the active authority, `enforcing` the revocations of `revoked`; all of these since `enforced_since`, None while one
    is missing. `request` asks for the next authority.
    """

    cluster: ClusterName
    sequence: _Count
    bundle: _Word
    authorities: Annotated[tuple[AuthorityState, ...], msgspec.Meta(max_length=MOST_AUTHORITIES)]
    proxies: _Count
    trusting: _Count
    renewed: _Count
    enforcing: _Count
    revoked: Annotated[tuple[_Word, ...], msgspec.Meta(max_length=MOST_REVOKED)] = ()
    enforced_since: _Moment | None = None
    waiting: Annotated[tuple[Waiting, ...], msgspec.Meta(max_length=MOST_WAITING)] = ()
    request: JoinRequest | None = None
    at: _Moment

    @property
    def active(self) -> AuthorityState | None:
        """The authority that signs now."""
        return next((one for one in self.authorities if one.is_active), None)


class HeardStatement(msgspec.Struct, frozen=True):
    """What another member said of its trust, and when it was heard here (UTC, our clock)."""

    statement: TrustStatement
    heard: _Moment


def encode_statement(statement: TrustStatement) -> bytes:
    """Prints a statement as JSON. Equal statements have equal bytes."""
    return msgspec.json.encode(statement, order="deterministic")


def decode_statement(body: bytes) -> TrustStatement:
    """Inverse of `encode_statement`; raises StatementRefused. Fields that a later version added are skipped."""
    hint = "use the same version of Isthmus in all clusters"
    if len(body) > LARGEST:
        raise StatementRefused(f"a trust statement of {len(body)} bytes is larger than {LARGEST}", hint)
    try:
        return msgspec.json.decode(body, type=TrustStatement)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StatementRefused(f"this is not a trust statement: {error}", hint) from error
