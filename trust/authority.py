"""The two kinds of certificate authority on disk: the mesh's root, kept offline, and a cluster's intermediate.

    root directory    root-key.pem  root.pem  members.json       `isthmus trust init`, `isthmus grant`
    data directory    ca-key.pem    join-request.json  grant.json    control plane of one cluster

Each step ends in one file that is written whole, so a crash leaves the state before or after it, and a refusal leaves
everything as it was. Replicas of a control plane may share a data directory.
"""

import contextlib
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from trust import files, joining
from trust.certificates import (
    CertificateRefused,
    certificate_pem,
    key_fingerprint,
    load_certificate,
    make_intermediate,
    make_root,
    root_domain,
)
from trust.custody import FileCustody
from trust.joining import Grant, Introduction, JoinRefused, JoinRequest
from trust.refusals import Refusal
from trust.spiffe import ClusterName, InvalidName, MeshDomain, parse_domain
from trust.verification import check_root

ROOT_LIFETIME = timedelta(days=3650)
INTERMEDIATE_LIFETIME = timedelta(days=365)
GRANT_LIFETIME = timedelta(hours=24)
LONGEST_LIFETIME = timedelta(days=36500)

_ROOT_KEY = "root"
_ROOT = "root.pem"
_LEDGER = "members.json"
_CLUSTER_KEY = "ca"
_REQUEST = "join-request.json"
_GRANT = "grant.json"


class AuthorityRefused(Refusal):
    """A directory that holds no authority, or one already, or one that does not fit."""


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """A member in the ledger: the key that holds the name now (`key_fingerprint`), and until when it was signed."""

    introduction: Introduction
    key: str
    granted: datetime
    not_after: datetime


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was granted."""

    cluster: ClusterName
    granted: datetime


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """What a root remembers: its members, and the requests that were granted, by their ids."""

    version: int = 1
    members: Mapping[ClusterName, Granted] = {}
    requests: Mapping[str, Spent] = {}


class Root:
    """The root of a mesh: a directory with its key, its certificate and the ledger of what it granted."""

    def __init__(self, directory: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self.domain = root_domain(certificate)
        self._directory = directory
        self._key = key

    @classmethod
    def init(
        cls,
        directory: Path,
        domain: MeshDomain,
        *,
        now: datetime,
        passphrase: bytes | None = None,
        lifetime: timedelta = ROOT_LIFETIME,
    ) -> Self:
        """Makes a new root in `directory`, which must be absent or empty. Raises AuthorityRefused or CustodyRefused."""
        if not timedelta(0) < lifetime <= LONGEST_LIFETIME:
            raise AuthorityRefused(f"a root cannot live for {lifetime}", "give 1 to 36500 days")
        try:
            parse_domain(domain)
        except InvalidName as error:
            raise AuthorityRefused(str(error), "choose a DNS name that is yours, such as mesh.example") from error
        with _new_directory(directory) as fresh:
            key = FileCustody(fresh, passphrase).create(_ROOT_KEY)
            certificate = make_root(key, domain, now=now, lifetime=lifetime)
            files.create(fresh / _ROOT, certificate_pem(certificate))
            files.create(fresh / _LEDGER, _print(Ledger()))
        return cls(directory, certificate, key)

    @classmethod
    def open(cls, directory: Path, *, now: datetime, passphrase: bytes | None = None) -> Self:
        """Opens the root in `directory`; raises AuthorityRefused or CustodyRefused."""
        try:
            certificate = load_certificate(files.read(directory / _ROOT))
            check_root(certificate, root_domain(certificate), now=now)
        except files.FileMissing as error:
            message = f"{directory} holds no root"
            raise AuthorityRefused(message, "name the directory that `isthmus trust init` made") from error
        except (files.FileRefused, CertificateRefused) as error:
            raise AuthorityRefused(error.message, error.hint) from error
        key = FileCustody(directory, passphrase).load(_ROOT_KEY)
        if key.public_key() != certificate.public_key():
            message = f"the key and the certificate in {directory} do not belong together"
            raise AuthorityRefused(message, "restore both from the same backup")
        return cls(directory, certificate, key)

    @staticmethod
    def needs_passphrase(directory: Path) -> bool:
        """Says whether `open` will need a passphrase; raises CustodyRefused when there is no key, or it lies open."""
        return FileCustody(directory).is_encrypted(_ROOT_KEY)

    def grant(
        self,
        request: JoinRequest,
        *,
        now: datetime,
        introductions: Sequence[Introduction] = (),
        lifetime: timedelta = INTERMEDIATE_LIFETIME,
        valid_for: timedelta = GRANT_LIFETIME,
        replace: bool = False,
    ) -> Grant:
        """Signs the intermediate of a cluster; raises JoinRefused or AuthorityRefused and then has changed nothing.

        The grant introduces every other member of the ledger; `introductions` say better where some of them are now.
        `replace` gives a name to a new key: for a cluster that lost its old one, whose certificate stays valid to its
        end. A cluster that comes again with the key it has needs no `replace`.
        """
        if not timedelta(0) < lifetime <= LONGEST_LIFETIME or not timedelta(0) < valid_for <= LONGEST_LIFETIME:
            raise AuthorityRefused("a certificate and a grant live for a time from now on", "give at least a minute")
        public_key = joining.check_request(request, domain=self.domain)
        for introduction in introductions:
            joining.check_introduction(introduction)
        about = request.cluster
        with _as_authority_refusal(), files.locked(self._directory):
            ledger = self._ledger()
            _check_unspent(ledger, request, key_fingerprint(public_key), replace=replace)
            certificate = make_intermediate(
                self.certificate,
                self._key,
                public_key=public_key,
                cluster=about.name,
                domain=self.domain,
                now=now,
                lifetime=lifetime,
            )
            known = {name: member.introduction for name, member in ledger.members.items()}
            known |= {introduction.name: introduction for introduction in introductions}
            grant = joining.make_grant(
                request,
                self._key,
                certificate=certificate,
                root=self.certificate,
                introductions=[known[name] for name in sorted(known) if name != about.name],
                expires=now + valid_for,
            )
            granted = now.astimezone(UTC)
            member = Granted(
                introduction=about,
                key=key_fingerprint(public_key),
                granted=granted,
                not_after=certificate.not_valid_after_utc,
            )
            spent = Spent(cluster=about.name, granted=granted)
            ledger = msgspec.structs.replace(
                ledger,
                members={**ledger.members, about.name: member},
                requests={**ledger.requests, request.id: spent},
            )
            files.replace(self._directory / _LEDGER, _print(ledger))
        return grant

    def members(self) -> tuple[Introduction, ...]:
        """Returns all that were granted membership, by name, as they described themselves. Raises AuthorityRefused."""
        ledger = self._ledger()
        return tuple(ledger.members[name].introduction for name in sorted(ledger.members))

    def _ledger(self) -> Ledger:
        path = self._directory / _LEDGER
        try:
            ledger = msgspec.json.decode(files.read(path), type=Ledger)
        except files.FileRefused as error:
            raise AuthorityRefused(
                error.message, "restore the ledger: without it names could be given twice"
            ) from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise AuthorityRefused(f"{path} is broken: {error}", "restore the ledger from its backup") from error
        if ledger.version != Ledger().version:
            message = f"{path} has version {ledger.version}, this Isthmus knows version {Ledger().version}"
            raise AuthorityRefused(message, "use the newer Isthmus beside the root")
        return ledger


@dataclass(frozen=True)
class Intermediate:
    """A cluster's issuing authority, ready to sign."""

    cluster: ClusterName
    domain: MeshDomain
    certificate: x509.Certificate
    root: x509.Certificate
    key: ec.EllipticCurvePrivateKey


class Enrolment:
    """A cluster's way into the mesh, kept in a directory of its control plane; replicas may share it.

    The directory is made when it is needed, with mode 0700; it is refused when others may enter it.
    """

    def __init__(self, directory: Path, passphrase: bytes | None = None) -> None:
        self._directory = directory
        self._custody = FileCustody(directory, passphrase)

    def load(self) -> tuple[Intermediate, tuple[Introduction, ...]] | None:
        """Returns what was accepted: the authority and who was introduced; None before the cluster has joined.

        Raises AuthorityRefused or CustodyRefused when what is on disk does not fit together. Whether the certificate is
        still valid is for the issuer to see, each time that it signs.
        """
        with _as_authority_refusal():
            grant = self._accepted()
            return None if grant is None else (self._intermediate(grant), grant.introductions)

    def request(self, about: Introduction, *, domain: MeshDomain, now: datetime, fresh: bool = False) -> JoinRequest:
        """Returns the pending request of this cluster: the same until it was granted.

        A new one is made when there is none, when `about` or `domain` changed, or when `fresh` is asked for (a grant
        was lost or expired, and no request is granted twice). The key stays. Raises JoinRefused when the cluster has
        joined already or when the root would refuse the request.
        """
        with _as_authority_refusal():
            files.make_directory(self._directory)
            with files.locked(self._directory):
                if (grant := self._accepted()) is not None:
                    raise JoinRefused(
                        f"{grant.cluster} is a member of {grant.domain} already", "there is nothing to do"
                    )
                pending = self._pending()
                is_current = pending is not None and (pending.cluster, pending.domain) == (about, domain)
                if pending is not None and is_current and not fresh and _CLUSTER_KEY in self._custody.names():
                    return pending
                joining.check_introduction(about)  # before a key is made for nothing
                key = (
                    self._custody.load(_CLUSTER_KEY)
                    if _CLUSTER_KEY in self._custody.names()
                    else self._custody.create(_CLUSTER_KEY)
                )
                request = joining.make_join_request(key, about, domain=domain, now=now)
                files.replace(self._directory / _REQUEST, joining.encode(request))
                return request

    def accept(self, grant: Grant, *, now: datetime) -> tuple[Intermediate, tuple[Introduction, ...]]:
        """Takes the grant for the pending request; the same grant twice changes nothing. Raises JoinRefused."""
        if not self._directory.exists():
            raise _not_asked()
        with _as_authority_refusal(), files.locked(self._directory):
            accepted = self._accepted()
            if accepted is not None and accepted != grant:
                message = f"{accepted.cluster} is a member of {accepted.domain} already"
                raise JoinRefused(message, "a cluster that is to join anew starts with an empty data directory")
            if accepted is None:
                pending = self._pending()
                if pending is None:
                    raise _not_asked()
                joining.check_grant(grant, pending, public_key=self._custody.load(_CLUSTER_KEY).public_key(), now=now)
                files.replace(self._directory / _GRANT, joining.encode(grant))
            return self._intermediate(grant), grant.introductions

    def _accepted(self) -> Grant | None:
        try:
            return joining.decode_grant(files.read(self._directory / _GRANT))
        except files.FileMissing:
            return None
        except JoinRefused as error:
            message = f"{self._directory / _GRANT}: {error.message}"
            raise AuthorityRefused(message, "restore the data directory from its backup") from error

    def _pending(self) -> JoinRequest | None:
        """Returns the request that was written; None when there is none, or none that this version can read."""
        try:
            return joining.decode_request(files.read(self._directory / _REQUEST))
        except (files.FileMissing, JoinRefused):
            return None

    def _intermediate(self, grant: Grant) -> Intermediate:
        certificate = load_certificate(grant.certificate.encode())
        key = self._custody.load(_CLUSTER_KEY)
        if key.public_key() != certificate.public_key():
            message = f"the key and the grant in {self._directory} do not belong together"
            raise AuthorityRefused(message, "restore both from the same backup")
        return Intermediate(
            cluster=grant.cluster,
            domain=grant.domain,
            certificate=certificate,
            root=load_certificate(grant.root.encode()),
            key=key,
        )


def _not_asked() -> JoinRefused:
    message = "this cluster has not asked to join, or its request was lost"
    return JoinRefused(message, "get the request granted that `isthmus join-request` prints now")


def _check_unspent(ledger: Ledger, request: JoinRequest, key: str, *, replace: bool) -> None:
    """Checks that a request was not granted before, and that its name and its key are free; raises JoinRefused."""
    name = request.cluster.name
    if (spent := ledger.requests.get(request.id)) is not None:
        message = f"this request of {spent.cluster} was granted already, at {spent.granted:%Y-%m-%d %H:%M:%S} UTC"
        raise JoinRefused(message, "make a new request in the cluster: isthmus join-request --new")
    for other, member in ledger.members.items():
        if other != name and member.key == key:
            # One key behind two names would make one stolen key speak for both.
            message = f"the key of the request belongs to the cluster {other}"
            raise JoinRefused(message, "give each cluster a data directory of its own")
    held = ledger.members.get(name)
    if held is not None and held.key != key and not replace:
        message = f"the name {name} is taken by another key, since {held.granted:%Y-%m-%d %H:%M:%S} UTC"
        hint = "choose another name; or, if this cluster lost its key, grant with --replace"
        raise JoinRefused(message, f"{hint} (the old certificate stays valid until {held.not_after:%Y-%m-%d})")


def _print(ledger: Ledger) -> bytes:
    return msgspec.json.format(msgspec.json.encode(ledger), indent=2) + b"\n"


@contextlib.contextmanager
def _new_directory(directory: Path) -> Iterator[Path]:
    """Gives a directory that takes the place of `directory` in the end, or vanishes when something is refused."""
    target = directory.resolve()
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with _as_authority_refusal():
            files.make_directory(fresh)
            yield fresh
            try:
                fresh.rename(target)  # fails on a directory with something in it
            except OSError as error:
                message = f"{directory} cannot become the directory of a new root: {error.strerror}"
                raise AuthorityRefused(message, "name a directory that is empty, or not there yet") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextlib.contextmanager
def _as_authority_refusal() -> Iterator[None]:
    try:
        yield
    except (files.FileRefused, CertificateRefused) as error:
        raise AuthorityRefused(error.message, error.hint) from error
