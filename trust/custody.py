"""Where the key of a certificate authority is kept."""

from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from trust.refusals import Refusal


class CustodyRefused(Refusal):
    """A key that is not there, is there already, lies open to others, or cannot be read."""


class Custody(Protocol):
    """Keeps one CA key. What it hands out signs; it need not hold the key itself (PKCS#11, a KMS)."""

    def exists(self) -> bool: ...
    def create(self) -> ec.EllipticCurvePrivateKey: ...
    def load(self) -> ec.EllipticCurvePrivateKey: ...


class FileCustody:
    """A key in a PEM file of mode 0600 in a directory of mode 0700."""

    def __init__(self, path: Path, passphrase: bytes | None = None) -> None:
        raise NotImplementedError

    def exists(self) -> bool:
        """Says whether there is a key."""
        raise NotImplementedError

    def is_encrypted(self) -> bool:
        """Says whether a passphrase is needed; raises CustodyRefused when there is no key."""
        raise NotImplementedError

    def create(self) -> ec.EllipticCurvePrivateKey:
        """Makes a key and keeps it; never overwrites one. Raises CustodyRefused."""
        raise NotImplementedError

    def load(self) -> ec.EllipticCurvePrivateKey:
        """Returns the key; raises CustodyRefused."""
        raise NotImplementedError
