"""A token says nothing by itself; its record says for whom it is, and no token makes a system's identity."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.trust import EAST
from trust.attestation import AttestationRefused, Proof, TokenRole
from trust.join_tokens import (
    HOW,
    TokenRecord,
    TokenState,
    check,
    claim,
    decode_record,
    digest,
    encode_record,
    is_forgotten,
    make_record,
    new_token,
    parse_token_id,
    state,
    token_id,
)
from trust.spiffe import (
    CONTROL_ACCOUNT,
    GATEWAY_ACCOUNT,
    SYSTEM_NAMESPACE,
    Identity,
    Namespace,
    ServiceAccount,
    gateway_identity,
)

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
ID = "3fa9c1d27b60"
PROOF = Proof(
    namespace=Namespace("shop"), account=ServiceAccount("cart"), role=TokenRole.SIDECAR, how=HOW, reference=ID
)
labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
moments = st.datetimes(timezones=st.just(UTC))


def test_tokens_differ_and_so_do_their_digests() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len({digest(token) for token in tokens}) == len(tokens) == 100


@given(st.text() | st.just(new_token() + "\n") | st.just(" " + new_token()) | st.just(new_token()[:-1]))
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(AttestationRefused) as refusal:
        digest(text)
    assert len(text) < 8 or text not in refusal.value.message + refusal.value.hint


@given(labels, labels, st.none() | st.timedeltas(min_value=timedelta(seconds=1), max_value=timedelta(days=999)))
def test_a_record_is_printed_and_read_in_one_way(namespace: str, account: str, lifetime: timedelta | None) -> None:
    record = make_record(namespace, account, role=TokenRole.SIDECAR, now=NOW, lifetime=lifetime)
    assert decode_record(encode_record(record)) == record
    assert check(record, now=NOW, reference=ID).identity(EAST) == Identity(EAST, record.namespace, record.account)


def test_a_record_of_a_later_version_is_read() -> None:
    record = make_record("shop", "cart", role=TokenRole.SIDECAR, now=NOW)
    later = msgspec.json.encode({**msgspec.to_builtins(record), "audience": "later"})
    assert decode_record(later) == record


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"namespace":"a","account":"b","role":"root","created":"2030-01-01T00:00:00Z"}',
        b'{"namespace":"a","account":"b","role":"sidecar","created":"2030-01-01T00:00:00"}',
        b"[" * 100_000,
    ],
)
def test_a_broken_record_is_refused(value: bytes) -> None:
    with pytest.raises(AttestationRefused, match="broken"):
        decode_record(value)


def test_an_unknown_token_is_refused() -> None:
    with pytest.raises(AttestationRefused, match="unknown") as refusal:
        check(None, now=NOW, reference=ID)
    assert "isthmus token create" in refusal.value.hint


@given(moments, st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=2)))
def test_a_token_is_good_until_it_expires(created: datetime, later: timedelta) -> None:
    if created.year > 9000:
        return
    record = make_record("shop", "cart", role=TokenRole.SIDECAR, now=created, lifetime=timedelta(days=1))
    if later < timedelta(days=1):
        assert check(record, now=created + later, reference=ID) == PROOF
    else:
        with pytest.raises(AttestationRefused, match="expired"):
            check(record, now=created + later, reference=ID)


@pytest.mark.parametrize(
    ("namespace", "account", "role"),
    [
        (SYSTEM_NAMESPACE, CONTROL_ACCOUNT, TokenRole.SIDECAR),
        (SYSTEM_NAMESPACE, GATEWAY_ACCOUNT, TokenRole.SIDECAR),
        (SYSTEM_NAMESPACE, CONTROL_ACCOUNT, TokenRole.GATEWAY),
        ("shop", GATEWAY_ACCOUNT, TokenRole.GATEWAY),
        ("Shop", "cart", TokenRole.SIDECAR),
        ("shop.a", "cart", TokenRole.SIDECAR),
        ("shop", "", TokenRole.SIDECAR),
        ("shop", "cart/../..", TokenRole.SIDECAR),
    ],
)
def test_no_token_makes_a_name_that_its_bearer_may_not_have(namespace: str, account: str, role: TokenRole) -> None:
    with pytest.raises(AttestationRefused):
        make_record(namespace, account, role=role, now=NOW)
    written_by_hand = TokenRecord(
        namespace=Namespace(namespace), account=ServiceAccount(account), role=role, created=NOW
    )
    with pytest.raises(AttestationRefused):
        check(written_by_hand, now=NOW, reference=ID)


def test_the_bearer_of_a_gateways_token_is_a_gateway_of_this_cluster() -> None:
    record = make_record(SYSTEM_NAMESPACE, GATEWAY_ACCOUNT, role=TokenRole.GATEWAY, now=NOW)
    assert check(record, now=NOW, reference=ID).identity(EAST) == gateway_identity(EAST)


@pytest.mark.parametrize("lifetime", [timedelta(0), timedelta(seconds=-1), timedelta.max])
def test_a_token_lives_for_a_time_from_now_on(lifetime: timedelta) -> None:
    with pytest.raises(AttestationRefused, match="cannot live"):
        make_record("shop", "cart", role=TokenRole.SIDECAR, now=NOW, lifetime=lifetime)


def test_the_id_of_a_token_says_nothing_of_it() -> None:
    token = new_token()
    assert token_id(digest(token)) == digest(token)[:12]
    assert parse_token_id(token_id(digest(token)))
    for text in (token, "", "3FA9C1D27B60", "3fa9c1d27b6", "../../leader"):
        with pytest.raises(AttestationRefused) as refusal:
            parse_token_id(text)
        assert not text or text not in refusal.value.message + refusal.value.hint


@given(st.lists(st.sampled_from(["east/shop/cart-1", "east/shop/cart-2", "east/shop/cart-3"]), min_size=1))
def test_a_token_that_is_good_once_admits_the_first_node_and_no_other(nodes: list[str]) -> None:
    record = make_record("shop", "cart", role=TokenRole.SIDECAR, now=NOW, once=True)
    for node in nodes:
        if node == nodes[0]:
            record = claim(record, node, now=NOW, reference=ID)
            assert (record.claimed_by, record.claimed_at) == (nodes[0], NOW)
        else:
            with pytest.raises(AttestationRefused, match="another one has used it") as refusal:
                claim(record, node, now=NOW, reference=ID)
            assert nodes[0] not in refusal.value.message + refusal.value.hint  # a thief learns no name
            assert nodes[0] in refusal.value.detail
    assert state(record, now=NOW) is TokenState.USED


@given(st.lists(st.timedeltas(min_value=timedelta(0), max_value=timedelta(minutes=20)), max_size=30))
def test_the_last_use_is_written_once_an_hour(pauses: list[timedelta]) -> None:
    record, now, written = make_record("shop", "cart", role=TokenRole.SIDECAR, now=NOW), NOW, 0
    for pause in pauses:
        now += pause
        after = claim(record, "east/shop/cart-1", now=now, reference=ID)
        written += after is not record
        record = after
        assert record.last_used is not None
        assert timedelta(0) <= now - record.last_used < timedelta(hours=1)
    assert written <= 1 + (now - NOW) / timedelta(hours=1)


def test_a_record_is_kept_for_a_day_after_its_token_expired() -> None:
    record = make_record("shop", "cart", role=TokenRole.SIDECAR, now=NOW, lifetime=timedelta(hours=1))
    assert state(record, now=NOW) is TokenState.GOOD
    assert state(record, now=NOW + timedelta(hours=1)) is TokenState.EXPIRED
    assert not is_forgotten(record, now=NOW + timedelta(hours=24))
    assert is_forgotten(record, now=NOW + timedelta(hours=25))
    assert not is_forgotten(make_record("shop", "cart", role=TokenRole.SIDECAR, now=NOW), now=NOW.replace(year=9000))
    assert state(None, now=NOW) is TokenState.BROKEN
