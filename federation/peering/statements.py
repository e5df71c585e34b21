"""Sums up what the proxies of this cluster acknowledged, for the other members and for people. Pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from federation.ledger import ProxyTrust
from federation.model import PodKey
from trust.bundle import Revocation, TrustBundle
from trust.joining import JoinRequest
from trust.spiffe import ClusterName
from trust.statements import AuthorityState, TrustStatement


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

    `records` are those of the ledger, `connected` the nodes on streams of this replica, `revoked` what is in force here.
    """
    raise NotImplementedError
