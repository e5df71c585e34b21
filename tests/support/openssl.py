"""The openssl program as an independent judge of certificates."""

import subprocess
from datetime import datetime
from pathlib import Path

from cryptography import x509

from trust.certificates import certificate_pem


def verify_strictly(
    directory: Path,
    certificate: x509.Certificate,
    *,
    root: x509.Certificate,
    between: tuple[x509.Certificate, ...] = (),
    purpose: str = "any",
    at: datetime,
) -> str:
    """Returns what `openssl verify -x509_strict` says: ends with OK, or has an error in it."""
    for name, content in (("leaf", (certificate,)), ("between", between), ("root", (root,))):
        (directory / f"{name}.pem").write_bytes(b"".join(map(certificate_pem, content)))
    untrusted = ["-untrusted", str(directory / "between.pem")] if between else []
    command = ["openssl", "verify", "-x509_strict", "-check_ss_sig", "-purpose", purpose, "-no-CAfile", "-no-CApath"]
    trusted = ["-attime", f"{at.timestamp():.0f}", "-CAfile", str(directory / "root.pem"), *untrusted]
    done = subprocess.run(
        [*command, *trusted, str(directory / "leaf.pem")], capture_output=True, text=True, check=False
    )
    return f"{done.stdout}{done.stderr}".strip()
