"""Who may speak to whom: the caller's SPIFFE id reaches the app, strangers and forgers reach nothing."""

import json
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.mesh import Isthmus
from tests.system.conftest import CART

CLIENT = "east/shop/client"
CALLER = "spiffe://east.mesh.test/ns/shop/sa/client"


def mesh_port(mesh: Isthmus, target: str) -> tuple[str, int]:
    return mesh.address(target), 15008


def answer_over_tls(address: tuple[str, int], sni: str, context: ssl.SSLContext) -> bytes:
    """Does a handshake and a request; returns what comes back, b"" when the connection is refused."""
    try:
        with (
            socket.create_connection(address, timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=sni) as connection,
        ):
            connection.sendall(b"GET / HTTP/1.1\r\nhost: cart\r\nconnection: close\r\n\r\n")
            return connection.recv(4096)
    except (ssl.SSLError, ConnectionResetError):
        return b""


def context_with(chain: bytes, key: bytes, folder: Path) -> ssl.SSLContext:
    (folder / "chain.pem").write_bytes(chain)
    (folder / "key.pem").write_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is the server's judgement that is tested
    context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    return context


def leaf_signed_by(issuer: x509.Certificate, issuer_key: Any, uri: str) -> tuple[bytes, bytes]:
    """Signs what a thief of the issuer's key would sign, whatever the issuer is constrained to."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forged")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(minutes=10))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )
    chain = certificate.public_bytes(serialization.Encoding.PEM) + issuer.public_bytes(serialization.Encoding.PEM)
    return chain, key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def stolen(mesh: Isthmus, cluster: str) -> tuple[x509.Certificate, Any]:
    """Returns certificate and key of a cluster's intermediate, as a thief of its disk has them."""
    [folder] = mesh.home.rglob(f"{cluster}/control")
    grant = json.loads((folder / "grant-1.json").read_text())
    key = serialization.load_pem_private_key((folder / "ca-1-key.pem").read_bytes(), None)
    return x509.load_pem_x509_certificate(grant["certificate"].encode()), key


def strange_root() -> tuple[x509.Certificate, Any]:
    """Makes an authority that nobody of the mesh has heard of."""
    authority = trustme.CA()
    key = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    return x509.load_pem_x509_certificate(authority.cert_pem.bytes()), key


def test_the_app_sees_who_calls_from_another_cluster(mesh: Isthmus) -> None:
    mesh.lab("kill", "east/shop/cart")
    out = mesh.execute(CLIENT, "curl", "-sS", CART)
    assert out.startswith("cart-")
    assert f"URI={CALLER}" in out


def test_a_caller_cannot_claim_another_identity(mesh: Isthmus) -> None:
    header = "x-forwarded-client-cert: URI=spiffe://mesh.test/ns/bank/sa/owner"
    out = mesh.execute(CLIENT, "curl", "-sS", "-H", header, CART)
    assert f"URI={CALLER}" in out
    assert "bank" not in out


def test_plaintext_to_a_mesh_port_is_refused(mesh: Isthmus) -> None:
    with socket.create_connection(mesh_port(mesh, "west/shop/cart-1/sidecar"), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: cart\r\n\r\n")
        try:
            answer = connection.recv(4096)
        except ConnectionResetError:
            answer = b""
    assert answer == b""


def test_a_certificate_of_another_root_is_refused(mesh: Isthmus, tmp_path: Path) -> None:
    context = context_with(*leaf_signed_by(*strange_root(), CALLER), tmp_path)
    address = mesh_port(mesh, "west/shop/cart-1/sidecar")
    assert answer_over_tls(address, "80.cart.shop.svc.west.mesh.test", context) == b""


@pytest.mark.parametrize(
    ("uri", "is_served"),
    [
        ("spiffe://west.mesh.test/ns/shop/sa/client", True),
        (CALLER, False),
        ("spiffe://mesh.test/ns/shop/sa/client", False),
    ],
)
def test_a_stolen_intermediate_speaks_for_its_own_cluster_only(
    mesh: Isthmus, tmp_path: Path, uri: str, is_served: bool
) -> None:
    certificate, key = stolen(mesh, "west")
    context = context_with(*leaf_signed_by(certificate, key, uri), tmp_path)
    address = mesh_port(mesh, "east/shop/cart-1/sidecar")
    answer = answer_over_tls(address, "80.cart.shop.svc.east.mesh.test", context)
    assert answer.startswith(b"HTTP/1.1 200") == is_served, answer
