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
from trust.custody import Custody, CustodyRefused, FileCustody, needs_passphrase, open_custody, remember, remembered


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the key `ca-1` of `ring` lies."""
    return tmp_path / "data" / "ca-1-key.pem"


def ring(path: Path, passphrase: bytes | None = None) -> FileCustody:
    return FileCustody(path.parent, passphrase)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_a_key_is_made_once_and_read_again(path: Path) -> None:
    custody: Custody = ring(path)
    assert custody.names() == ()
    made = custody.create("ca-1")
    assert custody.names() == ("ca-1",)
    assert key_pem(ring(path).load("ca-1")) == key_pem(made)


def test_a_ring_holds_many_keys_and_each_is_its_own(path: Path) -> None:
    made = {name: ring(path).create(name) for name in ("root-2", "root-1", "ca-10")}
    assert ring(path).names() == ("ca-10", "root-1", "root-2")
    for name, key in made.items():
        assert ring(path).load(name).public_key() == key.public_key()
    assert len({key_pem(key) for key in made.values()}) == 3


def test_a_destroyed_key_is_gone_and_the_others_stay(path: Path) -> None:
    custody = ring(path)
    kept = custody.create("ca-1")
    custody.create("ca-2")
    custody.destroy("ca-2")
    assert custody.names() == ("ca-1",)
    with pytest.raises(CustodyRefused, match="no key"):
        custody.load("ca-2")
    custody.destroy("ca-2")  # an interrupted step is done again
    assert custody.load("ca-1").public_key() == kept.public_key()
    assert custody.create("ca-2").public_key() != kept.public_key(), "the name is free again"


def test_a_destroyed_key_has_no_second_name_that_a_crash_left(path: Path) -> None:
    """A process that is killed just after it made a key leaves the name under which it wrote it first."""
    custody = ring(path)
    custody.create("ca-1")
    custody.create("ca-11")
    os.link(path, path.with_name(f".{path.name}.0123456789abcdef"))
    custody.destroy("ca-1")
    assert [one.name for one in path.parent.iterdir()] == ["ca-11-key.pem"]


def test_to_destroy_a_key_in_no_directory_is_no_error(path: Path) -> None:
    ring(path).destroy("ca-1")
    assert not path.parent.exists()


def test_what_is_no_key_is_not_named(path: Path) -> None:
    ring(path).create("ca-1")
    for other in ("grant.json", ".ca-2-key.pem.0123", ".ca-3-key.pem", "-key.pem", "CA-key.pem"):
        (path.parent / other).write_bytes(b"")
    assert ring(path).names() == ("ca-1",)


@pytest.mark.parametrize("name", ["", "../ca", "a/b", ".", "CA", "ca-", "-ca", "x" * 64, "ca\n", "ca-1\0", "cä"])
def test_a_name_that_is_no_name_never_reaches_the_disk(path: Path, name: str) -> None:
    for ask in (ring(path).create, ring(path).load, ring(path).destroy, ring(path).is_encrypted):
        with pytest.raises(CustodyRefused, match="not a name for a key"):
            ask(name)
    assert not path.parent.exists()


def test_where_the_keys_are_is_remembered_beside_them(tmp_path: Path) -> None:
    assert remembered(tmp_path / "absent") == ""
    files.make_directory(tmp_path / "root")
    assert remembered(tmp_path / "root") == ""
    remember(tmp_path / "root", "pkcs11:token=isthmus")
    assert remembered(tmp_path / "root") == "pkcs11:token=isthmus"
    remember(tmp_path / "root", "")
    assert remembered(tmp_path / "root") == ""
    assert mode(tmp_path / "root" / "keys-in") == 0o600


def test_files_are_opened_by_no_name_at_all(path: Path) -> None:
    made = open_custody("", directory=path.parent, passphrase=b"correct horse").create("ca-1")
    assert path.exists()
    again = open_custody("", directory=path.parent, passphrase=b"correct horse")
    assert again.where == ""
    assert again.load("ca-1").public_key() == made.public_key()
    assert "horse" not in repr(again)
    with pytest.raises(CustodyRefused, match="no place for keys") as refusal:
        open_custody("vault:secret", directory=path.parent)
    assert "pkcs11:" in refusal.value.hint


def test_a_passphrase_is_asked_for_when_a_key_is_encrypted(path: Path) -> None:
    assert not needs_passphrase("", directory=path.parent)
    ring(path).create("root-1")
    assert not needs_passphrase("", directory=path.parent)
    ring(path, b"correct horse").create("root-2")
    assert needs_passphrase("", directory=path.parent)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_a_key_is_its_owners_alone_under_every_umask(path: Path, umask: int) -> None:
    path.parent.mkdir(mode=0o700)
    before = os.umask(umask)
    try:
        ring(path).create("ca-1")
    finally:
        os.umask(before)
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700


def test_the_directory_that_is_made_is_its_owners_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        ring(path).create("ca-1")
    finally:
        os.umask(before)
    assert mode(path.parent) == 0o700


def test_a_key_is_never_overwritten(path: Path) -> None:
    ring(path).create("ca-1")
    before = tree(path.parent)
    with pytest.raises(CustodyRefused, match="already"):
        ring(path).create("ca-1")
    assert tree(path.parent) == before


def test_of_many_that_make_a_key_at_once_one_succeeds(path: Path) -> None:
    made: list[ec.EllipticCurvePrivateKey] = []
    refused: list[CustodyRefused] = []
    start = threading.Barrier(8)

    def make() -> None:
        start.wait()
        try:
            made.append(ring(path).create("ca-1"))
        except CustodyRefused as error:
            refused.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(refused) == 7
    assert key_pem(ring(path).load("ca-1")) == key_pem(made[0])
    assert [entry.name for entry in path.parent.iterdir()] == ["ca-1-key.pem"]


def test_a_passphrase_encrypts_the_key(path: Path) -> None:
    made = ring(path, b"correct horse").create("ca-1")
    assert b"ENCRYPTED" in path.read_bytes()
    assert ring(path).is_encrypted("ca-1")
    assert key_pem(ring(path, b"correct horse").load("ca-1")) == key_pem(made)
    for wrong in (None, b"", b"battery staple"):
        with pytest.raises(CustodyRefused, match="passphrase") as refusal:
            ring(path, wrong).load("ca-1")
        assert refusal.value.hint


@pytest.mark.parametrize("passphrase", [b"", b"x" * 1024])
def test_a_passphrase_that_cannot_be_is_refused_before_anything_is_made(path: Path, passphrase: bytes) -> None:
    with pytest.raises(CustodyRefused, match="1 to 1023 bytes"):
        ring(path, passphrase).create("ca-1")
    assert not path.parent.exists()


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_key_that_lies_open_is_refused_with_the_way_to_close_it(path: Path, bits: int) -> None:
    ring(path).create("ca-1")
    path.chmod(bits)
    with pytest.raises(CustodyRefused, match=f"open to others .mode {bits:o}.") as refusal:
        ring(path).load("ca-1")
    assert f"chmod 600 {path}" in refusal.value.hint
    assert mode(path) == bits, "refused, not repaired"


@pytest.mark.parametrize("bits", [0o750, 0o705, 0o755])
def test_a_directory_that_lies_open_is_refused(path: Path, bits: int) -> None:
    ring(path).create("ca-1")
    path.parent.chmod(bits)
    with pytest.raises(CustodyRefused, match="open to others") as refusal:
        ring(path).load("ca-1")
    assert f"chmod 700 {path.parent}" in refusal.value.hint
    before = tree(path.parent)
    with pytest.raises(CustodyRefused, match="open to others"):
        ring(path).create("other")
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
            ring(path).load("ca-1")
        with pytest.raises(CustodyRefused, match="already"):
            ring(path).create("ca-1")
    finally:
        signal.alarm(0)


def test_a_key_of_another_user_is_refused(path: Path) -> None:
    if os.geteuid() == 0:
        ring(path).create("ca-1")
        os.chown(path, 12345, -1)
        theirs, owner = ring(path), 12345
    else:  # who may give no file away looks into a directory of root
        theirs, owner = FileCustody(Path("/")), 0
    with pytest.raises(CustodyRefused, match=f"belongs to user {owner}"):
        theirs.load("ca-1")


@pytest.mark.parametrize("content", [b"", b"junk", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_broken_key_is_refused_by_its_path(path: Path, content: bytes) -> None:
    files.make_directory(path.parent)
    files.create(path, content)
    with pytest.raises(CustodyRefused, match=str(path)):
        ring(path).load("ca-1")


def test_no_key_is_refused_with_a_hint(path: Path) -> None:
    for ask in (ring(path).load, ring(path).is_encrypted):
        with pytest.raises(CustodyRefused) as refusal:
            ask("ca-1")
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
