"""Real handshakes: what the chains prove to OpenSSL (Python's ssl, strict) and to BoringSSL (gRPC, as in Envoy)."""

import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from tests.support.trust import DOMAIN, EAST, WEST, make_authorities, make_issuer
from trust.certificates import (
    CertificateRefused,
    certificate_pem,
    key_pem,
    load_certificate,
    make_intermediate,
    make_leaf,
    new_key,
    spiffe_identity,
)
from trust.enrolment import Intermediate
from trust.spiffe import (
    ClusterName,
    Identity,
    control_dns_name,
    control_identity,
    workload_dns_name,
)
from trust.verification import check_chain

NOW = datetime.now(UTC)


@dataclass(frozen=True)
class Party:
    """One side of a handshake: what it presents, and whom it trusts."""

    chain: bytes
    key: bytes
    bundle: bytes
    name: str

    @property
    def certificates(self) -> list[bytes]:
        end = b"-----END CERTIFICATE-----\n"
        return [part + end for part in self.chain.split(end)[:-1]]


def party(authority: Intermediate, identity: Identity, *, lifetime: timedelta = timedelta(hours=1)) -> Party:
    """Signs whatever is asked for, as the holder of a stolen intermediate would: no check of ours is in its way."""
    key = new_key()
    leaf = make_leaf(
        authority.certificate,
        authority.key,
        public_key=key.public_key(),
        identity=identity,
        domain=DOMAIN,
        extra_dns=(),
        now=NOW,
        lifetime=lifetime,
    )
    return Party(
        chain=certificate_pem(leaf) + certificate_pem(authority.certificate),
        key=key_pem(key),
        bundle=certificate_pem(authority.root),
        name=workload_dns_name(identity, DOMAIN),
    )


def issued(authority: Intermediate, identity: Identity) -> Party:
    svid = make_issuer(authority).issue(identity, now=NOW)
    return Party(
        chain=svid.certificate_chain_pem,
        key=svid.key_pem,
        bundle=certificate_pem(authority.root),
        name=workload_dns_name(identity, DOMAIN),
    )


def openssl_handshake(server: Party, client: Party, directory: Path) -> str:
    """Shakes hands in memory; returns the identity that the server saw. Raises ssl.SSLCertVerificationError."""

    def context(protocol: int, who: Party, file: str) -> ssl.SSLContext:
        made = ssl.SSLContext(protocol)
        path = directory / file
        path.write_bytes(who.key + who.chain)
        made.load_cert_chain(path)
        made.load_verify_locations(cadata=who.bundle.decode())
        made.verify_mode = ssl.CERT_REQUIRED
        made.verify_flags |= ssl.VERIFY_X509_STRICT
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        return made

    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    serving = context(ssl.PROTOCOL_TLS_SERVER, server, "server.pem").wrap_bio(to_server, to_client, server_side=True)
    calling = context(ssl.PROTOCOL_TLS_CLIENT, client, "client.pem").wrap_bio(
        to_client, to_server, server_hostname=server.name
    )
    waiting = [calling, serving]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)
    assert not waiting, "the handshake goes on for ever"
    peer = serving.getpeercert(binary_form=True)
    assert peer is not None
    return str(spiffe_identity(load_certificate(ssl.DER_cert_to_PEM_cert(peer).encode()), DOMAIN))


def grpc_handshake(server: Party, client: Party, directory: Path) -> str:
    """Calls over a real connection; returns the identity that the server saw. Raises ConnectionRefusedError."""

    def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
        (peer,) = context.auth_context()["x509_pem_cert"]
        return str(spiffe_identity(load_certificate(bytes(peer)), DOMAIN)).encode()

    with ThreadPoolExecutor(1) as pool:
        serving = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        serving.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("test", {"Who": grpc.unary_unary_rpc_method_handler(answer)})]
        )
        credentials = grpc.ssl_server_credentials([(server.key, server.chain)], server.bundle, require_client_auth=True)
        port = serving.add_secure_port("127.101.0.1:0", credentials)
        serving.start()
        try:
            with grpc.secure_channel(
                f"127.101.0.1:{port}",
                grpc.ssl_channel_credentials(client.bundle, client.key, client.chain),
                options=[("grpc.ssl_target_name_override", server.name)],
            ) as channel:
                reply: bytes = channel.unary_unary("/test/Who")(b"", timeout=10)
                return reply.decode()
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.UNAVAILABLE:
                raise ConnectionRefusedError(error.details()) from error  # TLS failed; a timeout would be another code
            raise
        finally:
            serving.stop(None).wait()


Handshake = Callable[[Party, Party, Path], str]
both = pytest.mark.parametrize("shake_hands", [openssl_handshake, grpc_handshake])
REFUSED = (ssl.SSLCertVerificationError, ConnectionRefusedError)


@pytest.fixture(scope="module")
def mesh() -> dict[ClusterName, Intermediate]:
    return make_authorities(EAST, WEST, now=NOW)


@both
def test_two_clusters_meet_and_see_whom_they_speak_with(
    mesh: dict[ClusterName, Intermediate], shake_hands: Handshake, tmp_path: Path
) -> None:
    seen = shake_hands(issued(mesh[WEST], control_identity(WEST)), issued(mesh[EAST], control_identity(EAST)), tmp_path)
    assert seen == str(control_identity(EAST))


@both
def test_the_control_plane_answers_to_its_own_name(
    mesh: dict[ClusterName, Intermediate], shake_hands: Handshake, tmp_path: Path
) -> None:
    server = replace(issued(mesh[WEST], control_identity(WEST)), name=control_dns_name(WEST, DOMAIN))
    client = issued(mesh[EAST], control_identity(EAST))
    assert shake_hands(server, client, tmp_path)
    with pytest.raises(REFUSED):
        shake_hands(replace(server, name="control.south.mesh.test"), client, tmp_path)


@both
@pytest.mark.parametrize("forger_serves", [True, False])
def test_a_stolen_intermediate_cannot_speak_for_another_cluster(
    mesh: dict[ClusterName, Intermediate], shake_hands: Handshake, forger_serves: bool, tmp_path: Path
) -> None:
    forged = party(mesh[EAST], control_identity(WEST))
    honest = issued(mesh[WEST], control_identity(WEST))
    with pytest.raises(REFUSED):
        shake_hands(forged, honest, tmp_path) if forger_serves else shake_hands(honest, forged, tmp_path)
    leaf, intermediate = map(load_certificate, forged.certificates)
    with pytest.raises(CertificateRefused):  # and our own check agrees with theirs
        check_chain(leaf, intermediate, mesh[EAST].root, domain=DOMAIN, now=NOW)


@both
def test_a_stolen_intermediate_cannot_make_another_authority(
    mesh: dict[ClusterName, Intermediate], shake_hands: Handshake, tmp_path: Path
) -> None:
    key = new_key()
    below = make_intermediate(
        mesh[EAST].certificate,
        mesh[EAST].key,
        public_key=key.public_key(),
        cluster=WEST,
        domain=DOMAIN,
        now=NOW,
        lifetime=timedelta(hours=1),
    )
    forged = party(replace(mesh[EAST], certificate=below, key=key), control_identity(WEST))
    forged = replace(forged, chain=forged.chain + certificate_pem(mesh[EAST].certificate))
    with pytest.raises(REFUSED):
        shake_hands(issued(mesh[WEST], control_identity(WEST)), forged, tmp_path)


@both
@pytest.mark.parametrize("stranger_serves", [True, False])
def test_a_mesh_of_the_same_name_under_another_root_is_refused(
    mesh: dict[ClusterName, Intermediate], shake_hands: Handshake, stranger_serves: bool, tmp_path: Path
) -> None:
    stranger = replace(
        issued(make_authorities(EAST, now=NOW)[EAST], control_identity(EAST)),
        bundle=certificate_pem(mesh[EAST].root),  # trusts us; we do not trust it
    )
    honest = issued(mesh[WEST], control_identity(WEST))
    with pytest.raises(REFUSED):
        shake_hands(stranger, honest, tmp_path) if stranger_serves else shake_hands(honest, stranger, tmp_path)


@both
def test_an_expired_leaf_is_refused(
    mesh: dict[ClusterName, Intermediate], shake_hands: Handshake, tmp_path: Path
) -> None:
    past = NOW - timedelta(minutes=4)
    authority = make_authorities(EAST, now=past)[EAST]
    key = new_key()
    leaf = make_leaf(
        authority.certificate,
        authority.key,
        public_key=key.public_key(),
        identity=control_identity(EAST),
        domain=DOMAIN,
        extra_dns=(),
        now=past,
        lifetime=timedelta(minutes=1),
    )
    expired = Party(
        chain=certificate_pem(leaf) + certificate_pem(authority.certificate),
        key=key_pem(key),
        bundle=certificate_pem(authority.root),
        name=workload_dns_name(control_identity(EAST), DOMAIN),
    )
    good = issued(authority, control_identity(EAST))
    assert shake_hands(good, good, tmp_path)
    with pytest.raises(REFUSED):
        shake_hands(good, expired, tmp_path)
