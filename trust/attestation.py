"""Join tokens: how a proxy proves which workload it stands beside."""

from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from trust.refusals import Refusal
from trust.spiffe import ClusterName, Identity, Namespace, ServiceAccount


class AttestationRefused(Refusal):
    """Somebody who could not prove who they are, or a token that may not be made."""


class TokenRole(StrEnum):
    """What kind of proxy a token is for."""

    SIDECAR = "sidecar"
    GATEWAY = "gateway"


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a token, under its digest: for whom it is. Without `expires` it is good for ever."""

    namespace: Namespace
    account: ServiceAccount
    role: TokenRole
    created: datetime
    expires: datetime | None = None


def new_token() -> str:
    """Makes a token: 256 random bits as text."""
    raise NotImplementedError


def digest(token: str) -> str:
    """Returns the hex SHA-256 under which the record of a token is kept; AttestationRefused if it is no token."""
    raise NotImplementedError


def make_record(
    namespace: str, account: str, *, role: TokenRole, now: datetime, lifetime: timedelta | None = None
) -> TokenRecord:
    """Returns the record for a new token; raises AttestationRefused for names that may not have one."""
    raise NotImplementedError


def encode_record(record: TokenRecord) -> bytes:
    """Prints a record for keeping."""
    raise NotImplementedError


def decode_record(value: bytes) -> TokenRecord:
    """Inverse of `encode_record`; raises AttestationRefused."""
    raise NotImplementedError


def check(record: TokenRecord | None, *, now: datetime) -> TokenRecord:
    """Returns the record when its token is good at `now`, else raises AttestationRefused."""
    raise NotImplementedError


def identity_of(record: TokenRecord, cluster: ClusterName) -> Identity:
    """Returns whom the bearer of the token speaks for in `cluster`."""
    raise NotImplementedError
