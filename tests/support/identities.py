"""Certificates of a mesh for tests: a root, an intermediate for each cluster, leaves as a control plane issues them."""

import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from federation.xds.resources import Resource
from federation.xds.secrets import secret_resources
from trust.certificates import certificate_pem, key_pem, make_intermediate, make_leaf, make_root, new_key
from trust.spiffe import ClusterName, Identity, MeshDomain, Namespace, ServiceAccount

_LIFETIME = timedelta(hours=1)


def identity(cluster: str, account: str, namespace: str = "shop") -> Identity:
    """Returns an identity from plain text."""
    return Identity(ClusterName(cluster), Namespace(namespace), ServiceAccount(account))


def tls_client(folder: Path, chain: bytes = b"", private_key: bytes = b"") -> ssl.SSLContext:
    """Returns a TLS client that trusts anybody and shows this certificate, or none: only the server refuses here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if chain:
        (folder / "chain.pem").write_bytes(chain)
        (folder / "key.pem").write_bytes(private_key)
        context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    return context


class MeshIdentities:
    """One mesh's keys and certificates, in memory."""

    def __init__(self, domain: MeshDomain) -> None:
        self.domain = domain
        self._now = datetime.now(UTC)
        self._root_key = new_key()
        self.root = make_root(self._root_key, domain, now=self._now, lifetime=_LIFETIME)
        self._intermediates: dict[ClusterName, tuple[x509.Certificate, ec.EllipticCurvePrivateKey]] = {}

    @property
    def root_pem(self) -> bytes:
        return certificate_pem(self.root)

    def leaf(self, whose: Identity, *, signed_by: str = "", extra_dns: tuple[str, ...] = ()) -> tuple[bytes, bytes]:
        """Returns chain and key (PEM) of a leaf; `signed_by` names another cluster, to forge one."""
        issuer, issuer_key = self._intermediate(ClusterName(signed_by) or whose.cluster)
        key = new_key()
        certificate = make_leaf(
            issuer,
            issuer_key,
            public_key=key.public_key(),
            identity=whose,
            domain=self.domain,
            extra_dns=extra_dns,
            now=self._now,
            lifetime=_LIFETIME,
        )
        return certificate_pem(certificate) + certificate_pem(issuer), key_pem(key)

    def hostile_leaf(self, signed_by: str, *names: x509.GeneralName) -> tuple[bytes, bytes]:
        """Returns chain and key of what a cluster's authority signs in the wrong hands: any names at all."""
        issuer, issuer_key = self._intermediate(ClusterName(signed_by))
        key = new_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now)
            .not_valid_after(self._now + _LIFETIME)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        certificate = builder.sign(issuer_key, hashes.SHA256())
        return certificate_pem(certificate) + certificate_pem(issuer), key_pem(key)

    def secrets(
        self, whose: Identity, *, signed_by: str = "", extra_dns: tuple[str, ...] = ()
    ) -> Mapping[str, Resource]:
        """Returns the SDS resources of a proxy."""
        chain, key = self.leaf(whose, signed_by=signed_by, extra_dns=extra_dns)
        return secret_resources(chain, key, self.root_pem)

    def _intermediate(self, cluster: ClusterName) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        if cluster not in self._intermediates:
            key = new_key()
            certificate = make_intermediate(
                self.root,
                self._root_key,
                public_key=key.public_key(),
                cluster=cluster,
                domain=self.domain,
                now=self._now,
                lifetime=_LIFETIME,
            )
            self._intermediates[cluster] = certificate, key
        return self._intermediates[cluster]
