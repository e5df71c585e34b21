"""The trust bundle: who may be believed in the mesh, said by its root in one signed document. Pure.

    number 1          roots [A]        made with the root; each newcomer's grant carries the newest one
    number 2          roots [A, B]     signed by A: trust B as well                      (a root rotation begins)
    number 3          roots [B, A]     signed by A: B signs the members' authorities now
    number 4          roots [B]        signed by B: A is trusted no longer               (it ends)

A document is believed when a root of the one before it has signed it, and it has a higher number: so who was away
catches up along the documents that changed the roots, and nobody can be led back to an older one. It is no secret, and
comes to a member on any way: nobody on that way can change it.

The same document revokes clusters and workloads, and asks members to have their authority made anew (`generations`).
Sources: RFC 5280; TUF, section 5.3 (how a client follows its root); SPIFFE Trust Domain and Bundle.
"""

import base64
import binascii
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from trust.certificates import CertificateRefused, certificate_pem, key_fingerprint, load_certificate, sign_words
from trust.refusals import Refusal
from trust.spiffe import (
    ClusterName,
    Identity,
    InvalidName,
    MeshDomain,
    Namespace,
    ServiceAccount,
    is_dns_label,
    is_dns_name,
    parse_cluster,
)
from trust.verification import check_root

VERSION = 1
MOST_ROOTS = 2
MOST_REVOKED = 1000
"""Of one mesh: each costs a rule in every proxy. Who needs more rotates the authority that was stolen."""
LARGEST = 1 << 20
"""Bytes of one document: two roots, a thousand members and a thousand revocations have 300,000."""

_SIGNED_AS = b"isthmus trust bundle\n"  # a root also signs grants: no signature may be taken for the other kind
_SPIFFE_REFRESH = 300  # seconds after which a reader of the exported bundle should read it again

_Word = Annotated[str, msgspec.Meta(max_length=253, pattern=r"\A[^\x00-\x1f\x7f-\x9f]*\Z")]
_Pem = Annotated[str, msgspec.Meta(max_length=16384)]
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class BundleRefused(Refusal):
    """A trust bundle, or a revocation, that cannot be believed or does not make sense."""


class Revocation(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who is believed no longer: a whole cluster, or a service account, in one cluster or in all of them.

    `sever` also ends what is open between others at the proxies that the revoked one may have reached.
    """

    cluster: _Word = ""
    namespace: _Word = ""
    account: _Word = ""
    at: _Moment
    reason: _Word = ""
    sever: bool = False

    @property
    def subject(self) -> str:
        """Who is meant: `west`, `shop/cart@west`, or `shop/cart` for that account in every cluster."""
        if not self.account:
            return self.cluster
        return f"{self.namespace}/{self.account}" + (f"@{self.cluster}" if self.cluster else "")

    def covers(self, identity: Identity) -> bool:
        """Says whether `identity` is revoked by it."""
        is_there = not self.cluster or self.cluster == identity.cluster
        is_account = not self.account or (self.namespace, self.account) == (identity.namespace, identity.account)
        return is_there and is_account


class TrustBundle(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="TrustBundle"):
    """What a root says to all members. `roots` are PEM; the first signs the members' authorities now.

    `generations` is the least generation that the authority of a member must have; 1 when it is not named.
    `signature` (base64) is that of a root which the document before trusted, over all the rest.
    """

    version: int = VERSION
    domain: MeshDomain
    sequence: Annotated[int, msgspec.Meta(ge=1, lt=1 << 53)]
    roots: Annotated[tuple[_Pem, ...], msgspec.Meta(min_length=1, max_length=MOST_ROOTS)]
    generations: Mapping[ClusterName, Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]] = {}
    revoked: Annotated[tuple[Revocation, ...], msgspec.Meta(max_length=MOST_REVOKED)] = ()
    issued: _Moment
    signature: _Word = ""


def parse_subject(text: str) -> tuple[ClusterName, Namespace, ServiceAccount]:
    """Returns (cluster, namespace, account) of a subject as `Revocation.subject` prints it; raises BundleRefused.

    Of a cluster, namespace and account are empty; of an account in every cluster, the cluster is.
    """
    workload, at, cluster = text.partition("@") if "/" in text else ("", "", text)
    namespace, _, account = workload.partition("/")
    try:
        if cluster or at or not workload:
            parse_cluster(cluster)
    except InvalidName as error:
        raise BundleRefused(str(error), "name a cluster, NAMESPACE/ACCOUNT or NAMESPACE/ACCOUNT@CLUSTER") from error
    if workload and not (is_dns_label(namespace) and is_dns_name(account)):
        message = f"{workload!r} is not a namespace and a service account"
        raise BundleRefused(message, "name a workload as NAMESPACE/ACCOUNT or NAMESPACE/ACCOUNT@CLUSTER")
    return ClusterName(cluster), Namespace(namespace), ServiceAccount(account)


def make_revocation(subject: str, *, at: datetime, reason: str = "", sever: bool = False) -> Revocation:
    """Returns the revocation of a subject; raises BundleRefused for one that names nobody, or too long a reason."""
    cluster, namespace, account = parse_subject(subject)
    made = Revocation(
        cluster=cluster,
        namespace=namespace,
        account=account,
        at=at.astimezone(UTC).replace(microsecond=0),
        reason=reason,
        sever=sever,
    )
    try:
        return msgspec.convert(msgspec.to_builtins(made), Revocation)
    except msgspec.ValidationError as error:
        raise BundleRefused(f"the revocation cannot be written down: {error}", "give a short, plain reason") from error


def is_revoked(revoked: Iterable[Revocation], identity: Identity) -> bool:
    """Says whether one of the revocations is about `identity`."""
    return any(revocation.covers(identity) for revocation in revoked)


def revoked_clusters(revoked: Iterable[Revocation]) -> frozenset[ClusterName]:
    """Returns the clusters that are revoked as a whole."""
    return frozenset(ClusterName(one.cluster) for one in revoked if not one.account)


def revoked_digest(revoked: Iterable[Revocation]) -> str:
    """Returns a hash of who is revoked and how, in 16 hex digits; of nobody, the empty text."""
    said = sorted(f"{one.subject} {one.sever:d}" for one in revoked)
    return hashlib.blake2b("\n".join(said).encode(), digest_size=8).hexdigest() if said else ""


def make_bundle(
    key: ec.EllipticCurvePrivateKey,
    *,
    domain: MeshDomain,
    sequence: int,
    roots: Sequence[x509.Certificate],
    generations: Mapping[ClusterName, int],
    revoked: Collection[Revocation],
    now: datetime,
) -> TrustBundle:
    """Makes a document, signed by `key`. Raises BundleRefused for more than MOST_REVOKED revocations."""
    if len(revoked) > MOST_REVOKED:
        message = f"{len(revoked)} revocations are more than the {MOST_REVOKED} that a mesh may have"
        raise BundleRefused(message, "undo those of clusters and workloads that are gone, or revoke the whole cluster")
    bundle = TrustBundle(
        domain=domain,
        sequence=sequence,
        roots=tuple(certificate_pem(root).decode() for root in roots),
        generations=dict(sorted(generations.items())),
        revoked=tuple(sorted(revoked, key=lambda one: one.subject)),
        issued=now.astimezone(UTC).replace(microsecond=0),
    )
    return msgspec.structs.replace(bundle, signature=sign_words(key, _signed_part(bundle)))


def check_bundle(
    bundle: TrustBundle, trusted: Iterable[x509.Certificate], *, domain: MeshDomain, now: datetime
) -> None:
    """Checks that one of the roots in `trusted` says this of the mesh `domain`; raises BundleRefused.

    That a root of it has expired is no reason: who waits for the next one must not lose the rest on the way.
    """
    what = f"the trust bundle {bundle.sequence}"
    if bundle.version != VERSION:
        message = f"{what} has version {bundle.version}, this Isthmus knows version {VERSION}"
        raise BundleRefused(message, "use the same version of Isthmus in the clusters and beside the root")
    if bundle.domain != domain:
        raise BundleRefused(f"{what} is that of the mesh {bundle.domain}, not of {domain}", f"use the root of {domain}")
    if not any(_is_signed_by(bundle, root) for root in trusted):
        message = f"{what} is not signed by a root that is trusted here"
        raise BundleRefused(message, "hand over the documents of the root directory, unchanged, all that were missed")
    try:
        roots = root_certificates(bundle)
        for root in roots:
            check_root(root, domain, now=min(max(now, root.not_valid_before_utc), root.not_valid_after_utc))
    except CertificateRefused as error:
        raise BundleRefused(f"{what}: {error.message}", error.hint) from error
    if len({key_fingerprint(_public_key(root)) for root in roots}) < len(roots):
        raise BundleRefused(f"{what} names one root twice", "hand over the document as the root made it")
    for one in bundle.revoked:
        parse_subject(one.subject)


def catch_up(held: TrustBundle, offered: Iterable[TrustBundle], *, now: datetime) -> tuple[TrustBundle, ...]:
    """Returns those of the documents that follow `held`, by number; the last of them holds from now on.

    Older ones and those that are held are passed over. Raises BundleRefused for a newer one that cannot be believed,
    and, unless a newer one follows, for one with the number of `held` that says something else: two root directories
    have gone different ways.
    """
    followed: list[TrustBundle] = []
    is_in_doubt = False
    for bundle in sorted(offered, key=lambda one: one.sequence):
        last = followed[-1] if followed else held
        if bundle.sequence == last.sequence:
            # Compared by what is signed: whoever passes a document on can give it another good signature.
            is_in_doubt |= _signed_part(bundle) != _signed_part(last)
        elif bundle.sequence > last.sequence:
            check_bundle(bundle, root_certificates(last), domain=held.domain, now=now)
            followed.append(bundle)
            is_in_doubt = False
    if is_in_doubt:
        message = f"there are two different trust bundles with the number {(followed or [held])[-1].sequence}"
        raise BundleRefused(message, "use one root directory; its next document ends the doubt")
    return tuple(followed)


def worth_keeping(chain: Iterable[TrustBundle]) -> tuple[TrustBundle, ...]:
    """Returns the documents that changed the roots, and the newest: what somebody who was away needs to follow."""
    ordered = sorted(chain, key=lambda one: one.sequence)
    kept = []
    for before, bundle, after in zip([None, *ordered], ordered, [*ordered[1:], None], strict=False):
        if after is None or before is None or before.roots != bundle.roots:
            kept.append(bundle)
    return tuple(kept)


def root_certificates(bundle: TrustBundle) -> tuple[x509.Certificate, ...]:
    """Returns the roots, the one that signs first; raises CertificateRefused."""
    return tuple(load_certificate(root.encode()) for root in bundle.roots)


def bundle_pem(bundle: TrustBundle) -> bytes:
    """Returns the roots as PEM, one after the other: what TLS libraries take as anchors."""
    return "".join(bundle.roots).encode()


def bundle_digest(bundle: TrustBundle) -> str:
    """Returns a hash of whom the document says to trust, in 16 hex digits: the order of the roots is no difference."""
    return hashlib.blake2b("".join(sorted(bundle.roots)).encode(), digest_size=8).hexdigest()


def root_fingerprints(bundle: TrustBundle) -> tuple[str, ...]:
    """Returns the hex SHA-256 of each root's key, the one that signs first."""
    return tuple(key_fingerprint(_public_key(root)) for root in root_certificates(bundle))


def spiffe_document(bundle: TrustBundle) -> Mapping[str, object]:
    """Returns the bundle as a SPIFFE bundle document: a JWK set with a key for each root.

    It is that of the trust domain of every member, `<cluster>.<domain>`: all of them have the same roots.
    Source: SPIFFE Trust Domain and Bundle, section 4.
    """
    keys = []
    for root in root_certificates(bundle):
        numbers = _public_key(root).public_numbers()
        keys.append(
            {
                "use": "x509-svid",
                "kty": "EC",
                "crv": "P-256",
                "x": _base64url(numbers.x),
                "y": _base64url(numbers.y),
                "x5c": [base64.b64encode(root.public_bytes(serialization.Encoding.DER)).decode()],
            }
        )
    return {"keys": keys, "spiffe_sequence": bundle.sequence, "spiffe_refresh_hint": _SPIFFE_REFRESH}


def encode_bundle(bundle: TrustBundle) -> bytes:
    """Prints a document as JSON. Equal documents have equal bytes."""
    return msgspec.json.encode(bundle, order="deterministic")


def decode_bundle(text: bytes | str) -> TrustBundle:
    """Inverse of `encode_bundle`; raises BundleRefused. Nothing is believed yet: that is for `check_bundle`."""
    hint = "hand over the file as the root made it"
    if len(text) > LARGEST:
        raise BundleRefused("this is too large for a trust bundle", hint)
    try:
        return msgspec.json.decode(text, type=TrustBundle)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleRefused(f"this is not a trust bundle: {error}", hint) from error


def _is_signed_by(bundle: TrustBundle, root: x509.Certificate) -> bool:
    try:
        signature = base64.b64decode(bundle.signature, validate=True)
        _public_key(root).verify(signature, _signed_part(bundle), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, binascii.Error, ValueError, CertificateRefused):
        return False
    return True


def _public_key(root: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = root.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise CertificateRefused("the key of a root is not an elliptic curve key", "use a root that Isthmus made")
    return key


def _signed_part(bundle: TrustBundle) -> bytes:
    return _SIGNED_AS + encode_bundle(msgspec.structs.replace(bundle, signature=""))


def _base64url(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(32, "big")).rstrip(b"=").decode()
