"""All that somebody can sign who stole the key of a cluster's intermediate, aimed at being somebody else.

A forgery names whom it wants to be. What a stolen authority may sign anyhow, certificates of its own cluster, is marked
`is_own`: whoever takes such a one as that cluster's has not been deceived. Everything else must be refused everywhere.
"""

from collections.abc import Mapping

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from tests.containment import der
from tests.containment.der import Issued, Key
from trust.certificates import new_key
from trust.spiffe import (
    Identity,
    MeshDomain,
    control_dns_name,
    control_identity,
    gateway_dns_name,
    gateway_identity,
    spiffe_id,
    workload_dns_name,
)


class Forgery(msgspec.Struct, frozen=True, kw_only=True):
    """A chain (DER, leaf first) with the key of its leaf.

    `is_own`: its one identity is of the thief's own cluster, and it is not so broken that any door has to refuse it.
    `is_sound`: a certificate as an honest control plane makes it, which every door that is open to that cluster takes.
    """

    name: str
    chain: tuple[bytes, ...]
    key: Key
    is_own: bool = False
    is_sound: bool = False


class Authority(msgspec.Struct, frozen=True, kw_only=True):
    """An intermediate and its key, stolen or honest."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def encoded(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def issued(self) -> Issued:
        """What this authority puts into what it signs."""
        return Issued(
            name=self.certificate.subject.public_bytes(),
            key=self.key,
            key_id=self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest,
        )


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a thief wants to be, and who the thief is."""

    domain: MeshDomain
    victim: Identity
    own: Identity

    @property
    def foreign(self) -> str:
        return spiffe_id(self.victim, self.domain)

    @property
    def ours(self) -> str:
        return spiffe_id(self.own, self.domain)

    @property
    def host(self) -> str:
        """The DNS name by which the victim is called."""
        match self.victim:
            case who if who == control_identity(who.cluster):
                return control_dns_name(who.cluster, self.domain)
            case who if who == gateway_identity(who.cluster):
                return gateway_dns_name(who.cluster, self.domain)
            case who:
                return workload_dns_name(who, self.domain)


def odd_keys() -> Mapping[str, Key]:
    """Makes keys of kinds that are none of ours."""
    return {
        "RSA": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "P-384": ec.generate_private_key(ec.SECP384R1()),
        "P-521": ec.generate_private_key(ec.SECP521R1()),
        "secp256k1": ec.generate_private_key(ec.SECP256K1()),
        "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    }


class Thief:
    """Holds the intermediate of one cluster, and knows the certificates of all others, which are no secret."""

    def __init__(
        self,
        stolen: Authority,
        aim: Aim,
        *,
        root: x509.Certificate,
        others: x509.Certificate,
        odd_keys: Mapping[str, Key],
    ) -> None:
        """`others` is the intermediate of the victim's cluster, without its key."""
        self.stolen = stolen
        self.root = root
        self.others = others
        self.aim = aim
        self.odd_keys = odd_keys
        self.key = new_key()

    def leaf(self, name: str, *alternative: bytes, subject: bytes = b"\x30\x00", is_own: bool = False) -> Forgery:
        """Returns a leaf with these general names; none at all leaves the extension out."""
        issuer = self.stolen.issued
        extensions = der.leaf_extensions(issuer, *([der.names(*alternative)] if alternative else []))
        leaf = der.certificate(issuer, self.key, *extensions, subject=subject)
        return Forgery(name=name, chain=(leaf, self.stolen.encoded), key=self.key, is_own=is_own)
