"""What some tests need beside Python, and pip does not bring: SoftHSM, libfaketime, a C compiler."""

import os
import shutil
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skips the test; fails it where `.ci/run` should have installed what is missing."""
    if os.environ.get("CI") and shutil.which("apt-get") and os.geteuid() == 0:
        pytest.fail(f"{reason}; .ci/run installs it")
    pytest.skip(reason)
