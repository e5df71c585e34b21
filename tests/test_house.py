"""What the house holds itself to, and no other tool says."""

import re
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
ROOMS = ("deploy", "federation", "gateway", "sidecar", "trust")
GENERATED = HOUSE / "federation" / "etcd" / "api"
LONGEST = 400  # lines


@pytest.mark.parametrize("room", ROOMS)
def test_an_import_name_is_of_our_distribution_alone(room: str) -> None:
    """They are so plain that others could have them too."""
    assert set(packages_distributions()[room]) == {"isthmus"}


def test_no_module_is_too_long_to_read() -> None:
    modules = [path for room in (*ROOMS, "tests") for path in (HOUSE / room).rglob("*.py")]
    assert modules
    lengths = {path: len(path.read_text().splitlines()) for path in modules if GENERATED not in path.parents}
    assert {str(path.relative_to(HOUSE)): lines for path, lines in lengths.items() if lines > LONGEST} == {}


@pytest.mark.parametrize(
    "room",
    [
        *("trust", "federation", "federation/etcd", "federation/peering", "federation/sources", "federation/xds"),
        *("sidecar", "gateway", "deploy", "deploy/cli", "deploy/control", "deploy/lab"),
    ],
)
def test_the_first_lines_of_a_room_name_all_of_its_modules(room: str) -> None:
    folder = HOUSE / room
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    named = set(re.findall(r"\w+", (folder / "__init__.py").read_text()))
    assert modules - named == set(), "what is not named there is not found"
