"""Issues the short-lived certificates of a cluster's workloads, gateways and control plane.

Keys are made here and handed on; nothing of them is kept. Who asks has been identified before (`attestation`). Every
certificate and every refusal is an event for the audit trail.
"""

import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import msgspec
from cryptography import x509

from trust.audit import AuditEvent, AuditKind
from trust.bundle import TrustBundle, bundle_pem
from trust.certificates import CertificateRefused, certificate_pem, key_pem, make_leaf, new_key
from trust.custody import CustodyRefused
from trust.enrolment import Intermediate
from trust.refusals import Refusal
from trust.spiffe import (
    ClusterName,
    Identity,
    MeshDomain,
    control_dns_name,
    control_identity,
    gateway_dns_name,
    gateway_identity,
    spiffe_id,
)

LEAF_LIFETIME = timedelta(hours=24)
MINIMUM_LEAF_LIFETIME = timedelta(minutes=1)

_RENEW_AFTER = 0.5
"""Part of the lifetime: the other half is for a control plane that is away."""
_RENEW_JITTER = 0.1
"""Part of that time, either way: proxies that started together do not renew together."""
_RENEW_NO_SOONER = timedelta(seconds=5)
"""Halves of a time that ends with the intermediate grow ever shorter: a bound on the storm before it."""


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

    def __repr__(self) -> str:
        """Leaves the key out: what is printed ends in logs."""
        return f"X509Svid({self.identity}, not_after={self.not_after}, renew_at={self.renew_at})"


class Issuer:
    """Issues within one cluster's slice. Safe in any thread.

    One issuer has one authority and one trust bundle; when one of them changes, another issuer takes its place.
    """

    def __init__(
        self,
        intermediate: Intermediate,
        bundle: TrustBundle,
        *,
        leaf_lifetime: timedelta = LEAF_LIFETIME,
        on_event: Callable[[AuditEvent], None] = lambda _: None,
    ) -> None:
        """Raises IssuanceRefused for a lifetime below a minute: it would end before a proxy has renewed.

        `on_event` is told of every certificate and refusal, in the thread that asked.
        """
        if leaf_lifetime < MINIMUM_LEAF_LIFETIME:
            message = f"a leaf lifetime of {leaf_lifetime} is too short"
            raise IssuanceRefused(message, f"give at least {MINIMUM_LEAF_LIFETIME}")
        self._intermediate = intermediate
        self._lifetime = leaf_lifetime
        self._intermediate_pem = certificate_pem(intermediate.certificate)
        self._authority = intermediate.fingerprint
        self._bundle = bundle
        self._bundle_pem = bundle_pem(bundle)
        self._on_event = on_event

    @property
    def cluster(self) -> ClusterName:
        """The cluster that this authority speaks for."""
        return self._intermediate.cluster

    @property
    def domain(self) -> MeshDomain:
        """The mesh that the cluster belongs to."""
        return self._intermediate.domain

    @property
    def intermediate_pem(self) -> bytes:
        """The certificate of the issuing authority: a member's proof of membership."""
        return self._intermediate_pem

    @property
    def authority(self) -> str:
        """The fingerprint of the key that signs (hex SHA-256)."""
        return self._authority

    @property
    def bundle(self) -> TrustBundle:
        """Whom the certificates' holders are told to believe."""
        return self._bundle

    @property
    def trust_bundle_pem(self) -> bytes:
        """The roots that are trusted, one or two: also while the root of this authority is not among them."""
        return self._bundle_pem

    def issue(
        self,
        identity: Identity,
        extra_dns: Sequence[str] = (),
        *,
        now: datetime,
        asked_by: str = "",
        proof: str = "",
    ) -> X509Svid:
        """Issues a certificate with a new key; raises IssuanceRefused. `asked_by` and `proof` are for the audit trail.

        The control plane and the gateways get their system names (`control.<cluster>.<domain>`) without being asked.
        The certificate ends with the intermediate at the latest, and is to be renewed at half of the time it has left.
        Once the intermediate has expired nothing is issued.
        """
        subject = spiffe_id(identity, self.domain)
        event = AuditEvent(
            kind=AuditKind.ISSUED, at=now, subject=subject, asked_by=asked_by, proof=proof, authority=self._authority
        )
        try:
            leaf, svid = self._make(identity, extra_dns, now=now)
        except IssuanceRefused as error:
            self._on_event(msgspec.structs.replace(event, kind=AuditKind.REFUSED, reason=error.message))
            raise
        self._on_event(msgspec.structs.replace(event, serial=f"{leaf.serial_number:x}", expires=svid.not_after))
        return svid

    def _make(
        self, identity: Identity, extra_dns: Sequence[str], *, now: datetime
    ) -> tuple[x509.Certificate, X509Svid]:
        if identity.cluster != self.cluster:
            message = f"{spiffe_id(identity, self.domain)} is not in the slice of {self.cluster}"
            raise IssuanceRefused(message, f"ask the control plane of {identity.cluster}")
        key = new_key()
        try:
            leaf = make_leaf(
                self._intermediate.certificate,
                self._intermediate.key,
                public_key=key.public_key(),
                identity=identity,
                domain=self.domain,
                extra_dns=(*self._system_names(identity), *extra_dns),
                now=now,
                lifetime=self._lifetime,
            )
        except (CertificateRefused, CustodyRefused) as error:
            raise IssuanceRefused(error.message, error.hint) from error
        part = _RENEW_AFTER * secrets.SystemRandom().uniform(1 - _RENEW_JITTER, 1 + _RENEW_JITTER)
        return leaf, X509Svid(
            identity=identity,
            certificate_chain_pem=certificate_pem(leaf) + self._intermediate_pem,
            key_pem=key_pem(key),
            not_before=leaf.not_valid_before_utc,
            not_after=leaf.not_valid_after_utc,
            renew_at=now + max((leaf.not_valid_after_utc - now) * part, _RENEW_NO_SOONER),
        )

    def _system_names(self, identity: Identity) -> tuple[str, ...]:
        if identity == control_identity(self.cluster):
            return (control_dns_name(self.cluster, self.domain),)
        if identity == gateway_identity(self.cluster):
            return (gateway_dns_name(self.cluster, self.domain),)
        return ()
