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
from federation.names import WORKLOAD_SECRET
from tests.support.addresses import free_address
from tests.support.trust import DOMAIN, EAST, make_authorities, make_issuers
from trust.certificates import spiffe_identity
from trust.issuance import Issuer
from trust.spiffe import Identity, Namespace, ServiceAccount, control_identity

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def a_scope(account: str) -> ProxyScope:
    identity = Identity(EAST, Namespace("shop"), ServiceAccount(account))
    audience = Audience(ProxyRole.SIDECAR, EAST, NetworkName("east"), Locality("eu"), identity.namespace)
    return ProxyScope(audience, identity, "10.0.0.1")


def test_a_proxy_keeps_its_certificate_until_it_is_due() -> None:
    secrets = ProxySecrets(make_issuers(EAST, now=NOW)[EAST])
    first, renew_at = secrets.secrets(a_scope("cart"), NOW)
    same, _ = secrets.secrets(a_scope("cart"), renew_at - timedelta(seconds=1))
    renewed, later = secrets.secrets(a_scope("cart"), renew_at)
    assert same == first
    assert renewed[WORKLOAD_SECRET].version != first[WORKLOAD_SECRET].version
    assert later > renew_at


def test_proxies_of_different_accounts_have_different_certificates() -> None:
    secrets = ProxySecrets(make_issuers(EAST, now=NOW)[EAST])
    cart, _ = secrets.secrets(a_scope("cart"), NOW)
    client, _ = secrets.secrets(a_scope("client"), NOW)
    assert cart[WORKLOAD_SECRET].version != client[WORKLOAD_SECRET].version


def test_when_the_authority_has_expired_a_proxy_keeps_what_it_has_and_we_ask_again() -> None:
    authority = make_authorities(EAST, now=NOW, lifetime=timedelta(hours=2))[EAST]
    secrets = ProxySecrets(Issuer(authority))
    held, renew_at = secrets.secrets(a_scope("cart"), NOW)
    assert renew_at < NOW + timedelta(hours=2)
    after = NOW + timedelta(hours=3)
    kept, again = secrets.secrets(a_scope("cart"), after)
    assert kept == held
    assert after < again < after + timedelta(minutes=1)
    assert secrets.secrets(a_scope("client"), after)[0] == {}


async def shown_certificate(credentials: grpc.ServerCredentials, issuer: Issuer, name: str) -> x509.Certificate:
    """Returns what a server with `credentials` shows to a client that trusts the root and wants `name`."""

    address = free_address()
    server = grpc.aio.server()
    port = server.add_secure_port(f"{address}:0", credentials)
    await server.start()
    try:
        context = ssl.create_default_context(cadata=issuer.trust_bundle_pem.decode())
        context.set_alpn_protocols(["h2"])
        async with asyncio.timeout(10):
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
