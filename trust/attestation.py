"""Join tokens: how a proxy proves which workload it stands beside.

A token is 256 random bits that say nothing. What it stands for is a record that the cluster keeps under the token's
digest, so that who reads the records cannot become anybody. The caller keeps them (in etcd) and hands them back.
"""

import hashlib
import re
import secrets
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import msgspec

from trust.refusals import Refusal
from trust.spiffe import (
    CONTROL_ACCOUNT,
    GATEWAY_ACCOUNT,
    SYSTEM_NAMESPACE,
    ClusterName,
    Identity,
    Namespace,
    ServiceAccount,
    is_dns_label,
    is_dns_name,
)

_PREFIX = "isthmus-"  # so that a scanner of repositories and logs can tell what it has found
_TOKEN = re.compile(_PREFIX + r"[A-Za-z0-9_-]{43}")
_HINT = "make a token with `isthmus token create` and put it into the token file of the proxy"


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
    return _PREFIX + secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """Returns the hex SHA-256 under which the record of a token is kept. The digest of a token is as good as salted:
    nobody guesses 256 bits. Raises AttestationRefused for what is no token, and does not repeat it."""
    if _TOKEN.fullmatch(token) is None:
        raise AttestationRefused("what was shown is not a join token", _HINT)
    return hashlib.sha256(token.encode()).hexdigest()


def make_record(
    namespace: str, account: str, *, role: TokenRole, now: datetime, lifetime: timedelta | None = None
) -> TokenRecord:
    """Returns the record for a new token; raises AttestationRefused for names that may not have one."""
    if lifetime is not None and lifetime <= timedelta(0):
        raise AttestationRefused(f"a token cannot live for {lifetime}", "give a time from now on")
    created = now.astimezone(UTC)
    record = TokenRecord(
        namespace=Namespace(namespace),
        account=ServiceAccount(account),
        role=role,
        created=created,
        expires=None if lifetime is None else created + lifetime,
    )
    _check_subject(record)
    return record


def encode_record(record: TokenRecord) -> bytes:
    """Prints a record for keeping."""
    return msgspec.json.encode(record)


def decode_record(value: bytes) -> TokenRecord:
    """Inverse of `encode_record`; raises AttestationRefused. Fields that a later version added are skipped."""
    try:
        record = msgspec.json.decode(value, type=TokenRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AttestationRefused(f"the record of the token is broken: {error}", _HINT) from error
    if record.created.tzinfo is None or (record.expires is not None and record.expires.tzinfo is None):
        raise AttestationRefused("the record of the token is broken: a moment without a time zone", _HINT)
    return record


def check(record: TokenRecord | None, *, now: datetime) -> TokenRecord:
    """Returns the record when its token is good at `now`, else raises AttestationRefused.

    None stands for a token that nobody knows.
    """
    if record is None:
        raise AttestationRefused("the join token is unknown in this cluster", _HINT)
    if record.expires is not None and now >= record.expires:
        raise AttestationRefused(f"the join token expired at {record.expires:%Y-%m-%d %H:%M:%S} UTC", _HINT)
    _check_subject(record)
    return record


def identity_of(record: TokenRecord, cluster: ClusterName) -> Identity:
    """Returns whom the bearer of the token speaks for in `cluster`."""
    return Identity(cluster=cluster, namespace=record.namespace, account=record.account)


def _check_subject(record: TokenRecord) -> None:
    """Checks that the role may be had by that account.

    A sidecar that called itself the control plane or a gateway could take over the cluster's streams and tunnels.
    """
    name = f"{record.namespace}/{record.account}"
    if not is_dns_label(record.namespace) or not is_dns_name(record.account):
        raise AttestationRefused(f"{name!r} is not a namespace and a service account", "use Kubernetes names")
    is_system = record.namespace == SYSTEM_NAMESPACE
    match record.role:
        case TokenRole.GATEWAY if not (is_system and record.account == GATEWAY_ACCOUNT):
            raise AttestationRefused(
                f"a gateway is {SYSTEM_NAMESPACE}/{GATEWAY_ACCOUNT}, not {name}",
                "leave namespace and account as they are",
            )
        case TokenRole.SIDECAR if is_system and record.account in (CONTROL_ACCOUNT, GATEWAY_ACCOUNT):
            raise AttestationRefused(f"no workload may be {name}", "choose another service account for the workload")
        case TokenRole.GATEWAY | TokenRole.SIDECAR:
            pass
