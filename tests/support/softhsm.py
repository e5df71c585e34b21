"""A PKCS#11 token for tests: SoftHSM in directories of its own, nothing of the machine's is touched."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.installed import missing

_MODULES = (
    Path("/usr/lib/softhsm/libsofthsm2.so"),
    Path("/usr/lib64/softhsm/libsofthsm2.so"),
    Path("/usr/local/lib/softhsm/libsofthsm2.so"),
    Path("/opt/homebrew/lib/softhsm/libsofthsm2.so"),
)


@dataclass(frozen=True)
class SoftToken:
    """A token: its label is also the name of its directory's parent."""

    label: str
    pin: str
    pin_file: Path
    directory: Path
    """Where SoftHSM keeps all tokens of the run."""
    module: Path

    def uri(self, extra: str = "", *, pin: bool = True) -> str:
        """Names the token; `extra` is more of the path part, such as ;object=east."""
        source = f"&pin-source=file:{self.pin_file}" if pin else ""
        return f"pkcs11:token={self.label}{extra}?module-path={self.module}{source}"


class SoftHsm:
    """Makes tokens in one directory; the module of this process looks there."""

    def __init__(self, module: Path, directory: Path) -> None:
        self.module = module
        self.tokens = directory / "tokens"
        self.tokens.mkdir(mode=0o700)
        self._directory = directory
        self._settings = directory / "softhsm2.conf"
        self._settings.write_text(
            f"directories.tokendir = {self.tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
        )

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to see the tokens."""
        return {"SOFTHSM2_CONF": str(self._settings)}

    def token(self) -> SoftToken:
        """Makes a token of a new label and a new PIN."""
        label, pin = f"token-{secrets.token_hex(4)}", secrets.token_hex(6)
        subprocess.run(
            [
                "softhsm2-util",
                "--init-token",
                "--free",
                "--label",
                label,
                "--so-pin",
                secrets.token_hex(8),
                "--pin",
                pin,
            ],
            check=True,
            capture_output=True,
            env={**os.environ, **self.environment},
        )
        pin_file = self._directory / f"{label}.pin"
        pin_file.write_text(f"{pin}\n")
        pin_file.chmod(0o600)
        return SoftToken(label, pin, pin_file, self.tokens, self.module)


@contextmanager
def soft_hsm(directory: Path) -> Iterator[SoftHsm]:
    """Gives a SoftHSM to this process; skips where there is none, and fails where CI should have installed it."""
    module = next((module for module in _MODULES if module.exists()), None)
    if module is None or shutil.which("softhsm2-util") is None:
        missing("SoftHSM is not installed: apt-get install softhsm2 (Debian), brew install softhsm (macOS)")
    made = SoftHsm(module, directory)
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ.update(made.environment)  # the module reads it when it starts
    try:
        yield made
    finally:
        if before is None:
            del os.environ["SOFTHSM2_CONF"]
        else:
            os.environ["SOFTHSM2_CONF"] = before
