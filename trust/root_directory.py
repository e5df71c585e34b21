"""What the directory of a root holds, and how it is changed: `root.Root` decides what is said in it.

    bundles.json     the trust bundles that the root signed, and the names of its keys
    members.json     the ledger of members and of the requests that were granted
    root.pem         the root that signs now, for people
    root-1-key.pem   keys, when this directory is their custody

Each step ends in one file that is written whole. A key is made before the bundle that names it, and destroyed after the
one that no longer does; a step that a crash cut in two is done again. Processes that share a directory wait for each
other.
"""

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from trust import files
from trust.bundle import BundleRefused, TrustBundle, root_certificates, root_fingerprints
from trust.certificates import CertificateRefused, key_fingerprint
from trust.custody import Custody, load_or_create
from trust.ledger import Ledger, decode_ledger, encode_ledger
from trust.refusals import AuthorityRefused, Refusal, told_as
from trust.rotation import RootStage
from trust.spiffe import MeshDomain

VERSION = 1

_BUNDLES = "bundles.json"
_LEDGER = "members.json"
_ROOT = "root.pem"
_LOCK = ".lock"
_KEY = "root-"


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What is in `bundles.json`: the bundles that are worth keeping, by number; none while the root is being made.

    `keys` names the keys in the custody, by the fingerprints of the roots; a root that is trusted no longer is among
    them until its key is destroyed. `making` is the name of a key that is about to be made: only one that this root
    began to make is ever taken up again, for a token may hold the keys of others.
    """

    version: int = VERSION
    domain: MeshDomain
    bundles: tuple[TrustBundle, ...] = ()
    keys: Mapping[str, str] = {}
    making: str = ""

    @property
    def bundle(self) -> TrustBundle:
        """The newest bundle."""
        return self.bundles[-1]

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        """The roots of the newest bundle; the first signs."""
        return root_certificates(self.bundle)

    @property
    def stage(self) -> RootStage:
        """How far a rotation is."""
        match [key_number(self.keys[fingerprint]) for fingerprint in root_fingerprints(self.bundle)]:
            case [first, second]:
                return RootStage.ANNOUNCED if first < second else RootStage.SIGNING
            case _:
                return RootStage.RETIRING if self.forgotten else RootStage.IDLE

    @property
    def signer(self) -> str:
        """The name of the key that signs."""
        return self.keys[root_fingerprints(self.bundle)[0]]

    @property
    def forgotten(self) -> Mapping[str, str]:
        """The keys, like `keys`, of roots that are trusted no longer."""
        trusted = root_fingerprints(self.bundle)
        return {fingerprint: name for fingerprint, name in self.keys.items() if fingerprint not in trusted}


class RootDirectory:
    """The directory of a root and the custody of its keys. Raises AuthorityRefused and CustodyRefused."""

    def __init__(self, path: Path, custody: Custody) -> None:
        self.path = path
        self.custody = custody

    def read(self) -> Said:
        """Returns what the root has said; refused when it has said nothing yet."""
        said = self._read()
        if said is None or not said.bundles:
            message = f"{self.path} holds no root" if said is None else f"the root in {self.path} is half made"
            raise AuthorityRefused(message, "name the directory that `isthmus trust init` made, or run that again")
        return said

    @contextlib.contextmanager
    def changing(self) -> Iterator[Said]:
        """Locks the directory and gives what the root has said; words all that is refused as this room does."""
        with as_authority_refusal():
            self.read()  # a directory that holds no root gets no lock either
            with files.locked(self.path):
                yield self.read()

    @contextlib.contextmanager
    def new(self, domain: MeshDomain) -> Iterator[Said]:
        """Locks a directory that is absent or empty, or was left half made; clears it again if the rest is refused."""
        with as_authority_refusal():
            was_there = self.path.exists()
            if was_there:
                self._check_unused(domain)
                self._close_to_others()
            files.make_directory(self.path)
            with files.locked(self.path):
                self._check_unused(domain)
                begun = self._read()
                if begun is None and (taken := self._key_names()):
                    self._clear(was_there=was_there)
                    message = f"there is a key of a root already: {taken[0]}"
                    raise AuthorityRefused(message, "give this root a place of its own for its keys")
                try:
                    yield begun or Said(domain=domain)
                except Refusal:
                    for name in self._key_names():
                        self.custody.destroy(name)
                    self._clear(was_there=was_there)
                    raise

    def write(self, said: Said) -> None:
        """Keeps what the root says from now on, and lays its certificate out for people."""
        files.replace(self.path / _BUNDLES, msgspec.json.format(msgspec.json.encode(said), indent=2) + b"\n")
        if said.bundles:
            self.lay_out(said)

    def lay_out(self, said: Said) -> None:
        """Sees to it that `root.pem` is the root that signs."""
        pem = said.bundle.roots[0].encode()
        with contextlib.suppress(files.FileMissing):
            if files.read(self.path / _ROOT) == pem:
                return
        files.replace(self.path / _ROOT, pem)

    def read_ledger(self) -> Ledger:
        """Returns the ledger."""
        path = self.path / _LEDGER
        try:
            return decode_ledger(files.read(path), path)
        except files.FileRefused as error:
            hint = "restore the ledger: without it names could be given twice"
            raise AuthorityRefused(error.message, hint) from error

    def write_ledger(self, ledger: Ledger) -> None:
        """Keeps the ledger."""
        files.replace(self.path / _LEDGER, encode_ledger(ledger))

    def key(self, said: Said, root: x509.Certificate) -> ec.EllipticCurvePrivateKey:
        """Returns the key of one of the roots."""
        fingerprint = root_fingerprints(said.bundle)[said.roots.index(root)]
        key = self.custody.load(said.keys[fingerprint])
        if key.public_key() != root.public_key():
            message = f"the key and the certificate of the root in {self.path} do not belong together"
            raise AuthorityRefused(message, "restore both from the same backup")
        return key

    def new_key(self, said: Said) -> tuple[ec.EllipticCurvePrivateKey, Said]:
        """Makes the next key, or takes up the one that was begun; returns with it what names it, to be written."""
        names = self.custody.names()
        after = key_number(said.signer) if said.bundles else 0
        name = said.making
        if not name:
            name = next(free for n in itertools.count(after + 1) if (free := f"{_KEY}{n}") not in names)
            self.write(msgspec.structs.replace(said, making=name))
        try:
            key = load_or_create(self.custody, name)
        except Refusal:
            self.write(said)
            raise
        keys = {**said.keys, key_fingerprint(key.public_key()): name}
        return key, msgspec.structs.replace(said, keys=keys, making="")

    def _read(self) -> Said | None:
        path = self.path / _BUNDLES
        try:
            said = msgspec.json.decode(files.read(path), type=Said)
        except files.FileMissing:
            return None
        except files.FileRefused as error:
            raise AuthorityRefused(error.message, error.hint) from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise AuthorityRefused(f"{path} is broken: {error}", "restore the directory from its backup") from error
        if said.version != VERSION:
            message = f"{path} has version {said.version}, this Isthmus knows version {VERSION}"
            raise AuthorityRefused(message, "use the newer Isthmus beside the root")
        return said

    def _check_unused(self, domain: MeshDomain) -> None:
        """Refuses a directory with something in it, unless it is a root of `domain` that was left half made."""
        try:
            names = {entry.name for entry in self.path.iterdir()}
        except OSError as error:
            raise self._in_use(error.strerror or str(error)) from error
        if not names or names == {_LOCK}:
            return
        said = self._read() if _BUNDLES in names else None
        if said is None or said.bundles or said.domain != domain:
            raise self._in_use("there is something in it")

    def _close_to_others(self) -> None:
        try:
            self.path.chmod(0o700)
        except OSError as error:
            raise self._in_use(error.strerror or str(error)) from error

    def _in_use(self, reason: str) -> AuthorityRefused:
        message = f"{self.path} cannot become the directory of a new root: {reason}"
        return AuthorityRefused(message, "name a directory that is empty, or not there yet")

    def _key_names(self) -> list[str]:
        return [name for name in self.custody.names() if name.startswith(_KEY)]

    def _clear(self, *, was_there: bool) -> None:
        for entry in self.path.iterdir():
            entry.unlink()
        if not was_there:
            self.path.rmdir()


def key_number(name: str) -> int:
    """Returns the number in the name of a root's key; raises AuthorityRefused when there is none."""
    number = name.removeprefix(_KEY)
    if not number.isdecimal():
        raise AuthorityRefused(f"{name!r} is not the name of a root's key", "restore the directory from its backup")
    return int(number)


def as_authority_refusal() -> contextlib.AbstractContextManager[None]:
    """Words what files, certificates and bundles refuse as a refusal of the authority."""
    return told_as(AuthorityRefused, files.FileRefused, CertificateRefused, BundleRefused)
