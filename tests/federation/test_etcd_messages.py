"""The pure part of etcd's client: key ranges, messages, and when a position still means something."""

from hypothesis import given
from hypothesis import strategies as st

from federation.etcd.api import etcd_kv_pb2 as kv
from federation.etcd.api import etcd_rpc_pb2 as rpc
from federation.etcd.messages import Event, KeyValue, LeaseId, Position, encode_key, event, key_value, range_of

KEYS = st.text(alphabet=st.sampled_from("a/é~\x7f\U0010ffff"), max_size=4)
BYTES = st.binary(min_size=1, max_size=3) | st.lists(st.sampled_from([0, 254, 255]), min_size=1, max_size=3).map(bytes)


def is_in_range(key: bytes, first: bytes, end: bytes) -> bool:
    return key >= first and (end == b"\0" or key < end)


@given(prefix=BYTES, key=BYTES)
def test_a_range_holds_exactly_the_keys_that_begin_with_the_prefix(prefix: bytes, key: bytes) -> None:
    first, end = range_of(prefix.decode(errors="surrogateescape"))
    assert is_in_range(key, first, end) == key.startswith(prefix)


@given(key=BYTES)
def test_the_empty_prefix_is_every_key(key: bytes) -> None:
    assert is_in_range(key, *range_of("")) or key == b""


@given(raw=BYTES)
def test_any_key_that_a_stranger_wrote_can_be_decoded_and_written_back(raw: bytes) -> None:
    assert encode_key(key_value(kv.KeyValue(key=raw)).key) == raw


@given(key=KEYS, value=st.binary(max_size=4), revision=st.integers(1, 2**62), lease=st.integers(0, 2**62))
def test_an_event_of_a_write_carries_the_key_as_it_is_now(key: str, value: bytes, revision: int, lease: int) -> None:
    message = kv.Event(
        kv=kv.KeyValue(key=key.encode(), value=value, create_revision=1, mod_revision=revision, lease=lease)
    )
    item = KeyValue(key, value, create_revision=1, mod_revision=revision, lease=LeaseId(lease))
    assert event(message) == Event(key, item, revision)


def test_an_event_of_a_deletion_carries_nothing_but_the_key() -> None:
    message = kv.Event(type=kv.Event.DELETE, kv=kv.KeyValue(key=b"/a", mod_revision=7))
    assert event(message) == Event("/a", None, 7)


ITEM = KeyValue("/a", b"x", create_revision=3, mod_revision=5)
HERE = Position.at(rpc.ResponseHeader(cluster_id=1, raft_term=2, revision=9), [ITEM])


def test_the_anchor_of_a_listing_is_its_newest_key() -> None:
    older = KeyValue("/b", b"y", create_revision=4, mod_revision=4)
    assert Position.at(rpc.ResponseHeader(), [older, ITEM, older]).anchor == ITEM
    assert Position.at(rpc.ResponseHeader(), []).anchor is None


def test_a_position_moves_with_the_events_and_keeps_its_anchor_over_deletions() -> None:
    written = KeyValue("/c", b"z", create_revision=10, mod_revision=10)
    moved = HERE.after(Event("/c", written, 10))
    assert (moved.revision, moved.anchor) == (10, written)
    gone = moved.after(Event("/a", None, 11))
    assert (gone.revision, gone.anchor) == (11, written)


def test_a_position_has_no_meaning_in_another_life_of_etcd() -> None:
    assert HERE.is_before(rpc.ResponseHeader(cluster_id=1, raft_term=2, revision=9))
    assert HERE.is_before(rpc.ResponseHeader(cluster_id=1, raft_term=2, revision=12))
    assert not HERE.is_before(rpc.ResponseHeader(cluster_id=1, raft_term=2, revision=8))
    assert not HERE.is_before(rpc.ResponseHeader(cluster_id=1, raft_term=3, revision=12))
    assert not HERE.is_before(rpc.ResponseHeader(cluster_id=4, raft_term=2, revision=12))
