"""The certificates of a running cluster: the control plane's own, and those that its proxies get over SDS.

All of them live hours and are made anew at half of their life, and at once when another authority signs; nobody is
disconnected for that.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import cast

import grpc
import msgspec

from federation.model import PodKey, ProxyScope
from federation.xds.ads import Issued
from federation.xds.secrets import secret_resources
from trust.audit import AuditEvent, AuditKind
from trust.bundle import Revocation, bundle_digest, is_revoked
from trust.issuance import IssuanceRefused, Issuer, X509Svid
from trust.spiffe import Identity, spiffe_id

log = logging.getLogger(__name__)

_RETRY = timedelta(seconds=10)
"""Until an issuing that was refused (an expired intermediate) is tried again: a new grant may have come."""

REVOKED = "revoked"
"""Reason of the audit event when a revoked workload asks for its certificate."""


class _Shown(msgspec.Struct, frozen=True):
    """What a handshake is made with: our certificate, and whom we believe. Compared by identity."""

    svid: X509Svid
    authority: str
    bundle_pem: bytes


class OwnIdentity:
    """The certificate of this control plane, renewed when it is due and asked for. Safe in any thread.

    gRPC asks from its own threads, at every handshake. While the authority has expired there may be none.
    """

    def __init__(self, issuer: Issuer, identity: Identity) -> None:
        """Issues the first one, if it can."""
        self._issuer = issuer
        self._identity = identity
        self._lock = threading.Lock()
        self._shown: _Shown | None = None
        self._refusal: IssuanceRefused | None = None
        self._renew_at = datetime.min.replace(tzinfo=UTC)
        with contextlib.suppress(IssuanceRefused):
            self._current()

    def current(self) -> X509Svid:
        """Returns the certificate to show now; raises IssuanceRefused when there is none."""
        return self._current().svid

    @property
    def authority(self) -> str:
        """The fingerprint of the authority that signed the certificate to show; empty when there is none."""
        return self._shown.authority if self._shown else ""

    @property
    def expires(self) -> datetime | None:
        """When the certificate to show expires; None when there is none."""
        return self._shown.svid.not_after if self._shown else None

    @property
    def bundle_pem(self) -> bytes:
        """The roots that are believed now."""
        return self._issuer.trust_bundle_pem

    def switch(self, issuer: Issuer) -> None:
        """Has the next handshake made with a certificate by `issuer`, and with the roots that it trusts.

        When it cannot issue, the old certificate stays until it can.
        """
        with self._lock:
            before, self._issuer = self._issuer, issuer
            if self._shown is None or issuer.authority != before.authority:
                self._renew(datetime.now(UTC))
            if self._shown is not None:
                self._shown = _Shown(self._shown.svid, self._shown.authority, issuer.trust_bundle_pem)

    def server_credentials(self, *, wants_clients: bool) -> grpc.ServerCredentials:
        """Returns credentials of one port that follow renewals; `wants_clients` requires a certificate of the mesh.

        Raises IssuanceRefused while there is no certificate.
        """
        shown = self._current()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            # gRPC replaces what it has, without a lock, whenever it is given something: with every handshake anew, a
            # storm of them ended the process by a double free. None means that nothing changed.
            nonlocal shown
            newest = self._current()
            with self._lock:
                if newest is shown:
                    return None
                shown = newest
            return _configuration(newest)

        fetcher = cast(
            "Callable[[], grpc.ServerCertificateConfiguration]", renewed
        )  # the types forget that None is taken
        return grpc.dynamic_ssl_server_credentials(
            _configuration(shown), fetcher, require_client_authentication=wants_clients
        )

    def _current(self) -> _Shown:
        now = datetime.now(UTC)
        with self._lock:
            if now >= self._renew_at:
                self._renew(now)
            if self._shown is None:
                raise self._refusal or IssuanceRefused("the control plane has no certificate", "see its log")
            return self._shown

    def _renew(self, now: datetime) -> None:
        try:
            svid = self._issuer.issue(self._identity, now=now, asked_by="control plane")
        except IssuanceRefused as error:
            self._renew_at = now + _RETRY
            self._refusal = error
            log.error("own certificate cannot be renewed", extra={"reason": error.message, "hint": error.hint})
        else:
            self._shown = _Shown(svid, self._issuer.authority, self._issuer.trust_bundle_pem)
            self._renew_at = svid.renew_at
            log.info("own certificate renewed", extra={"expires": svid.not_after})


def _configuration(shown: _Shown) -> grpc.ServerCertificateConfiguration:
    pairs = [(shown.svid.key_pem, shown.svid.certificate_chain_pem)]
    return grpc.ssl_server_certificate_configuration(pairs, root_certificates=shown.bundle_pem)


class _Held(msgspec.Struct, frozen=True):
    """A certificate that a proxy has, and the authority that signed it."""

    svid: X509Svid
    authority: str


class ProxySecrets:
    """Issues the certificates of proxies and remembers them: a stream that comes back gets the one it has.

    This is the `SecretSource` of the ADS server. Used from one event loop.
    """

    def __init__(
        self,
        issuer: Issuer,
        *,
        revoked: Callable[[], Iterable[Revocation]],
        on_event: Callable[[AuditEvent], None],
    ) -> None:
        """`revoked` says who gets nothing now; `on_event` is told of each who asked all the same."""
        self._issuer = issuer
        self._revoked = revoked
        self._on_event = on_event
        self._held: dict[tuple[Identity, PodKey | str], _Held] = {}

    def switch(self, issuer: Issuer) -> None:
        """Has the next certificates made by `issuer`: for each proxy when it is asked next."""
        self._issuer = issuer

    def secrets(self, scope: ProxyScope, now: datetime, *, asked_by: str, proof: str) -> Issued:
        """Returns the secrets of a proxy and when to ask again; none for whom is revoked."""
        holder = (scope.identity, scope.pod.key if scope.pod else scope.address)
        if is_revoked(self._revoked(), scope.identity):
            self._held.pop(holder, None)
            subject = spiffe_id(scope.identity, self._issuer.domain)
            self._on_event(
                AuditEvent(
                    kind=AuditKind.REFUSED, at=now, subject=subject, asked_by=asked_by, proof=proof, reason=REVOKED
                )
            )
            return _nothing(now)
        known = self._held.get(holder)
        if known is not None and known.authority == self._issuer.authority and now < known.svid.renew_at:
            return self._issued(known, known.svid.renew_at)
        self._forget(now)
        try:
            svid = self._issuer.issue(scope.identity, now=now, asked_by=asked_by, proof=proof)
        except IssuanceRefused as error:
            log.error(
                "certificate of a proxy cannot be issued",
                extra={"identity": str(scope.identity), "reason": error.message, "hint": error.hint},
            )
            return _nothing(now) if known is None else self._issued(known, now + _RETRY)
        made = self._held[holder] = _Held(svid, self._issuer.authority)
        return self._issued(made, svid.renew_at)

    def _issued(self, held: _Held, renew_at: datetime) -> Issued:
        svid, issuer = held.svid, self._issuer
        return Issued(
            secret_resources(svid.certificate_chain_pem, svid.key_pem, issuer.trust_bundle_pem),
            renew_at,
            authority=held.authority,
            bundle=bundle_digest(issuer.bundle),
            expires=svid.not_after,
        )

    def _forget(self, now: datetime) -> None:
        self._held = {holder: held for holder, held in self._held.items() if held.svid.not_after > now}


def _nothing(now: datetime) -> Issued:
    return Issued({}, now + _RETRY, authority="", bundle="", expires=None)
