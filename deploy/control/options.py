"""What a control plane is told when it starts."""

import contextlib
import secrets
from datetime import timedelta
from pathlib import Path

import msgspec

from federation.etcd import EtcdTls
from federation.model import ClusterSettings
from federation.xds.ads import MAX_AGE
from trust import files
from trust.issuance import LEAF_LIFETIME

SHORTEST_STREAM = timedelta(seconds=5)
"""Least of `stream_max_age`: proxies that come back all the time do nothing else."""

_TOKEN_BYTES = 32
_SHORTEST_TOKEN = 20  # characters; an empty file would open the API to everybody who sends an empty token


class ControlOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `isthmus control`.

    `data` holds the admin token and what makes the cluster a member; replicas of one cluster share it. `ca_keys` says
    where the CA keys are (`trust.custody.open_custody`), "" for files in `data`. ADS, federation and admin port are
    bound on `address`. `control_addresses` are all replicas: where the gateways send the peers' federation streams. A
    proxy authenticates anew after `stream_max_age`.
    """

    settings: ClusterSettings
    replica: str
    etcd: tuple[str, ...]
    data: Path
    manifests: tuple[Path, ...]
    address: str
    control_addresses: tuple[str, ...]
    etcd_tls: EtcdTls | None = None
    leaf_lifetime: timedelta = LEAF_LIFETIME
    ca_keys: str = ""
    ca_passphrase: bytes | None = None
    stream_max_age: timedelta = MAX_AGE

    def __repr__(self) -> str:
        """Leaves the passphrase out: what is printed ends in logs."""
        return f"ControlOptions({self.settings.name}, replica={self.replica}, data={self.data})"

    @property
    def admin_token_file(self) -> Path:
        """Where the admin token is kept (mode 0600); made at the first start."""
        return self.data / "admin-token"


def admin_token(options: ControlOptions) -> str:
    """Returns the admin token; makes it at the first start. Blocks; raises trust's FileRefused.

    Replicas that start together agree on one: the file is made whole or not at all, and the first one wins.
    """
    files.make_directory(options.data)
    with contextlib.suppress(files.FileExists):
        if not options.admin_token_file.exists():
            files.create(options.admin_token_file, (secrets.token_urlsafe(_TOKEN_BYTES) + "\n").encode())
    token = files.read(options.admin_token_file).decode(errors="replace").strip()
    if len(token) < _SHORTEST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise files.FileRefused(
            f"{options.admin_token_file} holds no token of {_SHORTEST_TOKEN} characters or more",
            "remove the file: a new token is made at the next start",
        )
    return token
