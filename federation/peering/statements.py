"""Sums up what the proxies of this cluster acknowledged, for the other members and for people. Pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from federation.model import PodKey
from federation.proxy_trust import ProxyTrust, has_place
from trust.bundle import Revocation, TrustBundle, bundle_digest, is_revoked, revoked_digest
from trust.joining import JoinRequest
from trust.spiffe import ClusterName, Identity, Namespace, ServiceAccount
from trust.statements import (
    LARGEST,
    MOST_AUTHORITIES,
    MOST_REVOKED,
    MOST_WAITING,
    AuthorityState,
    TrustStatement,
    Waiting,
    encode_statement,
)

_LONGEST_WORD = 500  # characters; a statement takes 512


def make_statement(
    cluster: ClusterName,
    bundle: TrustBundle,
    *,
    authorities: Sequence[AuthorityState],
    records: Mapping[str, ProxyTrust],
    pods: Collection[PodKey],
    connected: Collection[str],
    revoked: Iterable[Revocation],
    request: JoinRequest | None,
    now: datetime,
) -> TrustStatement:
    """Returns what this cluster says of its trust.

    `records` are what the proxies acknowledged, `connected` the nodes on streams of this replica, `revoked` what is in
    force here. A proxy counts while it is connected, or while its pod is there and its certificate has not expired;
    one that is revoked itself does not count: it may well never answer, and holds up nobody.
    """
    revoked = tuple(revoked)
    active = next((one.fingerprint for one in authorities if one.is_active), "")
    roots, subjects = bundle_digest(bundle), revoked_digest(revoked)
    counted = {
        node: record
        for node, record in records.items()
        if _counts(record, pods, is_here=node in connected, now=now)
        and not is_revoked(revoked, _identity(cluster, record.identity))
    }
    silent = sorted(set(connected) - records.keys())
    trusting = {node for node, record in counted.items() if record.bundle == roots}
    renewed = {node for node, record in counted.items() if active and record.authority == active}
    enforcing = {node for node, record in counted.items() if record.revoked == subjects}
    late = counted.keys() - (trusting & renewed & enforcing)
    waiting = [
        *(Waiting(node[:_LONGEST_WORD], "is connected, and nothing is noted of it yet") for node in silent),
        *(Waiting(node[:_LONGEST_WORD], _reason(counted[node], is_here=node in connected)) for node in sorted(late)),
    ]
    is_enforced = not silent and len(enforcing) == len(counted)
    moments = [record.revoked_at for record in counted.values() if record.revoked_at] or [one.at for one in revoked]
    statement = TrustStatement(
        cluster=cluster,
        sequence=bundle.sequence,
        bundle=roots,
        authorities=tuple(authorities),
        proxies=len(counted) + len(silent),
        trusting=len(trusting),
        renewed=len(renewed),
        enforcing=len(enforcing),
        revoked=tuple(sorted(one.subject for one in revoked)),
        enforced_since=max(moments, default=None) if is_enforced and revoked else None,
        waiting=tuple(sorted(waiting)[:MOST_WAITING]),
        request=request,
        at=now,
    )
    return _fitting(statement)


def _counts(record: ProxyTrust, pods: Collection[PodKey], *, is_here: bool, now: datetime) -> bool:
    if is_here:
        return True
    if record.expires is None:
        return record.is_connected
    return record.expires > now and (record.is_connected or has_place(record.node, pods))


def _identity(cluster: ClusterName, text: str) -> Identity:
    namespace, _, account = text.partition("/")
    return Identity(cluster, Namespace(namespace), ServiceAccount(account))


def _reason(record: ProxyTrust, *, is_here: bool) -> str:
    if record.lost is not None and not is_here:
        lost = f"not connected since {record.lost:%Y-%m-%d %H:%M} UTC"
        # A moment and no span: what is said stays the same while nothing happens.
        return f"{lost}; its certificate expires at {record.expires:%Y-%m-%d %H:%M} UTC" if record.expires else lost
    if record.problem:
        return record.problem[:_LONGEST_WORD]
    return f"has yet to acknowledge the newest; its last answer came at {record.at:%Y-%m-%d %H:%M:%S} UTC"


def _fitting(statement: TrustStatement) -> TrustStatement:
    """Returns what fits into a statement: of very many revocations, the first, and of authorities the newest."""
    authorities, revoked = statement.authorities[:MOST_AUTHORITIES], statement.revoked[:MOST_REVOKED]
    statement = msgspec.structs.replace(statement, authorities=authorities, revoked=revoked)
    while len(encode_statement(statement)) > LARGEST and statement.revoked:
        statement = msgspec.structs.replace(statement, revoked=statement.revoked[: len(statement.revoked) // 2])
    return statement
