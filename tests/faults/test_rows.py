"""What a row shows, and how it comes into the table: without a mesh."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.lab.load import Attempt
from tests.faults.standstill import StoodStill, check_counted, counted, repeated

_ROOT = Path(__file__).parents[2]
_TESTS = """
from functools import partial

from tests.faults.table import Outcome
from tests.faults.terminal import record


def test_row(record_property):
    for fault, held in (("etcd away", False), ("etcd back", True)):
        record(record_property, Outcome(fault, 9, 0, 9, 0, 0, "status", 4.2, None, "a note", held))
    assert record_property is None
"""


def request(due: float, *, late: float = 0.0, took: float = 0.01, failure: str = "") -> Attempt:
    return Attempt("GET", due, due + late, due + late + took, "", failure)


def test_a_request_says_nothing_when_it_was_sent_or_given_up_late_by_this_process() -> None:
    good = [request(0), request(1, late=0.9), request(2, took=10.5, failure="no answer within 10 s")]
    assert counted([*good, request(3, late=1.1), request(4, took=11.1, failure="no answer within 10 s")]) == good


def test_a_row_shows_nothing_when_more_than_one_request_in_twenty_says_nothing() -> None:
    punctual = [request(number) for number in range(95)]
    check_counted([*punctual, *(request(200, late=2) for _ in range(5))])
    with pytest.raises(StoodStill, match="6 of 101 requests"):
        check_counted([*punctual, *(request(200, late=2) for _ in range(6))])


@pytest.mark.parametrize(
    ("ends", "runs"),
    [([None], 1), ([StoodStill(), None], 2), ([StoodStill(), StoodStill()], 2), ([AssertionError()], 1)],
)
async def test_a_row_is_repeated_once_when_the_machine_stood_still(ends: list[Exception | None], runs: int) -> None:
    left = iter(ends)
    ran = 0

    @repeated
    async def row(*, mesh: str) -> None:
        nonlocal ran
        ran += 1
        assert mesh == "mesh"
        if (end := next(left)) is not None:
            raise end

    if ends[-1] is None:
        await row(mesh="mesh")
    else:
        with pytest.raises(type(ends[-1])):
            await row(mesh="mesh")
    assert ran == runs


@pytest.mark.parametrize("workers", ["0", "1"])
def test_the_table_is_printed_wherever_the_rows_ran(tmp_path: Path, workers: str) -> None:
    file = tmp_path / "test_generated.py"
    file.write_text(_TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.faults.terminal", "--numprocesses", workers, str(file)]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), "-c", str(_ROOT / "pyproject.toml")],
        cwd=_ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("etcd")]
    assert lines == [
        ["etcd", "away", "9", "0", "9", "0", "0", "4.2", "s", "-", "NO", "status;", "a", "note"],
        ["etcd", "back", "9", "0", "9", "0", "0", "4.2", "s", "-", "yes", "status;", "a", "note"],
    ], done.stdout + done.stderr
    assert "1 failed" in done.stdout
