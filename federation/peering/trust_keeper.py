"""What federation needs of whoever keeps this cluster's trust: documents of the root, the own statement, grants.

The keeper decides what is believed. Here only its shape stands, so that federation knows no data directory and no key.
"""

from datetime import timedelta
from random import uniform
from typing import Protocol

from federation.model import MemberCluster
from federation.peering.news import News
from trust.bundle import TrustBundle
from trust.issuance import IssuanceRefused, X509Svid
from trust.joining import Grant
from trust.spiffe import ClusterName
from trust.statements import TrustStatement

_END = b"-----END CERTIFICATE-----"
_SPREAD = timedelta(seconds=2)


class TrustKeeper(Protocol):
    """Keeps the trust of this cluster. `news` tells whenever an answer of the plain methods may have changed.

    The plain methods never wait and never fail. Those that take something return why it is refused, or nothing; they
    are told what a peer said, and believe none of it but what a root signed.
    """

    @property
    def news(self) -> News: ...

    def documents(self) -> tuple[TrustBundle, ...]:
        """Returns the documents that somebody who was away needs, by number; the last is in force here."""

    def statement(self) -> TrustStatement | None:
        """Returns what this cluster says of its own trust; None while it is not known."""

    def grants_for(self, peer: ClusterName) -> tuple[Grant, ...]:
        """Returns the grants that wait here for `peer` (see `trust_records.grants_for`)."""

    def own_member(self) -> MemberCluster:
        """Returns this cluster's own record, with the certificate of its active authority."""

    def svid(self) -> X509Svid:
        """Returns the certificate of this control plane; raises IssuanceRefused when there is none."""

    def bundle_pem(self) -> bytes:
        """Returns the roots that are trusted now (PEM)."""

    async def take_bundles(self, bundles: tuple[TrustBundle, ...]) -> str:
        """Follows those documents that are newer and can be believed."""

    async def take_grant(self, grant: Grant) -> str:
        """Takes a grant for this cluster."""

    async def pass_on(self, grant: Grant) -> str:
        """Keeps a grant for another member in etcd until that one has it (see `trust_records.keep_grant`)."""


def issuer_of(svid: X509Svid) -> bytes:
    """Returns the certificate (PEM) that signed a leaf: a connection is made anew when it is another."""
    return svid.certificate_chain_pem.partition(_END)[2].strip()


def own_issuer(keeper: TrustKeeper) -> bytes:
    """Returns the certificate (PEM) that signed the one of this control plane; empty while there is none."""
    try:
        return issuer_of(keeper.svid())
    except IssuanceRefused:
        return b""


def spread() -> float:
    """Returns how many seconds to wait before a connection is made anew: not all of them at one moment."""
    return uniform(0, _SPREAD.total_seconds())  # noqa: S311 - no secret
