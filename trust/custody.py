"""Where the key of a certificate authority is kept. Today a file; a Kubernetes Secret or an HSM has the same shape."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from trust import files
from trust.certificates import CertificateRefused, key_pem, load_key, new_key
from trust.refusals import Refusal

_LONGEST_PASSPHRASE = 1023  # bytes; PKCS#8 encryption of the library takes no more


class CustodyRefused(Refusal):
    """A key that is not there, is there already, lies open to others, or cannot be read."""


class Custody(Protocol):
    """Keeps one CA key.

    What it hands out is an `ec.EllipticCurvePrivateKey` that signs; it need not hold the key itself: `cryptography`
    asks an object of that interface for nothing but `sign` and `public_key`.
    """

    def exists(self) -> bool:
        """Says whether there is a key."""

    def create(self) -> ec.EllipticCurvePrivateKey:
        """Makes a key and keeps it; never overwrites one. Raises CustodyRefused."""

    def load(self) -> ec.EllipticCurvePrivateKey:
        """Returns the key; raises CustodyRefused."""


class FileCustody:
    """A key in a PEM file (PKCS#8) of mode 0600 in a directory of mode 0700, encrypted when there is a passphrase."""

    def __init__(self, path: Path, passphrase: bytes | None = None) -> None:
        self._path = path
        self._passphrase = passphrase

    def exists(self) -> bool:
        """Says whether there is a key: also one that may not be used as it lies there."""
        return self._path.is_symlink() or self._path.exists()

    def is_encrypted(self) -> bool:
        """Says whether a passphrase is needed; raises CustodyRefused when there is no key, or it lies open."""
        with _translated(self._path):
            return b"BEGIN ENCRYPTED PRIVATE KEY" in files.read(self._path)

    def create(self) -> ec.EllipticCurvePrivateKey:
        """Makes a key and keeps it; never overwrites one. Raises CustodyRefused."""
        if self._passphrase is not None and not 0 < len(self._passphrase) <= _LONGEST_PASSPHRASE:
            message = f"a passphrase has 1 to {_LONGEST_PASSPHRASE} bytes, not {len(self._passphrase)}"
            raise CustodyRefused(message, "choose another passphrase, or none")
        key = new_key()
        with _translated(self._path):
            files.make_directory(self._path.parent)
            files.create(self._path, key_pem(key, self._passphrase))
        return key

    def load(self) -> ec.EllipticCurvePrivateKey:
        """Returns the key; raises CustodyRefused. A passphrase that an open key does not need is not looked at."""
        with _translated(self._path):
            return load_key(files.read(self._path), self._passphrase)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except files.FileMissing as error:
        raise CustodyRefused(
            f"there is no key at {path}", "check the path, or restore the key from its backup"
        ) from error
    except files.FileExists as error:
        raise CustodyRefused(f"there is a key at {path} already", "no key is ever overwritten: move it away") from error
    except files.FileRefused as error:
        raise CustodyRefused(error.message, error.hint) from error
    except CertificateRefused as error:
        raise CustodyRefused(f"{path}: {error.message}", error.hint) from error
