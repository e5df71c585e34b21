"""The two kinds of certificate authority on disk: the mesh's root, kept offline, and a cluster's intermediate."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from trust.joining import Grant, Introduction, JoinRequest
from trust.refusals import Refusal
from trust.spiffe import ClusterName, MeshDomain

ROOT_LIFETIME = timedelta(days=3650)
INTERMEDIATE_LIFETIME = timedelta(days=365)
GRANT_LIFETIME = timedelta(hours=24)


class AuthorityRefused(Refusal):
    """A directory that holds no authority, or one already, or one that does not fit."""


class Root:
    """The root of a mesh: a directory with its key, its certificate and the ledger of what it granted."""

    domain: MeshDomain
    certificate: x509.Certificate

    @classmethod
    def init(
        cls,
        directory: Path,
        domain: MeshDomain,
        *,
        now: datetime,
        passphrase: bytes | None = None,
        lifetime: timedelta = ROOT_LIFETIME,
    ) -> "Root":
        """Makes a new root in `directory`, which must be absent or empty. Raises AuthorityRefused."""
        raise NotImplementedError

    @classmethod
    def open(cls, directory: Path, *, now: datetime, passphrase: bytes | None = None) -> "Root":
        """Opens the root in `directory`; raises AuthorityRefused or CustodyRefused."""
        raise NotImplementedError

    @staticmethod
    def needs_passphrase(directory: Path) -> bool:
        """Says whether `open` will need a passphrase; raises as `open` does."""
        raise NotImplementedError

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
        """Signs the intermediate of a cluster; raises JoinRefused and then has changed nothing.

        The grant introduces every member of the ledger; `introductions` say better where some of them are now.
        `replace` gives a name to a new key: for a cluster that lost its old one.
        """
        raise NotImplementedError

    def members(self) -> tuple[Introduction, ...]:
        """Returns all that were granted membership, by name."""
        raise NotImplementedError


@dataclass(frozen=True)
class Intermediate:
    """A cluster's issuing authority, ready to sign."""

    cluster: ClusterName
    domain: MeshDomain
    certificate: x509.Certificate
    root: x509.Certificate
    key: ec.EllipticCurvePrivateKey


class Enrolment:
    """A cluster's way into the mesh, kept in the data directory of its control plane; replicas may share it."""

    def __init__(self, directory: Path, passphrase: bytes | None = None) -> None:
        raise NotImplementedError

    def load(self) -> tuple[Intermediate, tuple[Introduction, ...]] | None:
        """Returns what was accepted: the authority and who was introduced; None before the cluster has joined."""
        raise NotImplementedError

    def request(self, about: Introduction, *, domain: MeshDomain, now: datetime, fresh: bool = False) -> JoinRequest:
        """Returns the pending request of this cluster; makes one (and the key) when there is none, or when `about`
        changed, or when `fresh` is asked for. Raises JoinRefused when the cluster has joined already."""
        raise NotImplementedError

    def accept(self, grant: Grant, *, now: datetime) -> tuple[Intermediate, tuple[Introduction, ...]]:
        """Takes the grant for the pending request; the same grant twice changes nothing. Raises JoinRefused."""
        raise NotImplementedError
