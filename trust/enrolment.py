"""A cluster's authority on disk: how it became a member, what signs now, and whom it believes.

    data directory    ca-1-key.pem  request-1.json  grant-1.json     slot 1: the authority that it joined with
                      ca-2-key.pem  request-2.json                   slot 2: asked for, not granted yet
                      bundles.json                                   the trust bundles that it followed

A slot is a key and what was granted for it; the highest granted one signs. Keys are in a custody, which may be another
place than the directory. Each step ends in one file that is written whole, so a crash leaves the state before or after
it, and a refusal leaves everything as it was. Replicas of a control plane may share the directory.
"""

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from trust import files, joining
from trust.bundle import TrustBundle, catch_up, root_fingerprints, worth_keeping
from trust.certificates import CertificateRefused, check_valid_at, key_fingerprint, load_certificate
from trust.custody import Custody, load_or_create
from trust.joining import Grant, Introduction, JoinRefused, JoinRequest
from trust.refusals import AuthorityRefused, told_as
from trust.spiffe import ClusterName, MeshDomain
from trust.statements import AuthorityState

_BUNDLES = "bundles.json"
_GRANT_FILE = re.compile(r"grant-([1-9][0-9]{0,8})\.json")
_KEY_NAME = re.compile(r"ca-([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class Intermediate:
    """A cluster's issuing authority, ready to sign; `root` is the certificate of the root that signed it."""

    cluster: ClusterName
    domain: MeshDomain
    certificate: x509.Certificate
    root: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    generation: int = 1

    @property
    def fingerprint(self) -> str:
        """The hex SHA-256 of its public key."""
        return key_fingerprint(self.key.public_key())


@dataclass(frozen=True)
class Membership:
    """What makes a cluster a member: the authority that signs, and the trust bundle that it follows.

    `older` are authorities whose certificates may still be about, the newest first; their keys are here until
    `Enrolment.retire`. `documents` end with `bundle`: they are what somebody who was away needs. `pending` asks for the
    next authority.
    """

    active: Intermediate
    older: tuple[AuthorityState, ...]
    bundle: TrustBundle
    documents: tuple[TrustBundle, ...]
    introductions: tuple[Introduction, ...]
    pending: JoinRequest | None = None

    @property
    def authorities(self) -> tuple[AuthorityState, ...]:
        """All authorities, the one that signs first."""
        active = self.active
        state = _state(active.certificate, active.root, generation=active.generation, is_active=True)
        return (state, *self.older)

    @property
    def wanted(self) -> int:
        """The least generation that its authority must have."""
        return self.bundle.generations.get(self.active.cluster, 1)


class _Documents(msgspec.Struct, frozen=True, kw_only=True):
    """What is in `bundles.json`."""

    version: int = 1
    bundles: tuple[TrustBundle, ...]


class Enrolment:
    """A cluster's way into the mesh, and through its rotations, kept in a directory of its control plane.

    The directory is made when it is needed, with mode 0700; it is refused when others may enter it. Every call may
    block, and raises AuthorityRefused or CustodyRefused when what is on disk does not fit together.
    """

    def __init__(self, directory: Path, custody: Custody) -> None:
        self._directory = directory
        self._custody = custody

    def load(self) -> Membership | None:
        """Returns what was accepted; None before the cluster has joined.

        Whether the certificate is still valid is for the issuer to see, each time that it signs.
        """
        if not self._directory.exists():
            return None
        with told_as(AuthorityRefused, files.FileRefused, CertificateRefused), files.locked(self._directory):
            return self._membership()

    def request(self, about: Introduction, *, domain: MeshDomain, now: datetime, fresh: bool = False) -> JoinRequest:
        """Returns the pending request of this cluster to become a member: the same until it was granted.

        A new one is made when there is none, when `about` or `domain` changed, or when `fresh` is asked for (a grant
        was lost or expired, and no request to join is granted twice). The key stays. Raises JoinRefused when the
        cluster has joined already or when the root would refuse the request.
        """
        with told_as(AuthorityRefused, files.FileRefused, CertificateRefused):
            files.make_directory(self._directory)
            with files.locked(self._directory):
                if granted := self._granted():
                    one = granted[max(granted)]
                    raise _is_member(one.cluster, one.domain, "there is nothing to do")
                pending = self._pending(1)
                is_current = pending is not None and (pending.cluster, pending.domain) == (about, domain)
                if pending is not None and is_current and not fresh and _key_name(1) in self._custody.names():
                    return pending
                joining.check_introduction(about)  # before a key is made for nothing
                request = joining.make_join_request(self._key_to_ask_with(1), about, domain=domain, now=now)
                files.replace(self._request_file(1), joining.encode(request))
                return request

    def accept(self, grant: Grant, *, now: datetime) -> Membership:
        """Takes the grant for the pending request: the first one, or one for the next authority. Raises JoinRefused.

        A grant for a request that was granted before changes nothing.
        """
        if not self._directory.exists():
            raise _not_asked()
        with told_as(AuthorityRefused, files.FileRefused, CertificateRefused), files.locked(self._directory):
            granted = self._granted()
            member = self._membership()
            if member is not None and any(one.request_id == grant.request_id for one in granted.values()):
                return member
            slot = max(granted, default=0) + 1
            pending = self._pending(slot)
            if pending is None and member is not None:
                hint = "a cluster that is to join anew starts with an empty data directory"
                raise _is_member(member.active.cluster, member.active.domain, hint)
            if pending is None:
                raise _not_asked()
            public_key = self._custody.load(_key_name(slot)).public_key()
            held = None if member is None else member.bundle
            joining.check_grant(grant, pending, public_key=public_key, now=now, held=held)
            files.replace(self._grant_file(slot), joining.encode(grant))
            return self._member()

    def take(self, bundles: Iterable[TrustBundle], *, now: datetime) -> Membership:
        """Follows those trust bundles that are newer, all of them or none. Raises BundleRefused, or JoinRefused when
        the cluster is no member yet: then there is nothing that they could follow."""
        with told_as(AuthorityRefused, files.FileRefused, CertificateRefused):
            self._check_joined()
            with files.locked(self._directory):
                member = self._member()
                if followed := catch_up(member.bundle, bundles, now=now):
                    self._keep((*member.documents, *followed))
                return self._member()

    def renewal(self, about: Introduction, *, now: datetime) -> JoinRequest:
        """Returns the pending request for the next authority: the same until it was granted, or the bundle asks for a
        still higher generation. Makes the key of the next slot. Raises JoinRefused when no other authority is due.

        One is due when the bundle asks for a higher generation, or names another root as the one that signs.
        """
        with told_as(AuthorityRefused, files.FileRefused, CertificateRefused):
            self._check_joined()
            with files.locked(self._directory):
                member = self._member()
                active = member.active
                is_below = member.authorities[0].root != root_fingerprints(member.bundle)[0]
                if active.generation >= member.wanted and not is_below:
                    message = f"{active.cluster} has its authority of generation {active.generation}, as it should"
                    raise JoinRefused(message, f"ask for another one: isthmus trust rotate intermediate {about.name}")
                generation = max(member.wanted, active.generation + 1)
                slot = max(self._granted()) + 1
                pending = member.pending
                if (
                    pending is not None
                    and pending.generation >= generation
                    and _key_name(slot) in self._custody.names()
                ):
                    return pending
                if about.name != active.cluster:
                    message = f"this is the data directory of {active.cluster}, not of {about.name}"
                    raise JoinRefused(message, "give each cluster a data directory of its own")
                joining.check_introduction(about)
                request = joining.make_join_request(
                    self._key_to_ask_with(slot), about, domain=active.domain, now=now, generation=generation
                )
                request = joining.continue_from(request, active.certificate, active.key)
                files.replace(self._request_file(slot), joining.encode(request))
                return request

    def retire(self, *, now: datetime) -> Membership:
        """Destroys the keys of all slots before the active one; to be called when nobody needs them any more.

        Raises AuthorityRefused when the active authority is not valid at `now`.
        """
        with told_as(AuthorityRefused, files.FileRefused, CertificateRefused):
            self._check_joined()
            with files.locked(self._directory):
                member = self._member()
                active = max(self._granted())
                if member.older:
                    check_valid_at(member.active.certificate, "the authority that would remain", now)
                if not (self._directory / _BUNDLES).exists():
                    self._keep(member.documents)  # they were those of the grant that goes
                for name in self._custody.names():
                    if (found := _KEY_NAME.fullmatch(name)) and int(found[1]) < active:
                        self._custody.destroy(name)
                for slot in [slot for slot in self._granted() if slot < active]:
                    with contextlib.suppress(files.FileMissing):
                        files.remove(self._request_file(slot))
                    files.remove(self._grant_file(slot))  # last: while it is there, all of this is done again
                return self._member()

    # What is on disk. The lock is held.

    def _membership(self) -> Membership | None:
        granted = self._granted()
        if not granted:
            return None
        slot = max(granted)
        documents = self._documents() or (granted[min(granted)].bundle,)
        older = tuple(
            _state(
                load_certificate(granted[one].certificate.encode()),
                load_certificate(granted[one].root.encode()),
                generation=granted[one].generation,
                is_active=False,
            )
            for one in sorted(granted, reverse=True)
            if one != slot
        )
        return Membership(
            active=self._intermediate(slot, granted[slot]),
            older=older,
            bundle=documents[-1],
            documents=documents,
            introductions=granted[slot].introductions,
            pending=self._pending(slot + 1),
        )

    def _member(self) -> Membership:
        member = self._membership()
        if member is None:
            raise _not_joined()
        return member

    def _check_joined(self) -> None:
        if not self._directory.exists():
            raise _not_joined()

    def _granted(self) -> Mapping[int, Grant]:
        """Returns the grants by their slots."""
        files.check_directory(self._directory)
        found = (_GRANT_FILE.fullmatch(entry.name) for entry in self._directory.iterdir())
        return {int(name[1]): self._grant(int(name[1])) for name in found if name}

    def _grant(self, slot: int) -> Grant:
        path = self._grant_file(slot)
        try:
            return joining.decode_grant(files.read(path))
        except JoinRefused as error:
            message = f"{path}: {error.message}"
            raise AuthorityRefused(message, "restore the data directory from its backup") from error

    def _pending(self, slot: int) -> JoinRequest | None:
        """Returns the request that was written; None when there is none, or none that this version can read."""
        try:
            return joining.decode_request(files.read(self._request_file(slot)))
        except (files.FileMissing, JoinRefused):
            return None

    def _documents(self) -> tuple[TrustBundle, ...]:
        path = self._directory / _BUNDLES
        try:
            kept = msgspec.json.decode(files.read(path), type=_Documents)
        except files.FileMissing:
            return ()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise AuthorityRefused(
                f"{path} is broken: {error}", "restore the data directory from its backup"
            ) from error
        if kept.version != 1 or not kept.bundles:
            message = f"{path} has version {kept.version}, or nothing in it: this Isthmus cannot read it"
            raise AuthorityRefused(message, "use the newer Isthmus, or restore the data directory from its backup")
        return kept.bundles

    def _keep(self, documents: Iterable[TrustBundle]) -> None:
        kept = msgspec.json.encode(_Documents(bundles=worth_keeping(documents)))
        files.replace(self._directory / _BUNDLES, kept)

    def _intermediate(self, slot: int, grant: Grant) -> Intermediate:
        certificate = load_certificate(grant.certificate.encode())
        key = self._custody.load(_key_name(slot))
        if key.public_key() != certificate.public_key():
            message = f"the key {_key_name(slot)} and {self._grant_file(slot)} do not belong together"
            raise AuthorityRefused(message, "restore both from the same backup")
        return Intermediate(
            cluster=grant.cluster,
            domain=grant.domain,
            certificate=certificate,
            root=load_certificate(grant.root.encode()),
            key=key,
            generation=grant.generation,
        )

    def _key_to_ask_with(self, slot: int) -> ec.EllipticCurvePrivateKey:
        return load_or_create(self._custody, _key_name(slot))

    def _request_file(self, slot: int) -> Path:
        return self._directory / f"request-{slot}.json"

    def _grant_file(self, slot: int) -> Path:
        return self._directory / f"grant-{slot}.json"


def _state(
    certificate: x509.Certificate, root: x509.Certificate, *, generation: int, is_active: bool
) -> AuthorityState:
    return AuthorityState(
        generation=generation,
        fingerprint=_fingerprint(certificate),
        root=_fingerprint(root),
        not_after=certificate.not_valid_after_utc,
        is_active=is_active,
    )


def _fingerprint(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise CertificateRefused("the key of an authority is not an elliptic curve key", "use one that Isthmus made")
    return key_fingerprint(key)


def _key_name(slot: int) -> str:
    return f"ca-{slot}"


def _not_asked() -> JoinRefused:
    message = "this cluster has not asked to join, or its request was lost"
    return JoinRefused(message, "get the request granted that `isthmus join-request` prints now")


def _not_joined() -> JoinRefused:
    return JoinRefused("this cluster is no member of a mesh yet", "let it join first: isthmus join-request")


def _is_member(cluster: ClusterName, domain: MeshDomain, hint: str) -> JoinRefused:
    return JoinRefused(f"{cluster} is a member of {domain} already", hint)
