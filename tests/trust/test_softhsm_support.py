"""Without SoftHSM the tests of tokens skip on a laptop and fail in CI, which is told to install it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import pytest
from tests.support.softhsm import soft_hsm
try:
    with soft_hsm(None): pass
except pytest.skip.Exception as said: print("skipped", said)
except pytest.fail.Exception as said: print("failed", said)
"""


@pytest.mark.parametrize(
    ("ci", "has_apt", "is_installable"), [("1", True, True), ("", True, False), ("1", False, False)]
)
def test_a_missing_softhsm_fails_only_where_it_could_be_installed(
    ci: str, has_apt: bool, is_installable: bool, tmp_path: Path
) -> None:
    said = "failed" if is_installable and os.geteuid() == 0 else "skipped"  # only root can install it
    if has_apt:
        (tmp_path / "apt-get").write_text("#!/bin/sh\n")
        (tmp_path / "apt-get").chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"CI": ci, "PATH": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"{said} SoftHSM is not installed")
