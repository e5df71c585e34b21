"""Issues the short-lived certificates of a cluster's workloads, gateways and control plane."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from trust.authority import Intermediate
from trust.refusals import Refusal
from trust.spiffe import Identity

LEAF_LIFETIME = timedelta(hours=24)
MINIMUM_LEAF_LIFETIME = timedelta(minutes=1)


class IssuanceRefused(Refusal):
    """A certificate that this authority may not, or can no longer, issue."""


class X509Svid(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate with its key, ready to be used. `certificate_chain_pem` is the leaf, then the intermediate."""

    identity: Identity
    certificate_chain_pem: bytes
    key_pem: bytes
    not_before: datetime
    not_after: datetime
    renew_at: datetime


class Issuer:
    """Issues within one cluster's slice."""

    def __init__(self, intermediate: Intermediate, *, leaf_lifetime: timedelta = LEAF_LIFETIME) -> None:
        raise NotImplementedError

    @property
    def trust_bundle_pem(self) -> bytes:
        """The root: the only anchor that anybody trusts."""
        raise NotImplementedError

    def issue(self, identity: Identity, extra_dns: Sequence[str] = (), *, now: datetime) -> X509Svid:
        """Issues a certificate with a new key; raises IssuanceRefused.

        The control plane and the gateways get their system names (`control.<cluster>.<domain>`) without being asked.
        """
        raise NotImplementedError
