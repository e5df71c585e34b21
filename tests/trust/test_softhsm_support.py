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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can install SoftHSM, and so only root fails without it")
@pytest.mark.parametrize(
    ("ci", "has_apt", "said"), [("1", True, "failed"), ("", True, "skipped"), ("1", False, "skipped")]
)
def test_a_missing_softhsm_fails_only_where_it_could_be_installed(
    ci: str, has_apt: bool, said: str, tmp_path: Path
) -> None:
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
