"""What is said to etcd and what it answers: values, and their translation to the messages of its v3 API. Pure.

A revision counts the writes of the whole etcd; `mod_revision` is that of a key's last write, `create_revision` that of
the write that made the key. https://etcd.io/docs/v3.5/learning/api/
"""

from collections.abc import Iterable
from typing import NewType, Self, assert_never

import msgspec

from federation.etcd.api import etcd_kv_pb2 as kv
from federation.etcd.api import etcd_rpc_pb2 as rpc

LeaseId = NewType("LeaseId", int)
NO_LEASE = LeaseId(0)


class KeyValue(msgspec.Struct, frozen=True):
    """One key as etcd holds it. `lease` is NO_LEASE for a key that stays."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: LeaseId = NO_LEASE


class Listing(msgspec.Struct, frozen=True):
    """All keys under a prefix at one revision, in the order of their names.

    `is_after_loss` says that etcd certainly lost writes which a follower was told of: nobody deleted what is missing,
    and whoever wrote it should write it again.
    """

    revision: int
    items: tuple[KeyValue, ...]
    is_after_loss: bool = False


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


class Position(msgspec.Struct, frozen=True):
    """How far a follower has come, and in which life of etcd.

    Changes after `revision` may be asked for only where history is certainly the same: an etcd that lost data (3.5.1
    may lose its last writes when killed) or was replaced by an empty one takes a watch from any revision, and is
    silent about what is missing. `anchor` is the newest key that was seen written: it must still stand in the history.
    """

    cluster: int
    term: int
    revision: int
    anchor: KeyValue | None

    @classmethod
    def at(cls, header: rpc.ResponseHeader, items: Iterable[KeyValue]) -> Self:
        """Returns the position of one who has listed `items`."""
        newest = max(items, key=lambda item: item.mod_revision, default=None)
        return cls(cluster=header.cluster_id, term=header.raft_term, revision=header.revision, anchor=newest)

    def after(self, event: Event) -> Self:
        """Returns the position of one who has seen `event` too."""
        return msgspec.structs.replace(self, revision=event.revision, anchor=event.item or self.anchor)

    def is_before(self, header: rpc.ResponseHeader) -> bool:
        """Says whether a server that answers with `header` can be in the same history, at this position or later.

        A new raft term means an election: in an etcd of one member it was restarted, and may have lost writes.
        """
        is_same_life = (header.cluster_id, header.raft_term) == (self.cluster, self.term)
        return is_same_life and header.revision >= self.revision


def range_of(prefix: str) -> tuple[bytes, bytes]:
    """Returns first key and end (exclusive) of the range of all keys that begin with `prefix`.

    An end of one zero byte means no end; so it is for the empty prefix.
    """
    first = encode_key(prefix)
    stem = first.rstrip(b"\xff")  # 0xff has no next byte
    return first or b"\0", stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


def encode_key(key: str) -> bytes:
    """Returns the bytes of a key; the inverse of what keys are decoded by."""
    return key.encode(errors="surrogateescape")


def _decode_key(key: bytes) -> str:
    # Strangers may write any bytes; what is no UTF-8 is still one key, and nobody's name.
    return key.decode(errors="surrogateescape")


def key_value(message: kv.KeyValue) -> KeyValue:
    """Returns the value of etcd's message."""
    return KeyValue(
        key=_decode_key(message.key),
        value=message.value,
        create_revision=message.create_revision,
        mod_revision=message.mod_revision,
        lease=LeaseId(message.lease),
    )


def event(message: kv.Event) -> Event:
    """Returns the value of etcd's message."""
    item = key_value(message.kv)
    is_deleted = message.type == kv.Event.DELETE
    return Event(key=item.key, item=None if is_deleted else item, revision=item.mod_revision)


def compare(condition: Condition) -> rpc.Compare:
    """Returns etcd's message for a condition."""
    match condition:
        case Guard(key, revision):
            return rpc.Compare(target=rpc.Compare.CREATE, key=encode_key(key), create_revision=revision)
        case Unchanged(key, revision):
            return rpc.Compare(target=rpc.Compare.MOD, key=encode_key(key), mod_revision=revision)
        case _:
            assert_never(condition)


def request_op(operation: Operation) -> rpc.RequestOp:
    """Returns etcd's message for an operation."""
    match operation:
        case Put(key, value, lease):
            return rpc.RequestOp(request_put=rpc.PutRequest(key=encode_key(key), value=value, lease=lease))
        case Delete(key):
            return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=encode_key(key)))
        case Get(key):
            return rpc.RequestOp(request_range=rpc.RangeRequest(key=encode_key(key)))
        case _:
            assert_never(operation)


def outcome(message: rpc.TxnResponse) -> Outcome:
    """Returns the value of etcd's message."""
    ranges = (response.response_range for response in message.responses if response.HasField("response_range"))
    found = tuple(key_value(answer.kvs[0]) if answer.kvs else None for answer in ranges)
    return Outcome(succeeded=message.succeeded, revision=message.header.revision, found=found)
