"""The certificates of a running cluster: the control plane's own, and those that its proxies get over SDS.

All of them live hours and are made anew at half of their life; nobody is disconnected for that.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import cast

import grpc

from federation.model import PodKey, ProxyScope
from federation.xds.resources import Resource
from federation.xds.secrets import secret_resources
from trust.issuance import IssuanceRefused, Issuer, X509Svid
from trust.spiffe import Identity

log = logging.getLogger(__name__)

_RETRY = timedelta(seconds=10)
"""Until an issuing that was refused (an expired intermediate) is tried again: a new grant may have come."""


class OwnIdentity:
    """The certificate of this control plane, renewed when it is due and asked for. Safe in any thread.

    gRPC asks from its own threads, at every handshake.
    """

    def __init__(self, issuer: Issuer, identity: Identity) -> None:
        """Issues the first one; raises IssuanceRefused."""
        self._issuer = issuer
        self._identity = identity
        self._lock = threading.Lock()
        self._svid = issuer.issue(identity, now=datetime.now(UTC))
        self._renew_at = self._svid.renew_at

    def current(self) -> X509Svid:
        """Returns the certificate to show now."""
        now = datetime.now(UTC)
        with self._lock:
            if now >= self._renew_at:
                try:
                    self._svid = self._issuer.issue(self._identity, now=now)
                    self._renew_at = self._svid.renew_at
                    log.info("own certificate renewed", extra={"expires": self._svid.not_after})
                except IssuanceRefused as error:
                    self._renew_at = now + _RETRY
                    log.error("own certificate cannot be renewed", extra={"reason": error.message, "hint": error.hint})
            return self._svid

    def server_credentials(self, *, wants_clients: bool) -> grpc.ServerCredentials:
        """Returns credentials of one port that follow renewals; `wants_clients` requires a certificate of the mesh."""
        shown = self.current()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            # gRPC replaces what it has, without a lock, whenever it is given something: with every handshake anew, a
            # storm of them ended the process by a double free. None means that nothing changed.
            nonlocal shown
            svid = self.current()
            with self._lock:
                if svid is shown:
                    return None
                shown = svid
            return self._configuration(svid)

        fetcher = cast(
            "Callable[[], grpc.ServerCertificateConfiguration]", renewed
        )  # the types forget that None is taken
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(shown), fetcher, require_client_authentication=wants_clients
        )

    def _configuration(self, svid: X509Svid) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(svid.key_pem, svid.certificate_chain_pem)], root_certificates=self._issuer.trust_bundle_pem
        )


class ProxySecrets:
    """Issues the certificates of proxies and remembers them: a stream that comes back gets the one it has.

    This is the `SecretSource` of the ADS server.
    """

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer
        self._issued: dict[tuple[Identity, PodKey | str], X509Svid] = {}

    def secrets(
        self, scope: ProxyScope, now: datetime, *, asked_by: str = "", proof: str = ""
    ) -> tuple[Mapping[str, Resource], datetime]:
        """Returns the secrets of a proxy and when to ask again."""
        holder = (scope.identity, scope.pod.key if scope.pod else scope.address)
        known = self._issued.get(holder)
        if known is None or now >= known.renew_at:
            self._forget(now)
            try:
                known = self._issued[holder] = self._issuer.issue(scope.identity, now=now)
            except IssuanceRefused as error:
                log.error(
                    "certificate of a proxy cannot be issued",
                    extra={"identity": str(scope.identity), "reason": error.message, "hint": error.hint},
                )
                if known is None:
                    return {}, now + _RETRY
                return self._resources(known), now + _RETRY
        return self._resources(known), known.renew_at

    def _resources(self, svid: X509Svid) -> Mapping[str, Resource]:
        return secret_resources(svid.certificate_chain_pem, svid.key_pem, self._issuer.trust_bundle_pem)

    def _forget(self, now: datetime) -> None:
        self._issued = {holder: svid for holder, svid in self._issued.items() if svid.not_after > now}
