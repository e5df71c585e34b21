"""etcd as a control plane needs it: a thin asyncio client of its v3 gRPC API.

Skeleton: signatures are settled, bodies follow.
"""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import NewType, Self

import msgspec

LeaseId = NewType("LeaseId", int)
NO_LEASE = LeaseId(0)


class EtcdError(Exception):
    """etcd did not do what it was asked to."""


class EtcdUnavailable(EtcdError):
    """etcd cannot be reached or did not answer in time: try again later. A write may have been done or not."""


class EtcdRefused(EtcdError):
    """etcd understood and will not do it, now or later: no permission, a value too large."""


class Fenced(EtcdError):
    """A guarded write was not done, because the guard holds no longer: this process leads no more."""


class LeaseExpired(EtcdError):
    """The lease is not known to etcd (any more), and neither are the keys that hung on it."""


class KeyValue(msgspec.Struct, frozen=True):
    """One key as etcd holds it. `lease` is NO_LEASE for a key that stays."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: LeaseId = NO_LEASE


class Listing(msgspec.Struct, frozen=True):
    """All keys under a prefix at one revision, in the order of their names."""

    revision: int
    items: tuple[KeyValue, ...]


class Event(msgspec.Struct, frozen=True):
    """One change of one key; `item` is None when the key was deleted."""

    key: str
    item: KeyValue | None
    revision: int


class Guard(msgspec.Struct, frozen=True):
    """Holds while `key` is the one that was created at `create_revision`; 0: while there is no such key."""

    key: str
    create_revision: int


class Unchanged(msgspec.Struct, frozen=True):
    """Holds while `key` was not written since `mod_revision`; 0: while there is no such key."""

    key: str
    mod_revision: int


class Put(msgspec.Struct, frozen=True):
    """Writes a key."""

    key: str
    value: bytes
    lease: LeaseId = NO_LEASE


class Delete(msgspec.Struct, frozen=True):
    """Removes a key; removing what is not there is no error."""

    key: str


class Get(msgspec.Struct, frozen=True):
    """Reads a key."""

    key: str


Condition = Guard | Unchanged
Operation = Put | Delete | Get


class Outcome(msgspec.Struct, frozen=True):
    """What a transaction did: whether the conditions held, and what its Gets found, in their order."""

    succeeded: bool
    revision: int
    found: tuple[KeyValue | None, ...] = ()


class EtcdTls(msgspec.Struct, frozen=True):
    """PEM files for TLS to etcd: who signed its certificate, and who we are where etcd asks for that."""

    authority: Path
    certificate: Path | None = None
    key: Path | None = None


class EtcdClient:
    """A connection to the etcd of this cluster; an async context manager.

    `endpoints` are URLs such as `http://127.0.0.1:2379`: the members of one etcd. Every call but `follow` ends within
    `timeout` and raises EtcdUnavailable or EtcdRefused.
    """

    def __init__(
        self, endpoints: tuple[str, ...], *, tls: EtcdTls | None = None, timeout: timedelta = timedelta(seconds=5)
    ) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raise NotImplementedError

    async def get(self, key: str) -> KeyValue | None:
        """Returns a key, or None when there is no such key."""
        raise NotImplementedError

    async def list(self, prefix: str) -> Listing:
        """Returns all keys that begin with `prefix`."""
        raise NotImplementedError

    async def put(self, key: str, value: bytes, *, lease: LeaseId = NO_LEASE, guard: Guard | None = None) -> int:
        """Writes a key and returns the revision of the write; raises Fenced when the guard does not hold."""
        raise NotImplementedError

    async def put_if_absent(self, key: str, value: bytes, *, lease: LeaseId = NO_LEASE) -> bool:
        """Writes a key that is not there yet; returns whether it did."""
        raise NotImplementedError

    async def delete(self, key: str, *, guard: Guard | None = None) -> int:
        """Removes a key if it is there and returns the revision; raises Fenced when the guard does not hold."""
        raise NotImplementedError

    async def transact(
        self, conditions: Sequence[Condition], on_success: Sequence[Operation], on_failure: Sequence[Operation] = ()
    ) -> Outcome:
        """Does `on_success` when all conditions hold, else `on_failure`; all at one moment. At most 128 operations."""
        raise NotImplementedError

    async def grant_lease(self, ttl: timedelta) -> LeaseId:
        """Makes a lease: its keys vanish when it was not kept alive for `ttl` (whole seconds; etcd may make it longer)."""
        raise NotImplementedError

    async def keep_alive(self, lease: LeaseId) -> timedelta:
        """Renews a lease once and returns the time that it now lives; raises LeaseExpired."""
        raise NotImplementedError

    async def revoke(self, lease: LeaseId) -> None:
        """Ends a lease and removes its keys; a lease that is gone already is no error."""
        raise NotImplementedError

    async def follow(self, prefix: str) -> AsyncIterator[Listing | Event]:
        """Yields all keys under `prefix`, then every change, for ever.

        A Listing comes first, and again whenever the changes since the last item cannot be told for certain (compaction,
        etcd lost data or was replaced): it replaces all that was known. Outages are waited out and never raised.
        Wrap it in `contextlib.aclosing`.
        """
        raise NotImplementedError
        yield
