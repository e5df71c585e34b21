"""CA keys in one Kubernetes Secret, one entry a key: for control planes whose replicas share no directory.

Two replicas that change the Secret at once cannot undo each other's work: each writes what it read with the
`resourceVersion` that it read, and the API server refuses all but the first. The other reads again.

Who may read the Secret has the keys, and so has who can read the etcd of Kubernetes: without encryption at rest
(EncryptionConfiguration, a KMS) they lie there, and in its backups, as they are here. With a passphrase they are
encrypted by it first.

Source: Kubernetes API concepts, "Resource versions" and "Updates to existing resources".
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from trust.certificates import CertificateRefused, key_pem, load_key, new_key
from trust.custody import CustodyRefused, KeyExists, KeyMissing, check_name, check_passphrase, is_name
from trust.refusals import Refusal

_SUFFIX = "-key.pem"
_ATTEMPTS = 16  # of one change: each that fails means that another replica made one


class SecretContent(msgspec.Struct, frozen=True):
    """The entries (`data`, decoded) of a Secret, and its `metadata.resourceVersion`: "" when there is no Secret."""

    entries: Mapping[str, bytes] = {}
    version: str = ""

    def __repr__(self) -> str:
        """Leaves the entries' values out: they are keys."""
        return f"SecretContent({sorted(self.entries)}, version={self.version!r})"


class SecretConflict(Refusal):
    """Somebody else changed the Secret since it was read (409 Conflict), or made or removed it (409, 404)."""


class SecretUnavailable(Refusal):
    """The API server cannot be reached, or forbids it (its message and a hint)."""


class SecretApi(Protocol):
    """One Secret on an API server. Every call blocks, for a bounded time, and raises SecretUnavailable."""

    @property
    def name(self) -> str:
        """NAMESPACE/NAME of the Secret, for messages."""

    def read(self) -> SecretContent:
        """Returns what is in the Secret now, not from a cache; SecretContent() when there is none."""

    def write(self, content: SecretContent) -> None:
        """Replaces all entries, if the Secret is still of `content.version`; raises SecretConflict if not.

        With version "" it makes the Secret (POST, type Opaque); else it replaces it (PUT with `resourceVersion`).
        """


class SecretCustody:
    """Keys in PEM (PKCS#8), entry `<name>-key.pem` each, encrypted when there is a passphrase. Safe in any thread."""

    def __init__(self, api: SecretApi, passphrase: bytes | None = None) -> None:
        self._api = api
        self._passphrase = passphrase

    def __repr__(self) -> str:
        """Leaves the passphrase out: what is printed ends in logs."""
        return f"SecretCustody({self._api.name})"

    @property
    def where(self) -> str:
        """Names the Secret. It is opened with the cluster's own credentials, which no text can hold."""
        return f"secret:{self._api.name}"

    def names(self) -> tuple[str, ...]:
        """Returns the names of all keys, sorted. Raises CustodyRefused."""
        return _names(self._read().entries)

    def create(self, name: str) -> ec.EllipticCurvePrivateKey:
        """Makes a key and keeps it; never overwrites one. Raises CustodyRefused."""
        check_name(name)
        check_passphrase(self._passphrase)
        key = new_key()
        pem = key_pem(key, self._passphrase)

        def added(entries: Mapping[str, bytes]) -> Mapping[str, bytes]:
            if _entry(name) in entries:
                message = f"there is a key {name} in the Secret {self._api.name} already"
                raise KeyExists(message, "no key is ever overwritten: remove the entry, if it is not needed")
            return {**entries, _entry(name): pem}

        self._change(added)
        return key

    def load(self, name: str) -> ec.EllipticCurvePrivateKey:
        """Returns a key; raises CustodyRefused. A passphrase that an open key does not need is not looked at."""
        check_name(name)
        entries = self._read().entries
        if _entry(name) not in entries:
            message = f"there is no key {name} in the Secret {self._api.name}"
            raise KeyMissing(message, "check the name of the Secret, or restore it from its backup")
        try:
            return load_key(entries[_entry(name)], self._passphrase)
        except CertificateRefused as error:
            message = f"the key {name} in the Secret {self._api.name}: {error.message}"
            raise CustodyRefused(message, error.hint) from error

    def destroy(self, name: str) -> None:
        """Removes the entry of a key; one that is gone already is no error. Raises CustodyRefused.

        The etcd of Kubernetes keeps old revisions until it is compacted, and its backups longer.
        """
        check_name(name)
        self._change(lambda entries: {entry: pem for entry, pem in entries.items() if entry != _entry(name)})

    def _read(self) -> SecretContent:
        try:
            return self._api.read()
        except SecretUnavailable as error:
            raise CustodyRefused(error.message, error.hint) from error

    def _change(self, change: Callable[[Mapping[str, bytes]], Mapping[str, bytes]]) -> None:
        for _ in range(_ATTEMPTS):
            found = self._read()
            changed = change(found.entries)
            if changed == found.entries:
                return
            try:
                self._api.write(SecretContent(changed, found.version))
            except SecretConflict:
                continue
            except SecretUnavailable as error:
                raise CustodyRefused(error.message, error.hint) from error
            return
        message = f"the Secret {self._api.name} was changed by others {_ATTEMPTS} times while we changed it"
        raise CustodyRefused(message, "see who writes to it; then try again")


def _entry(name: str) -> str:
    return f"{name}{_SUFFIX}"


def _names(entries: Mapping[str, bytes]) -> tuple[str, ...]:
    names = (entry.removesuffix(_SUFFIX) for entry in entries if entry.endswith(_SUFFIX))
    return tuple(sorted(name for name in names if is_name(name)))
