"""Where CA keys are is said once, on the command line: `trust init --keys`, `control --ca-keys`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.control import DOMAIN, Control, isthmus, start_control, until, write_contexts
from tests.support.softhsm import SoftHsm, SoftToken, soft_hsm
from trust.custody import open_custody


@pytest.fixture(scope="module")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftHsm]:
    with soft_hsm(tmp_path_factory.mktemp("softhsm")) as made:
        yield made


@pytest.fixture
def token(hsm: SoftHsm) -> SoftToken:
    return hsm.token()


def files_with(directory: Path, secret: bytes) -> list[Path]:
    return [file for file in directory.rglob("*") if file.is_file() and secret in file.read_bytes()]


async def test_a_root_and_a_control_plane_keep_their_keys_in_a_token(
    token: SoftToken, hsm: SoftHsm, tmp_path: Path
) -> None:
    root, uri = tmp_path / "root", token.uri(";object=east")
    ran = await isthmus("trust", "init", "--domain", DOMAIN, "--out", str(root), "--keys", token.uri())
    assert ran.code == 0, ran.stderr
    async with start_control(tmp_path / "east", "east", "--ca-keys", uri, environment=hsm.environment) as control:
        contexts = write_contexts(tmp_path / "contexts.json", control)
        ran = await isthmus("join", "east", "--root", str(root), contexts=contexts)
        assert ran.code == 0, ran.stderr
        await until_ready(control)
        await control.kill()
        await control.start()
        await until_ready(control)
        ran = await isthmus("trust", "show", "--root", str(root))
        assert ran.code == 0, ran.stderr
        assert "east" in ran.stdout
        log = control.log
    assert open_custody(token.uri(), directory=tmp_path).names() == ("east-ca-1", "root-1")
    kept = [*files_with(root, b"PRIVATE KEY"), *files_with(tmp_path / "east" / "control", b"PRIVATE KEY")]
    assert kept == []
    assert files_with(tmp_path / "east", token.pin.encode()) == files_with(root, token.pin.encode()) == []
    assert token.pin not in log


async def until_ready(control: Control) -> None:
    async with control.client() as client:
        await until(client.status, lambda status: status.is_ready)


async def test_a_pin_in_a_file_opens_the_root_when_the_uri_names_none(token: SoftToken, tmp_path: Path) -> None:
    root, pin = tmp_path / "root", ("--passphrase-file", str(token.pin_file))
    command = ("trust", "init", "--domain", DOMAIN, "--out", str(root), "--keys", token.uri(pin=False))
    ran = await isthmus(*command)
    assert ran.code == 1
    assert "--passphrase-file" in ran.stderr
    assert not root.exists()
    ran = await isthmus(*command, *pin)
    assert ran.code == 0, ran.stderr
    assert (await isthmus("trust", "show", "--root", str(root))).code == 1
    ran = await isthmus("trust", "show", "--root", str(root), *pin)
    assert ran.code == 0, ran.stderr
    assert token.pin not in ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("pkcs11:token=a?module-path=/nowhere.so&pin-value=4711", "does not belong into a URI"),
        ("pkcs11:token=a?module-path=/nowhere.so&pin-source=file:/nowhere", "does not start"),
        ("vault:4711", "pkcs11:"),
    ],
)
async def test_keys_that_cannot_be_reached_are_refused_and_leave_room_for_others(
    keys: str, said: str, tmp_path: Path
) -> None:
    command = ("trust", "init", "--domain", DOMAIN, "--out", str(tmp_path / "root"))
    ran = await isthmus(*command, "--keys", keys)
    assert ran.code == 1
    assert said in ran.stderr
    assert "hint: " in ran.stderr
    assert "4711" not in ran.stderr
    assert "Traceback" not in ran.stderr
    assert files_with(tmp_path, b"4711") == []
    assert (await isthmus(*command)).code == 0
