"""The audit trail says who was given or refused an identity, never a secret; no flood of refusals fills the disk."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.control.audit import Trail
from trust.audit import AuditEvent, AuditKind, RefusalLimit, encode, harmless
from trust.certificates import key_pem, new_key
from trust.files import FileRefused
from trust.join_tokens import new_token

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def refusal(
    reason: str = "unknown", *, proof: str = "", asked_by: str = "east/shop/cart-1", at: datetime = NOW
) -> AuditEvent:
    return AuditEvent(kind=AuditKind.REFUSED, at=at, subject="shop/cart", asked_by=asked_by, proof=proof, reason=reason)


def issued(serial: str) -> AuditEvent:
    return AuditEvent(
        kind=AuditKind.ISSUED, at=NOW, subject="shop/cart", serial=serial, expires=NOW + timedelta(days=1)
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    return directory


def lines(trail: Trail) -> list[AuditEvent]:
    return [msgspec.json.decode(line, type=AuditEvent) for line in trail.path.read_bytes().splitlines()]


texts = st.text() | st.sampled_from(
    ["\n", "\r\n", "\u2028", "\ud800", "x" * 100_000, new_token(), '"},{"kind":"issued']
)


@given(texts, texts, texts, texts)
def test_an_event_is_one_line_whatever_somebody_calls_himself(
    subject: str, asked_by: str, proof: str, reason: str
) -> None:
    event = AuditEvent(kind=AuditKind.REFUSED, at=NOW, subject=subject, asked_by=asked_by, proof=proof, reason=reason)
    line = encode(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) < 6 * 4 * 500
    assert msgspec.json.decode(line, type=AuditEvent).kind is AuditKind.REFUSED


@settings(max_examples=50)
@given(texts | st.from_regex(r"isthmus-[a-z0-9-]{10,50}"), texts)
def test_no_secret_reaches_the_trail(before: str, after: str) -> None:
    token, key = new_token(), key_pem(new_key()).decode()
    jwt = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJjYXJ0In0.c2lnbmF0dXJlLXdoaWNoLWlzLWxvbmc"
    request = "-----BEGIN CERTIFICATE REQUEST-----\nMIIBszCCAVoCAQAwADBZMBMGByqGSM49AgEGCCqGSM49AwEH"
    for secret in (token, key, jwt, request):
        line = encode(AuditEvent(kind=AuditKind.ISSUED, at=NOW, subject=before + secret, reason=f"{secret} {after}"))
        assert token not in line.decode()
        assert "eyJzdWIi" not in line.decode()
        assert "MIIB" not in line.decode()
        assert key.splitlines()[1] not in line.decode()


def test_what_is_no_secret_stays() -> None:
    for text in ("spiffe://east.mesh.test/ns/isthmus-system/sa/gateway", "join-token 3fa9c1d27b60", "a.b.c"):
        assert harmless(text) == text


def test_the_trail_is_a_file_of_its_owner_and_grows(data: Path) -> None:
    for serial in ("01", "02"):
        trail = Trail.open(data, "control-1")
        trail.note(issued(serial))
        trail.close()
        assert stat.S_IMODE(trail.path.stat().st_mode) == 0o600
    assert [event.serial for event in lines(trail)] == ["01", "02"]
    other = Trail.open(data, "../control/2")
    other.close()
    assert other.path.parent == data
    assert other.path != trail.path


def test_a_trail_is_not_written_through_a_link(data: Path) -> None:
    (data / "audit-control-1.jsonl").symlink_to(data / "elsewhere")
    with pytest.raises(FileRefused, match="cannot be written"):
        Trail.open(data, "control-1")


def test_a_disk_that_is_full_stops_nobody(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    trail = Trail(os.open("/dev/full", os.O_WRONLY), data / "audit.jsonl")
    for serial in ("01", "02"):
        trail.note(issued(serial))
    trail.close()
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "audit trail cannot be written"
    ]


def test_a_flood_of_refusals_is_counted_and_lost_by_nobody(data: Path) -> None:
    trail = Trail.open(data, "control-1")
    flood = 20_000
    with ThreadPoolExecutor(8) as threads:  # gRPC tells from its own threads
        for n in range(flood):
            threads.submit(trail.note, refusal(asked_by=f"stranger-{n}", at=NOW + n * timedelta(milliseconds=1)))
    trail.note(refusal("another node", proof="join-token 3fa9c1d27b60", at=NOW + 21 * SECOND))
    trail.close()
    found = lines(trail)
    assert sum(event.count for event in found) == flood + 1
    assert len(found) < 100
    assert [event.reason for event in found if event.proof] == ["another node"]  # not lost among them


def test_the_same_refusal_is_written_once_and_then_how_often() -> None:
    limit = RefusalLimit()
    assert limit.take(refusal()) == (refusal(),)
    for second in range(1, 600):
        assert limit.take(refusal(at=NOW + second * SECOND)) == ()
    counted, again = limit.take(refusal(at=NOW + 600 * SECOND))
    assert (counted.count, counted.at, counted.reason) == (599, NOW + 600 * SECOND, "unknown")
    assert (again.count, again.at) == (1, NOW + 600 * SECOND)
    assert limit.due(NOW + 1300 * SECOND) == ()  # it was not repeated


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "1"]), st.integers(-900, 900)), max_size=200))
def test_every_refusal_counts_once_also_when_the_clock_jumps(asked: list[tuple[str, str, int]]) -> None:
    limit, now, told = RefusalLimit(), NOW, 0
    for reason, proof, seconds in asked:
        now += seconds * SECOND
        told += sum(event.count for event in limit.take(refusal(reason, proof=proof, at=now)))
    assert told + sum(event.count for event in limit.flush(now)) == len(asked)
