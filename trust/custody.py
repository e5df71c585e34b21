"""Where the keys of certificate authorities are kept: a ring of named keys, in files, a Kubernetes Secret or a token.

    root-1, root-2 ...   keys of the mesh's root         ca-1, ca-2 ...   keys of a cluster's intermediate, by slot

Whoever signs gets an object that signs; only `trust` calls it. A ring is named by a text, "" for files in the directory
that it belongs to or the `pkcs11:` URI of a token, which is remembered in that directory: it holds no secret.
"""

import contextlib
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from trust import files
from trust.certificates import CertificateRefused, key_pem, load_key, new_key
from trust.pkcs11_uri import EXAMPLE, SCHEME, UriRefused, parse_token_uri
from trust.refusals import Refusal

_LONGEST_PASSPHRASE = 1023  # bytes; PKCS#8 encryption of the library takes no more
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ATTEMPTS = 8
_LONGEST_PAUSE = 200  # milliseconds
_SUFFIX = "-key.pem"
_WHERE = "keys-in"


class CustodyRefused(Refusal):
    """A key that is not there, is there already, lies open to others, or cannot be read or used."""


class KeyMissing(CustodyRefused):
    """There is no such key."""


class KeyExists(CustodyRefused):
    """There is such a key already."""


class KeyAmbiguous(CustodyRefused):
    """There are several keys of one name: they are being made just now, or somebody put them there."""


class Custody(Protocol):
    """Keeps the CA keys of one authority, by name: lower-case letters, digits and hyphens, 1 to 63 of them.

    What it hands out is an `ec.EllipticCurvePrivateKey` that signs; it need not hold the key itself: `cryptography`
    asks an object of that interface for nothing but `sign` and `public_key`. Safe in any thread; every call may block,
    and raises CustodyRefused.
    """

    @property
    def where(self) -> str:
        """Says where the keys are, as `open_custody` understands it; never holds a secret."""

    def names(self) -> tuple[str, ...]:
        """Returns the names of all keys, sorted: also of those that may not be used as they lie there."""

    def create(self, name: str) -> ec.EllipticCurvePrivateKey:
        """Makes a key and keeps it; never overwrites one."""

    def load(self, name: str) -> ec.EllipticCurvePrivateKey:
        """Returns a key."""

    def destroy(self, name: str) -> None:
        """Removes a key; one that is gone already is no error, so that an interrupted step can be done again."""


def open_custody(where: str, *, directory: Path, passphrase: bytes | None = None) -> Custody:
    """Opens the ring that `where` names: "" is the files in `directory`, anything else a `pkcs11:` URI (RFC 7512).

    `passphrase` encrypts files; for a token it is the PIN, unless the URI names a file with it. Raises CustodyRefused.
    """
    if not where:
        return FileCustody(directory, passphrase)
    if not where.startswith(SCHEME):
        # Not repeated: what is no URI may be anything, also a secret in the wrong place.
        raise CustodyRefused("this names no place for keys", f"give the URI of a token: {EXAMPLE}")
    try:
        from trust.pkcs11 import Pkcs11Custody  # needs a library that only users of tokens install
    except ImportError as error:
        message = f"keys in a token need the library python-pkcs11, which is not here ({error})"
        raise CustodyRefused(message, "pip install 'isthmus[pkcs11]'") from error
    return Pkcs11Custody(where, passphrase)


def load_or_create(custody: Custody, name: str) -> ec.EllipticCurvePrivateKey:
    """Returns the key `name`, made when there is none; all that call at once get one key. Raises CustodyRefused.

    That holds for all processes; with a token, for those that hold one lock (`Pkcs11Custody.create`).
    """
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(KeyMissing, KeyAmbiguous):
            return custody.load(name)
        with contextlib.suppress(KeyExists):
            return custody.create(name)
        # Of several that make a key in a token at once all may have given way: not in step again.
        time.sleep(secrets.randbelow(_LONGEST_PAUSE) / 1000)
    return custody.load(name)


def remember(directory: Path, where: str) -> None:
    """Writes down, in the directory of an authority, where its keys are: see `Custody.where`. Raises CustodyRefused."""
    path = directory / _WHERE
    with _translated(path):
        files.replace(path, f"{where}\n".encode())


def remembered(directory: Path) -> str:
    """Returns what `remember` wrote, for `open_custody`; "" when nothing was. Raises CustodyRefused."""
    path = directory / _WHERE
    if not path.exists():
        return ""
    with _translated(path):
        return files.read(path).decode(errors="replace").strip()


def needs_passphrase(where: str, *, directory: Path) -> bool:
    """Says whether the ring that `where` names opens with a passphrase (a PIN) alone; raises CustodyRefused."""
    if where:
        try:
            return parse_token_uri(where).pin_source is None
        except UriRefused as error:
            raise CustodyRefused(error.message, error.hint) from error
    ring = FileCustody(directory)
    return any(ring.is_encrypted(name) for name in ring.names())


def is_name(text: str) -> bool:
    """Says whether `text` is a name for a key."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str) -> None:
    """Checks the name of a key: it becomes part of a file's name. Raises CustodyRefused."""
    if not is_name(name):
        raise CustodyRefused(f"{name!r} is not a name for a key", "give 1 to 63 lower-case letters, digits, hyphens")


def check_passphrase(passphrase: bytes | None) -> None:
    """Checks that a key can be encrypted by `passphrase`; raises CustodyRefused."""
    if passphrase is not None and not 0 < len(passphrase) <= _LONGEST_PASSPHRASE:
        message = f"a passphrase has 1 to {_LONGEST_PASSPHRASE} bytes, not {len(passphrase)}"
        raise CustodyRefused(message, "choose another passphrase, or none")


class FileCustody:
    """Keys in PEM files (PKCS#8) `<name>-key.pem` of mode 0600 in a directory of mode 0700.

    They are encrypted when there is a passphrase, which may be the content of a key file: 1 to 1023 bytes. Who gets
    hold of the file may guess at leisure (AES-256, PBKDF2 of 2048 rounds): let it be long, best 32 random bytes.
    """

    def __init__(self, directory: Path, passphrase: bytes | None = None) -> None:
        self._directory = directory
        self._passphrase = passphrase

    def __repr__(self) -> str:
        """Leaves the passphrase out: what is printed ends in logs."""
        return f"FileCustody({self._directory})"

    @property
    def where(self) -> str:
        """Says where the keys are: in the directory that they belong to."""
        return ""

    def names(self) -> tuple[str, ...]:
        """Returns the names of all keys, sorted; none when there is no directory. Raises CustodyRefused."""
        try:
            with _translated(self._directory):
                files.check_directory(self._directory)
                found = [entry.name for entry in self._directory.iterdir()]
        except KeyMissing:
            return ()
        names = (entry.removesuffix(_SUFFIX) for entry in found if entry.endswith(_SUFFIX))
        return tuple(sorted(name for name in names if is_name(name)))

    def is_encrypted(self, name: str) -> bool:
        """Says whether a key needs a passphrase; raises CustodyRefused when there is no key, or it lies open."""
        path = self._path(name)
        with _translated(path):
            return b"BEGIN ENCRYPTED PRIVATE KEY" in files.read(path)

    def create(self, name: str) -> ec.EllipticCurvePrivateKey:
        """Makes a key and keeps it; never overwrites one. Raises CustodyRefused."""
        path = self._path(name)
        check_passphrase(self._passphrase)
        key = new_key()
        with _translated(path):
            files.make_directory(self._directory)
            files.create(path, key_pem(key, self._passphrase))
        return key

    def load(self, name: str) -> ec.EllipticCurvePrivateKey:
        """Returns a key; raises CustodyRefused. A passphrase that an open key does not need is not looked at."""
        path = self._path(name)
        with _translated(path):
            return load_key(files.read(path), self._passphrase)

    def destroy(self, name: str) -> None:
        """Removes the file of a key, durably; one that is gone already is no error. Raises CustodyRefused.

        This takes away the name, not the bits: blocks of the disk, snapshots and backups may hold them until they are
        overwritten, and a process that loaded the key keeps it in its memory. Who must be sure encrypts the keys and
        destroys the passphrase, or keeps them in a token.
        """
        path = self._path(name)
        with contextlib.suppress(KeyMissing), _translated(path):
            files.remove(path)

    def _path(self, name: str) -> Path:
        check_name(name)
        return self._directory / f"{name}{_SUFFIX}"


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except files.FileMissing as error:
        raise KeyMissing(f"there is no key at {path}", "check the path, or restore the key from its backup") from error
    except files.FileExists as error:
        raise KeyExists(f"there is a key at {path} already", "no key is ever overwritten: move it away") from error
    except files.FileRefused as error:
        raise CustodyRefused(error.message, error.hint) from error
    except CertificateRefused as error:
        raise CustodyRefused(f"{path}: {error.message}", error.hint) from error
