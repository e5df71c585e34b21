"""Certificates of a running cluster: renewed when due, kept when they cannot be, shown in real TLS handshakes."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from deploy.control.identity import OwnIdentity, ProxySecrets
from federation.model import Audience, Locality, NetworkName, ProxyRole, ProxyScope
from federation.names import TRUST_BUNDLE_SECRET, WORKLOAD_SECRET
from federation.xds.ads import Issued
from tests.support.addresses import free_address
from tests.support.trust import DOMAIN, EAST, bundle_of, make_authorities, make_issuer, make_issuers
from trust.audit import AuditEvent
from trust.bundle import Revocation, bundle_digest, make_revocation
from trust.certificates import spiffe_identity
from trust.issuance import Issuer
from trust.spiffe import Identity, Namespace, ServiceAccount, control_identity

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def a_scope(account: str) -> ProxyScope:
    identity = Identity(EAST, Namespace("shop"), ServiceAccount(account))
    audience = Audience(ProxyRole.SIDECAR, EAST, NetworkName("east"), Locality("eu"), identity.namespace)
    return ProxyScope(audience, identity, "10.0.0.1")


class Secrets:
    """ProxySecrets with whom is revoked, and what the audit trail was told."""

    def __init__(self, issuer: Issuer) -> None:
        self.revoked: tuple[Revocation, ...] = ()
        self.told: list[AuditEvent] = []
        self.source = ProxySecrets(issuer, revoked=lambda: self.revoked, on_event=self.told.append)

    def of(self, account: str, now: datetime) -> Issued:
        return self.source.secrets(a_scope(account), now, asked_by="east/shop/cart-1 (10.0.0.1)", proof="join-token 1f")


def make_two(now: datetime) -> tuple[Issuer, Issuer, Issuer]:
    """Returns issuers of two authorities of one cluster, below two roots that both trust, and of the second one when it
    trusts its own root alone."""
    first, second = (make_authorities(EAST, now=now)[EAST] for _ in range(2))
    both = bundle_of(first.root, second.root)
    return Issuer(first, both), Issuer(second, both), make_issuer(second)


def test_a_proxy_keeps_its_certificate_until_it_is_due() -> None:
    secrets = Secrets(make_issuers(EAST, now=NOW)[EAST])
    first = secrets.of("cart", NOW)
    same = secrets.of("cart", first.renew_at - timedelta(seconds=1))
    renewed = secrets.of("cart", first.renew_at)
    assert same == first
    assert renewed.resources[WORKLOAD_SECRET].version != first.resources[WORKLOAD_SECRET].version
    assert renewed.renew_at > first.renew_at


def test_proxies_of_different_accounts_have_different_certificates() -> None:
    secrets = Secrets(make_issuers(EAST, now=NOW)[EAST])
    cart, client = secrets.of("cart", NOW), secrets.of("client", NOW)
    assert cart.resources[WORKLOAD_SECRET].version != client.resources[WORKLOAD_SECRET].version


def test_when_the_authority_has_expired_a_proxy_keeps_what_it_has_and_we_ask_again() -> None:
    authority = make_authorities(EAST, now=NOW, lifetime=timedelta(hours=2))[EAST]
    secrets = Secrets(make_issuer(authority))
    held = secrets.of("cart", NOW)
    assert held.renew_at < NOW + timedelta(hours=2)
    after = NOW + timedelta(hours=3)
    kept = secrets.of("cart", after)
    assert (kept.resources, kept.expires) == (held.resources, held.expires)
    assert after < kept.renew_at < after + timedelta(minutes=1)
    assert secrets.of("client", after).resources == {}


def test_another_authority_signs_at_once_and_its_name_stands_beside() -> None:
    one, other, _ = make_two(NOW)
    secrets = Secrets(one)
    first = secrets.of("cart", NOW)
    assert first.authority == one.authority
    secrets.source.switch(other)
    second = secrets.of("cart", NOW)
    assert second.authority == other.authority != one.authority
    assert second.resources[WORKLOAD_SECRET].version != first.resources[WORKLOAD_SECRET].version
    assert second.bundle == first.bundle == bundle_digest(one.bundle)
    assert second.resources[TRUST_BUNDLE_SECRET].version == first.resources[TRUST_BUNDLE_SECRET].version


def test_another_bundle_alone_makes_no_new_certificate() -> None:
    authority = make_authorities(EAST, now=NOW)[EAST]
    secrets = Secrets(make_issuer(authority))
    first = secrets.of("cart", NOW)
    stranger = make_authorities(EAST, now=NOW)[EAST]
    secrets.source.switch(Issuer(authority, bundle_of(authority.root, stranger.root)))
    second = secrets.of("cart", NOW)
    assert second.resources[WORKLOAD_SECRET] == first.resources[WORKLOAD_SECRET]
    assert second.resources[TRUST_BUNDLE_SECRET] != first.resources[TRUST_BUNDLE_SECRET]
    assert second.bundle != first.bundle


def test_a_revoked_workload_gets_nothing_and_the_trail_says_so() -> None:
    secrets = Secrets(make_issuers(EAST, now=NOW)[EAST])
    before = secrets.of("cart", NOW)
    secrets.revoked = (make_revocation("shop/cart@east", at=NOW, reason="stolen"),)
    nothing = secrets.of("cart", NOW)
    assert (nothing.resources, nothing.authority, nothing.bundle, nothing.expires) == ({}, "", "", None)
    assert secrets.of("client", NOW).resources
    (event,) = secrets.told
    assert (event.kind, event.subject) == ("refused", f"spiffe://east.{DOMAIN}/ns/shop/sa/cart")
    assert (event.asked_by, event.proof) == ("east/shop/cart-1 (10.0.0.1)", "join-token 1f")
    secrets.revoked = ()
    after = secrets.of("cart", NOW)  # with a new key: the old one may be with somebody else
    assert after.resources[WORKLOAD_SECRET].version != before.resources[WORKLOAD_SECRET].version


async def shown_certificate(credentials: grpc.ServerCredentials, issuer: Issuer, name: str) -> x509.Certificate:
    """Returns what a server with `credentials` shows to a client that trusts the root and wants `name`."""

    address = free_address()
    server = grpc.aio.server()
    port = server.add_secure_port(f"{address}:0", credentials)
    await server.start()
    try:
        context = ssl.create_default_context(cadata=issuer.trust_bundle_pem.decode())
        context.set_alpn_protocols(["h2"])
        async with asyncio.timeout(60):
            _, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=name)
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return x509.load_der_x509_certificate(shown)
    finally:
        await server.stop(None)


async def test_the_control_plane_shows_its_own_identity_to_proxies() -> None:
    issuer = make_issuers(EAST, now=datetime.now(UTC))[EAST]
    own = OwnIdentity(issuer, control_identity(EAST))
    shown = await shown_certificate(own.server_credentials(wants_clients=False), issuer, f"control.east.{DOMAIN}")
    assert spiffe_identity(shown, DOMAIN) == control_identity(EAST)
    credentials = own.server_credentials(wants_clients=False)
    with pytest.raises(ssl.SSLCertVerificationError):
        await shown_certificate(credentials, issuer, f"control.west.{DOMAIN}")


async def test_a_peer_without_a_certificate_of_the_mesh_is_refused(tmp_path: Path) -> None:
    issuer = make_issuers(EAST, now=datetime.now(UTC))[EAST]
    stranger = make_issuers(EAST, now=datetime.now(UTC))[EAST]
    own = OwnIdentity(issuer, control_identity(EAST))
    address = free_address()
    server = grpc.aio.server()
    port = server.add_secure_port(f"{address}:0", own.server_credentials(wants_clients=True))
    await server.start()
    options = (("grpc.ssl_target_name_override", f"control.east.{DOMAIN}"),)
    try:
        for holder, code in ((issuer, grpc.StatusCode.UNIMPLEMENTED), (stranger, grpc.StatusCode.UNAVAILABLE)):
            svid = holder.issue(control_identity(EAST), now=datetime.now(UTC))
            mine = grpc.ssl_channel_credentials(issuer.trust_bundle_pem, svid.key_pem, svid.certificate_chain_pem)
            async with grpc.aio.secure_channel(f"{address}:{port}", mine, options) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await channel.unary_unary("/nobody/Nothing")(b"", timeout=10)
            assert refused.value.code() is code
    finally:
        await server.stop(None)


async def test_handshakes_follow_another_authority_and_another_bundle() -> None:
    one, other, _ = make_two(datetime.now(UTC))
    own = OwnIdentity(one, control_identity(EAST))
    credentials = own.server_credentials(wants_clients=False)
    name = f"control.east.{DOMAIN}"
    before = await shown_certificate(credentials, one, name)
    own.switch(other)
    assert own.authority == other.authority
    assert own.current().certificate_chain_pem.endswith(other.intermediate_pem)
    shown = await shown_certificate(own.server_credentials(wants_clients=False), other, name)
    assert shown.issuer == x509.load_pem_x509_certificate(other.intermediate_pem).subject
    assert shown != before


async def test_a_port_that_is_open_follows_without_being_opened_anew() -> None:
    one, other, alone = make_two(datetime.now(UTC))
    own = OwnIdentity(one, control_identity(EAST))
    address = free_address()
    server = grpc.aio.server()
    port = server.add_secure_port(f"{address}:0", own.server_credentials(wants_clients=True))
    await server.start()
    options = (("grpc.ssl_target_name_override", f"control.east.{DOMAIN}"),)

    async def is_let_in(issuer: Issuer) -> bool:
        svid = issuer.issue(control_identity(EAST), now=datetime.now(UTC))
        mine = grpc.ssl_channel_credentials(one.trust_bundle_pem, svid.key_pem, svid.certificate_chain_pem)
        async with grpc.aio.secure_channel(f"{address}:{port}", mine, options) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary("/nobody/Nothing")(b"", timeout=10)
            return refused.value.code() is grpc.StatusCode.UNIMPLEMENTED

    try:
        assert await is_let_in(one)
        own.switch(other)
        assert await is_let_in(one)
        assert await is_let_in(other)
        own.switch(alone)
        assert not await is_let_in(one)
        assert await is_let_in(other)
    finally:
        await server.stop(None)
