"""The metrics: convergence is a histogram, gauges are read at each scrape, two processes in one share nothing."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from federation.telemetry import Gauges, Telemetry


class Reading:
    """What the process looks like now."""

    def __init__(self) -> None:
        self.now = Gauges()

    def __call__(self) -> Gauges:
        return self.now


@pytest.fixture
def reading() -> Reading:
    return Reading()


@pytest.fixture
def telemetry(reading: Reading) -> Iterator[Telemetry]:
    made = Telemetry("east", "control-1", reading)
    yield made
    made.close()


def test_convergence_is_a_histogram_by_scope_and_never_negative(telemetry: Telemetry) -> None:
    telemetry.converged(timedelta(milliseconds=18), False)
    telemetry.converged(timedelta(milliseconds=-3), True)
    lines = telemetry.text().decode().splitlines()
    assert 'isthmus_convergence_seconds_bucket{le="0.01",scope="local"} 0.0' in lines
    assert 'isthmus_convergence_seconds_bucket{le="0.02",scope="local"} 1.0' in lines
    assert 'isthmus_convergence_seconds_sum{scope="remote"} 0.0' in lines


def test_gauges_are_read_at_each_scrape(telemetry: Telemetry, reading: Reading) -> None:
    reading.now = Gauges(revision=3, is_leading=True, peers={"live": 2, "stale": 0})
    first = telemetry.text().decode().splitlines()
    assert "isthmus_revision 3.0" in first
    assert "isthmus_leading 1.0" in first
    assert 'isthmus_peers{state="stale"} 0.0' in first
    reading.now = Gauges(revision=4)
    assert "isthmus_revision 4.0" in telemetry.text().decode().splitlines()


def test_what_happens_is_counted_by_type(telemetry: Telemetry) -> None:
    telemetry.pushed("Cluster")
    telemetry.pushed("Cluster")
    telemetry.refused("Listener")
    telemetry.crowded("sidecar")
    lines = telemetry.text().decode().splitlines()
    assert 'isthmus_pushes_total{type="Cluster"} 2.0' in lines
    assert 'isthmus_refusals_total{type="Listener"} 1.0' in lines
    assert 'isthmus_streams_crowded_total{role="sidecar"} 1.0' in lines


def test_trust_is_measured_with_bounded_labels(telemetry: Telemetry, reading: Reading) -> None:
    reading.now = Gauges(
        certificate_left={"leaf": 3600.0, "intermediate": 7e6, "root": -1.0},
        trust_sequence=4,
        trust_warnings=1,
        trust_proxies={"trusting": 3, "renewed": 2, "enforcing": 3, "waiting": 1},
        revocations={"root": 1, "cluster": 0},
    )
    telemetry.issued("sidecar")
    telemetry.issuance_refused("revoked")
    lines = telemetry.text().decode().splitlines()
    assert 'isthmus_certificate_left_seconds{kind="leaf"} 3600.0' in lines
    assert 'isthmus_certificate_left_seconds{kind="root"} -1.0' in lines
    assert 'isthmus_trust_proxies{state="waiting"} 1.0' in lines
    assert "isthmus_trust_sequence 4.0" in lines
    assert "isthmus_trust_warnings 1.0" in lines
    assert 'isthmus_revocations{origin="root"} 1.0' in lines
    assert 'isthmus_issued_total{role="sidecar"} 1.0' in lines
    assert 'isthmus_issuance_refused_total{reason="revoked"} 1.0' in lines


def test_two_of_them_in_one_process_share_nothing(telemetry: Telemetry) -> None:
    other = Telemetry("west", "control-1", Gauges)
    try:
        telemetry.pushed("Cluster")
        assert "isthmus_pushes_total{" not in other.text().decode()
    finally:
        other.close()
