"""Files that only their owner may read, written whole or not at all: what the authorities keep on disk.

Every file has mode 0600 in a directory of mode 0700 and belongs to whom we run as. One that lies open to others is
refused, not repaired: somebody may have read or changed it already.
"""

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from trust.refusals import Refusal

_LARGEST = 1 << 22  # bytes; a key has 250 of them, a ledger of a thousand members a few hundred thousand
_RANDOM_DIGITS = 16  # hex, in the name under which a file is written first
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class FileRefused(Refusal):
    """A file or directory that is missing, in the way, open to others, or cannot be read or written."""


class FileMissing(FileRefused):
    """There is no such file."""


class FileExists(FileRefused):
    """There is such a file already."""


def make_directory(directory: Path) -> None:
    """Makes a directory of mode 0700 unless it is there; raises FileRefused when it is there and open to others."""
    with _translated(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_directory(directory)


def check_directory(directory: Path) -> None:
    """Checks that `directory` is there and nobody else's; raises FileRefused."""
    with _translated(directory):
        found = directory.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise FileRefused(f"{directory} is not a directory", "name another directory")
    _check_owned(found, directory, mode="700")


def read(path: Path) -> bytes:
    """Returns what is in a file; raises FileMissing or FileRefused. Symbolic links are not followed."""
    check_directory(path.parent)
    with _translated(path):
        # Not blocking: a pipe in the file's place would have us wait for its writer.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise FileRefused(f"{path} is not a regular file", "put the file itself there")
            _check_owned(found, path, mode="600")
            content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise FileRefused(f"{path} is larger than {_LARGEST} bytes", "restore the file from its backup")
    return content


def create(path: Path, content: bytes) -> None:
    """Makes a file that is not there yet; raises FileExists or FileRefused. Never leaves half a file."""
    with _translated(path), _written(path, content) as temporary:
        os.link(temporary, path)  # unlike rename, fails when the name is taken
        _sync_directory(path.parent)


def replace(path: Path, content: bytes) -> None:
    """Makes a file or replaces it by the new content at once; raises FileRefused."""
    with _translated(path), _written(path, content) as temporary:
        temporary.replace(path)
        _sync_directory(path.parent)


def remove(path: Path) -> None:
    """Removes a file, durably: after a crash it stays gone. Raises FileMissing or FileRefused.

    With it goes what a crash left of writing it: to a key, a second name. Nobody may be writing it meanwhile.
    """
    with _translated(path):
        for left in path.parent.glob(f".{path.name}.{'[0-9a-f]' * _RANDOM_DIGITS}"):
            left.unlink(missing_ok=True)
        path.unlink()
        _sync_directory(path.parent)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps other processes that ask for the same lock out; waits for them. The kernel lets go when we die."""
    check_directory(directory)
    with _translated(directory):
        handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _written(path: Path, content: bytes) -> Iterator[Path]:
    """Gives a temporary file beside `path` with the content safely on disk; removes it in the end."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(_RANDOM_DIGITS // 2)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # a strict umask may have taken even our own rights
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_owned(found: os.stat_result, path: Path, *, mode: str) -> None:
    if found.st_uid != os.geteuid():
        raise FileRefused(f"{path} belongs to user {found.st_uid}, not to us", f"run as its owner, or chown {path}")
    if found.st_mode & _OTHERS:
        message = f"{path} is open to others (mode {stat.S_IMODE(found.st_mode):o})"
        raise FileRefused(message, f"see who has read it; then: chmod {mode} {path}")


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileMissing(f"{path} does not exist", "check the path") from error
    except FileExistsError as error:
        raise FileExists(f"{path} exists already", "name another path; nothing is overwritten") from error
    except OSError as error:
        raise FileRefused(f"{path}: {error.strerror or error}", "check the path and its rights") from error
