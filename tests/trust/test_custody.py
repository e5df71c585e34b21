"""Keys lie in files that nobody else may read, are never overwritten, and are refused when they lie open."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.files import tree
from trust import files
from trust.certificates import key_pem, new_key
from trust.custody import Custody, CustodyRefused, FileCustody


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ca" / "key.pem"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_a_key_is_made_once_and_read_again(path: Path) -> None:
    custody: Custody = FileCustody(path)
    assert not custody.exists()
    made = custody.create()
    assert custody.exists()
    assert key_pem(FileCustody(path).load()) == key_pem(made)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_a_key_is_its_owners_alone_under_every_umask(path: Path, umask: int) -> None:
    path.parent.mkdir(mode=0o700)
    before = os.umask(umask)
    try:
        FileCustody(path).create()
    finally:
        os.umask(before)
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700


def test_the_directory_that_is_made_is_its_owners_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        FileCustody(path).create()
    finally:
        os.umask(before)
    assert mode(path.parent) == 0o700


def test_a_key_is_never_overwritten(path: Path) -> None:
    FileCustody(path).create()
    before = tree(path.parent)
    with pytest.raises(CustodyRefused, match="already"):
        FileCustody(path).create()
    assert tree(path.parent) == before


def test_of_many_that_make_a_key_at_once_one_succeeds(path: Path) -> None:
    made: list[ec.EllipticCurvePrivateKey] = []
    refused: list[CustodyRefused] = []
    start = threading.Barrier(8)

    def make() -> None:
        start.wait()
        try:
            made.append(FileCustody(path).create())
        except CustodyRefused as error:
            refused.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(refused) == 7
    assert key_pem(FileCustody(path).load()) == key_pem(made[0])
    assert [entry.name for entry in path.parent.iterdir()] == ["key.pem"]


def test_a_passphrase_encrypts_the_key(path: Path) -> None:
    made = FileCustody(path, b"correct horse").create()
    assert b"ENCRYPTED" in path.read_bytes()
    assert FileCustody(path).is_encrypted()
    assert key_pem(FileCustody(path, b"correct horse").load()) == key_pem(made)
    for wrong in (None, b"", b"battery staple"):
        with pytest.raises(CustodyRefused, match="passphrase") as refusal:
            FileCustody(path, wrong).load()
        assert refusal.value.hint


@pytest.mark.parametrize("passphrase", [b"", b"x" * 1024])
def test_a_passphrase_that_cannot_be_is_refused_before_anything_is_made(path: Path, passphrase: bytes) -> None:
    with pytest.raises(CustodyRefused, match="1 to 1023 bytes"):
        FileCustody(path, passphrase).create()
    assert not path.parent.exists()


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_key_that_lies_open_is_refused_with_the_way_to_close_it(path: Path, bits: int) -> None:
    FileCustody(path).create()
    path.chmod(bits)
    with pytest.raises(CustodyRefused, match=f"open to others .mode {bits:o}.") as refusal:
        FileCustody(path).load()
    assert f"chmod 600 {path}" in refusal.value.hint
    assert mode(path) == bits, "refused, not repaired"


@pytest.mark.parametrize("bits", [0o750, 0o705, 0o755])
def test_a_directory_that_lies_open_is_refused(path: Path, bits: int) -> None:
    FileCustody(path).create()
    path.parent.chmod(bits)
    with pytest.raises(CustodyRefused, match="open to others") as refusal:
        FileCustody(path).load()
    assert f"chmod 700 {path.parent}" in refusal.value.hint
    before = tree(path.parent)
    with pytest.raises(CustodyRefused, match="open to others"):
        FileCustody(path.with_name("other.pem")).create()
    assert tree(path.parent) == before


def link(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    elsewhere.write_bytes(key_pem(new_key()))
    elsewhere.chmod(0o600)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize("put", [link, os.mkfifo, Path.mkdir])
def test_what_is_no_regular_file_is_refused_at_once(path: Path, put: Callable[[Path], None]) -> None:
    path.parent.mkdir(mode=0o700)
    put(path)
    if not path.is_symlink():
        path.chmod(0o600)
    signal.alarm(10)  # a pipe in the file's place must not have us wait for its writer
    try:
        with pytest.raises(CustodyRefused):
            FileCustody(path).load()
        with pytest.raises(CustodyRefused, match="already"):
            FileCustody(path).create()
    finally:
        signal.alarm(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(path: Path) -> None:
    FileCustody(path).create()
    os.chown(path, 12345, -1)
    with pytest.raises(CustodyRefused, match="belongs to user 12345"):
        FileCustody(path).load()


@pytest.mark.parametrize("content", [b"", b"junk", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_broken_key_is_refused_by_its_path(path: Path, content: bytes) -> None:
    files.make_directory(path.parent)
    files.create(path, content)
    with pytest.raises(CustodyRefused, match=str(path)):
        FileCustody(path).load()


def test_no_key_is_refused_with_a_hint(path: Path) -> None:
    for ask in (FileCustody(path).load, FileCustody(path).is_encrypted):
        with pytest.raises(CustodyRefused) as refusal:
            ask()
        assert refusal.value.hint


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(path: Path) -> None:
    files.make_directory(path.parent)
    files.create(path, b"one")
    files.replace(path, b"two")
    assert files.read(path) == b"two"
    assert mode(path) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_file_too_large_to_be_ours_is_refused(path: Path) -> None:
    files.make_directory(path.parent)
    files.create(path, b"x" * (5 << 20))
    with pytest.raises(files.FileRefused, match="larger than"):
        files.read(path)


def test_a_lock_is_held_by_one_at_a_time(path: Path) -> None:
    files.make_directory(path.parent)
    inside: list[int] = []
    most: list[int] = []

    def enter() -> None:
        for _ in range(20):
            with files.locked(path.parent):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) == 80
