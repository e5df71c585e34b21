"""How a cluster becomes a member: what it asks for, what it is granted, and what is refused.

    cluster                                   operator of the root
    key, JoinRequest(id, name, CSR)   ---->   check_request, ledger of ids and names, sign
    check_grant                       <----   Grant(intermediate, root, introductions, expires), signed by the root

Neither file is secret, and neither can be changed on its way: a request is signed by the key that it is made for, which
proves at once that its maker holds that key; a grant, of use to the holder of that key alone, is signed by the root.
That the root is the right one, nobody can prove to a newcomer: its operator hands over the grant on a way that both
trust, and `describe(root).fingerprint` is there to compare.

A member that is to have its authority made anew asks in the same words, with the generation that the trust bundle asks
of it, and signs the whole request with the key of the authority that it has: so no other member can ask in its name.
The grant is then believed when a root that the member trusts already has signed it.
"""

import base64
import binascii
import hashlib
import ipaddress
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, NoReturn, TypeVar

import msgspec
import yaml
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from trust import certificates
from trust.bundle import BundleRefused, TrustBundle, check_bundle, root_certificates
from trust.certificates import CertificateRefused, certificate_pem, load_certificate, sign_words
from trust.refusals import Refusal
from trust.spiffe import ClusterName, InvalidName, MeshDomain, parse_cluster, parse_domain
from trust.verification import check_intermediate

VERSION = 1
_LARGEST_FILE = 1 << 20  # characters; a grant with a thousand introductions has 200,000
_SIGNED_AS = b"isthmus join grant\n"  # the root also signs certificates: no signature may be taken for the other kind
_CONTINUED_AS = b"isthmus renewal of an authority\n"  # and so does the authority of a cluster

# Text of other people that ends in tables and terminals: short, and without control characters.
_Word = Annotated[str, msgspec.Meta(max_length=253, pattern=r"\A[^\x00-\x1f\x7f-\x9f]*\Z")]
_Pem = Annotated[str, msgspec.Meta(max_length=16384)]
_RequestId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]
_Generation = Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]


class JoinRefused(Refusal):
    """A request or a grant that is not good."""


class GatewayAddress(msgspec.Struct, frozen=True, order=True):
    """Where other clusters reach an east-west gateway: an IP address and a port."""

    address: _Word
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Introduction(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster as it is introduced to others. `network` names what reaches its pods directly."""

    name: ClusterName
    network: _Word
    region: _Word
    cloud: _Word = ""
    zones: Annotated[tuple[_Word, ...], msgspec.Meta(max_length=64)] = ()
    gateways: Annotated[tuple[GatewayAddress, ...], msgspec.Meta(max_length=64)] = ()


class Continuity(msgspec.Struct, frozen=True, kw_only=True):
    """That the holder of an authority asks for its successor: its certificate (PEM), and its signature (base64) over
    the request with the certificate request, and therefore over the key that it is for."""

    certificate: _Pem
    signature: _Word


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="JoinRequest"):
    """What a cluster asks for. `id` is 128 random bits in hex and good for one grant.

    `generation` counts the authorities that the root has asked of the cluster; `continuity` is there from the second
    on. `csr` (PEM) is the certificate request; its subject holds the digest of all the rest but `continuity`.
    """

    version: int
    id: _RequestId
    domain: MeshDomain
    cluster: Introduction
    created: _Moment
    generation: _Generation = 1
    csr: _Pem = ""
    continuity: Continuity | None = None


class Grant(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="JoinGrant"):
    """What a cluster is given. `certificate` (its intermediate) and `root` are PEM.

    `bundle` is the newest trust bundle; `root` is the one of its roots that signed, and the first that a newcomer
    trusts. It must be accepted before `expires`; the certificate lives longer. `signature` (base64) is the root's, over
    all the rest.
    """

    version: int
    request_id: _RequestId
    domain: MeshDomain
    cluster: ClusterName
    generation: _Generation = 1
    certificate: _Pem
    root: _Pem
    bundle: TrustBundle
    introductions: tuple[Introduction, ...]
    expires: _Moment
    signature: str = ""


_Message = TypeVar("_Message", JoinRequest, Grant)


def make_join_request(
    key: ec.EllipticCurvePrivateKey, about: Introduction, *, domain: MeshDomain, now: datetime, generation: int = 1
) -> JoinRequest:
    """Makes a request with a new id; raises JoinRefused when `about` or `domain` would be refused."""
    check_introduction(about)
    _check_domain(domain)
    request = JoinRequest(
        version=VERSION,
        id=secrets.token_hex(16),
        domain=domain,
        cluster=about,
        created=now.astimezone(UTC).replace(microsecond=0),
        generation=generation,
    )
    csr = certificates.make_request(key, about.name, domain, _statement(request))
    return msgspec.structs.replace(request, csr=csr.decode())


def check_request(request: JoinRequest, *, domain: MeshDomain) -> ec.EllipticCurvePublicKey:
    """Returns the key that asks to become a member of the mesh `domain`; raises JoinRefused.

    Whether the id, the name and the key are still free is for the ledger of the root to say.
    """
    _check_version(request.version, "request")
    _check_domain(request.domain)
    check_introduction(request.cluster)
    if request.domain != domain:
        raise JoinRefused(
            f"{request.cluster.name} asks to join the mesh {request.domain}, but this is the root of {domain}",
            f"use the root of {request.domain}, or start that control plane with --domain {domain}",
        )
    try:
        return certificates.check_request(request.csr.encode(), request.cluster.name, domain, _statement(request))
    except CertificateRefused as error:
        raise JoinRefused(error.message, error.hint) from error


def continue_from(
    request: JoinRequest, authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey
) -> JoinRequest:
    """Returns the request as one that the holder of `authority` makes: see `Continuity`."""
    signature = sign_words(authority_key, _continued_part(request))
    continuity = Continuity(certificate=certificate_pem(authority).decode(), signature=signature)
    return msgspec.structs.replace(request, continuity=continuity)


def check_continuity(request: JoinRequest) -> ec.EllipticCurvePublicKey:
    """Returns the key of the authority whose holder asks for the next one; raises JoinRefused.

    Whether that key holds the name is for the ledger of the root to say: the certificate proves nothing here, and may
    have expired, or lie below a root of the past.
    """
    name = request.cluster.name
    if request.continuity is None:
        message = f"the request of {name} does not show that its present authority makes it"
        raise JoinRefused(message, f"get the request granted that the control plane of {name} publishes")
    try:
        key = load_certificate(request.continuity.certificate.encode()).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise InvalidSignature
        signature = base64.b64decode(request.continuity.signature, validate=True)
        key.verify(signature, _continued_part(request), ec.ECDSA(hashes.SHA256()))
    except (CertificateRefused, InvalidSignature, binascii.Error, ValueError, UnsupportedAlgorithm) as error:
        message = f"the request of {name} is not signed by the authority that it names"
        raise JoinRefused(message, "hand over the request as the cluster made it") from error
    return key


def check_introduction(about: Introduction) -> None:
    """Checks the names and addresses of a cluster as others describe it; raises JoinRefused."""
    try:
        msgspec.convert(msgspec.to_builtins(about), Introduction)  # the same bounds when it came from no file
    except msgspec.ValidationError as error:
        message = f"{about.name!r} describes itself badly: {error}"
        raise JoinRefused(message, "check its network, its place and its gateways") from error
    try:
        parse_cluster(about.name)
    except InvalidName as error:
        raise JoinRefused(str(error), "start the control plane with another --cluster") from error
    if not about.network:
        raise JoinRefused(f"{about.name} is on no network", "start the control plane with --network")
    for gateway in about.gateways:
        try:
            address = ipaddress.ip_address(gateway.address)
        except ValueError as error:
            message = f"{gateway.address!r}, a gateway of {about.name}, is not an IP address"
            raise JoinRefused(message, "give the addresses that other clusters reach") from error
        if address.is_unspecified or address.is_multicast:
            message = f"{gateway.address}, a gateway of {about.name}, is an address that nobody can call"
            raise JoinRefused(message, "give the addresses that other clusters reach")


def make_grant(
    request: JoinRequest,
    root_key: ec.EllipticCurvePrivateKey,
    *,
    certificate: x509.Certificate,
    root: x509.Certificate,
    bundle: TrustBundle,
    introductions: Sequence[Introduction],
    expires: datetime,
    generation: int = 1,
) -> Grant:
    """Makes the signed answer to a request that was checked. `root_key` is that of `root`, a root of `bundle`."""
    grant = Grant(
        version=VERSION,
        request_id=request.id,
        domain=request.domain,
        cluster=request.cluster.name,
        generation=generation,
        certificate=certificate_pem(certificate).decode(),
        root=certificate_pem(root).decode(),
        bundle=bundle,
        introductions=tuple(introductions),
        expires=expires.astimezone(UTC).replace(microsecond=0),
    )
    return msgspec.structs.replace(grant, signature=sign_words(root_key, _signed_part(grant)))


def check_grant(
    grant: Grant,
    request: JoinRequest,
    *,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    held: TrustBundle | None = None,
) -> tuple[x509.Certificate, x509.Certificate]:
    """Returns (intermediate, root) of a grant that answers our own `request`, made with our own key.

    A member gives the trust bundle that it follows (`held`), and the grant must be signed by a root of that one. A
    newcomer has none, and believes the one in the grant. Raises JoinRefused.
    """
    _check_version(grant.version, "grant")
    if grant.domain != request.domain:
        message = f"the grant is for the mesh {grant.domain}, this cluster asked to join {request.domain}"
        raise JoinRefused(message, f"get the request granted with the root of {request.domain}")
    if grant.cluster != request.cluster.name:
        message = f"the grant is for the cluster {grant.cluster}, this is {request.cluster.name}"
        raise JoinRefused(message, f"accept it in {grant.cluster}")
    if grant.request_id != request.id:
        message = f"the grant answers the request {grant.request_id}, this cluster waits for {request.id}"
        raise JoinRefused(message, "get the request granted that `isthmus join-request` prints now")
    try:
        certificate, root = load_certificate(grant.certificate.encode()), load_certificate(grant.root.encode())
        check_signature(grant, root)
        _check_anchor(grant, root, held, now=now)
        if now >= grant.expires:
            message = f"the grant expired at {grant.expires:%Y-%m-%d %H:%M:%S} UTC"
            raise JoinRefused(message, "make a new request (`isthmus join-request --new`) and get that one granted")
        check_intermediate(certificate, root, cluster=grant.cluster, domain=grant.domain, now=now)
    except (CertificateRefused, BundleRefused) as error:
        raise JoinRefused(error.message, error.hint) from error
    if certificate.public_key() != public_key:
        message = f"the grant is for another key than that of this cluster {grant.cluster}"
        raise JoinRefused(message, "get the request granted that `isthmus join-request` prints now")
    if grant.generation < request.generation:
        message = f"the grant is for generation {grant.generation}, this cluster asked for {request.generation}"
        raise JoinRefused(message, "get the request granted that the control plane of this cluster publishes now")
    for introduction in grant.introductions:
        check_introduction(introduction)
    return certificate, root


def encode(value: JoinRequest | Grant) -> bytes:
    """Prints a request or a grant as indented JSON: the file that operators exchange."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def decode_request(text: bytes | str) -> JoinRequest:
    """Reads a request, JSON or YAML; raises JoinRefused."""
    return _decode(text, JoinRequest, "a join request", "the file that `isthmus join-request` wrote")


def decode_grant(text: bytes | str) -> Grant:
    """Reads a grant, JSON or YAML; raises JoinRefused."""
    return _decode(text, Grant, "a grant", "the file that `isthmus grant` wrote")


def _decode(text: bytes | str, kind: type[_Message], what: str, source: str) -> _Message:
    def refuse(reason: str, error: Exception | None = None) -> NoReturn:
        raise JoinRefused(f"this is not {what}: {reason}", f"hand over {source}, unchanged") from error

    if len(text) > _LARGEST_FILE:
        refuse("it is too large")
    try:
        if text.lstrip()[:1] in (b"{", "{"):
            return msgspec.json.decode(text, type=kind)
        # Every scalar stays text until its field says what it is: an id of digits is no number, a moment no date.
        document = yaml.load(text, yaml.BaseLoader)  # noqa: S506 - makes less than the safe loader does
        return msgspec.convert(document, type=kind, strict=False)
    except msgspec.MsgspecError as error:
        refuse(str(error), error)
    except (yaml.YAMLError, UnicodeError, RecursionError, ValueError) as error:
        refuse("it is not text that can be read", error)


def _check_version(version: int, what: str) -> None:
    if version != VERSION:
        message = f"the {what} has version {version}, this Isthmus knows version {VERSION}"
        raise JoinRefused(message, "use the same version of Isthmus in the cluster and beside the root")


def _check_domain(domain: MeshDomain) -> None:
    try:
        parse_domain(domain)
    except InvalidName as error:
        raise JoinRefused(str(error), "start the control plane of the cluster with the domain of the mesh") from error


def check_signature(grant: Grant, root: x509.Certificate) -> None:
    """Checks that `root` signed the grant, whoever it is for; raises JoinRefused."""
    key = root.public_key()
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise InvalidSignature
        key.verify(base64.b64decode(grant.signature, validate=True), _signed_part(grant), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, binascii.Error, ValueError) as error:
        message = "the grant was changed after it was made: the root's signature does not fit"
        raise JoinRefused(message, "hand over the file that `isthmus grant` wrote, unchanged") from error


def _check_anchor(grant: Grant, root: x509.Certificate, held: TrustBundle | None, *, now: datetime) -> None:
    """Checks that `root` is one of those that are trusted; raises JoinRefused, BundleRefused or CertificateRefused."""
    bundle = held or grant.bundle
    trusted = root_certificates(bundle)
    if held is None:
        check_bundle(bundle, trusted, domain=grant.domain, now=now)  # its signer is always one of its own roots
    if root not in trusted:
        message = f"the grant is signed by a root that is not in the trust bundle {bundle.sequence}"
        raise JoinRefused(message, "hand over the newest documents of the root directory first, then grant again")


def _statement(request: JoinRequest) -> str:
    """Returns the hex SHA-256 of all that a request says, without the certificate request and the continuity."""
    said = msgspec.json.encode(msgspec.structs.replace(request, csr="", continuity=None), order="deterministic")
    return hashlib.sha256(said).hexdigest()


def _continued_part(request: JoinRequest) -> bytes:
    # With the certificate request: the statement alone says nothing of the key, and requests are read by all members.
    said = msgspec.structs.replace(request, continuity=None)
    return _CONTINUED_AS + msgspec.json.encode(said, order="deterministic")


def _signed_part(grant: Grant) -> bytes:
    return _SIGNED_AS + msgspec.json.encode(msgspec.structs.replace(grant, signature=""), order="deterministic")
