"""What a control plane is told, and the admin token that it makes or finds."""

import stat
from pathlib import Path

import pytest

from deploy.control.options import ControlOptions, admin_token
from federation.model import ClusterSettings, NetworkName
from trust.files import FileRefused
from trust.spiffe import ClusterName, MeshDomain


def options(data: Path) -> ControlOptions:
    return ControlOptions(
        settings=ClusterSettings(ClusterName("east"), MeshDomain("mesh.test"), NetworkName("east"), "eu"),
        replica="control-1",
        etcd=("http://127.0.0.1:2379",),
        data=data,
        manifests=(),
        address="127.0.0.1",
        control_addresses=("127.0.0.1",),
        ca_passphrase=b"correct horse",
    )


def test_the_admin_token_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    chosen = options(tmp_path / "data")
    token = admin_token(chosen)
    assert len(token) > 40
    assert admin_token(chosen) == token
    assert stat.S_IMODE(chosen.admin_token_file.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", [b"", b"\n", b"short\n", b"\xff" * 40, b"two words, of which none is secret"])
def test_a_token_file_that_would_open_the_api_is_refused_and_stays(tmp_path: Path, text: bytes) -> None:
    chosen = options(tmp_path / "data")
    admin_token(chosen)
    chosen.admin_token_file.write_bytes(text)
    with pytest.raises(FileRefused, match="holds no token"):
        admin_token(chosen)
    assert chosen.admin_token_file.read_bytes() == text


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_token_file_that_lies_open_is_refused(tmp_path: Path, mode: int) -> None:
    chosen = options(tmp_path / "data")
    admin_token(chosen)
    chosen.admin_token_file.chmod(mode)
    with pytest.raises(FileRefused, match="open to others"):
        admin_token(chosen)


def test_a_passphrase_is_not_printed(tmp_path: Path) -> None:
    assert "horse" not in repr(options(tmp_path))
