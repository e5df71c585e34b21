"""A token says nothing by itself; its record says for whom it is, and no token makes a system's identity."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.trust import EAST
from trust.attestation import (
    AttestationRefused,
    TokenRecord,
    TokenRole,
    check,
    decode_record,
    digest,
    encode_record,
    identity_of,
    make_record,
    new_token,
)
from trust.spiffe import CONTROL_ACCOUNT, GATEWAY_ACCOUNT, SYSTEM_NAMESPACE, Namespace, ServiceAccount, gateway_identity

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
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
    assert check(record, now=NOW) == record


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
        check(None, now=NOW)
    assert "isthmus token create" in refusal.value.hint


@given(moments, st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=2)))
def test_a_token_is_good_until_it_expires(created: datetime, later: timedelta) -> None:
    if created.year > 9000:
        return
    record = make_record("shop", "cart", role=TokenRole.SIDECAR, now=created, lifetime=timedelta(days=1))
    if later < timedelta(days=1):
        assert check(record, now=created + later) == record
    else:
        with pytest.raises(AttestationRefused, match="expired"):
            check(record, now=created + later)


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
        check(written_by_hand, now=NOW)


def test_the_bearer_of_a_gateways_token_is_a_gateway_of_this_cluster() -> None:
    record = make_record(SYSTEM_NAMESPACE, GATEWAY_ACCOUNT, role=TokenRole.GATEWAY, now=NOW)
    assert identity_of(record, EAST) == gateway_identity(EAST)


@pytest.mark.parametrize("lifetime", [timedelta(0), timedelta(seconds=-1)])
def test_a_token_lives_for_a_time_from_now_on(lifetime: timedelta) -> None:
    with pytest.raises(AttestationRefused, match="cannot live"):
        make_record("shop", "cart", role=TokenRole.SIDECAR, now=NOW, lifetime=lifetime)
