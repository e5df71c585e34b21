"""The manifest files on disk: lists them, reads those that changed. Blocking; call it off the event loop."""

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from federation.model import Finding
from federation.sources.objects import Reading, read_objects

SUFFIXES = (".yaml", ".yml", ".json")
_RACY = 100_000_000  # nanoseconds; file systems stamp by clock ticks, so a younger file may change and look the same


class _Seen(msgspec.Struct, frozen=True):
    """A file as it was last read. `is_settled`: from then on, another content has another signature."""

    signature: tuple[int, ...]
    digest: bytes
    reading: Reading
    is_settled: bool


class ManifestTree:
    """Reads the files and folders it was given, and remembers what it read."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        """Takes files, whatever their names, and folders, whose YAML and JSON files are taken at any depth."""
        self._paths = paths
        self._seen: dict[str, _Seen] = {}

    def read(self) -> Mapping[str, Reading]:
        """Returns what every file says now, by its name.

        What cannot be listed is not gone: it has a reading of its own that says so, and each file that was seen in it
        before has an incomplete one. Names that start with a dot (editors' files, `.git`) are left out.
        """
        files, refused = self._list()
        seen: dict[str, _Seen] = {}
        for where, signature in files.items():
            known = self._seen.get(where)
            if known and known.signature == signature and known.is_settled:
                seen[where] = known
                continue
            try:
                seen[where] = _read(where, signature, known)
            except FileNotFoundError:
                continue  # deleted after it was listed
            except OSError as error:
                refused[where] = error
        readings = {where: each.reading for where, each in seen.items()}
        for where, known in self._seen.items():
            if where not in seen and any(_is_inside(where, place) for place in refused):
                seen[where] = known
                readings[where] = Reading(where, is_complete=False)
        self._seen = seen
        readings.update({place: _unreadable(place, error) for place, error in refused.items()})
        return readings

    def missing(self) -> tuple[str, ...]:
        """Returns those of the given files and folders that do not exist or cannot be opened."""
        return tuple(str(path) for path in self._paths if not os.access(path, os.R_OK))

    def _list(self) -> tuple[dict[str, tuple[int, ...]], dict[str, OSError]]:
        """Returns the signature of every file, and why places could not be listed."""
        files: dict[str, tuple[int, ...]] = {}
        refused: dict[str, OSError] = {}
        for path in self._paths:
            names = _walk(path, refused) if path.is_dir() else [str(path)]
            for name in names:
                try:
                    status = os.stat(name)
                except OSError as error:
                    if name == str(path) or os.path.islink(name):  # asked for, or a link to nowhere; else just deleted
                        refused[name] = error
                    continue
                if stat.S_ISREG(status.st_mode):
                    files[name] = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                elif name == str(path):
                    refused[name] = OSError("not a regular file")
        return files, refused


def _walk(top: Path, refused: dict[str, OSError]) -> Iterator[str]:
    """Yields the names of the manifests under a folder; links are followed, each folder is entered once."""
    entered: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) or error.filename == str(top):
            refused[str(error.filename)] = error

    for folder, folders, names in os.walk(top, onerror=refuse, followlinks=True):
        try:
            status = os.stat(folder)
        except OSError as error:  # deleted after it was listed
            refuse(error)
            folders.clear()
            continue
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(folder, name) for name in names if _is_manifest(name))


def _is_manifest(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith(".")


def _is_inside(where: str, place: str) -> bool:
    return where == place or where.startswith(place.rstrip(os.sep) + os.sep)


def _read(where: str, signature: tuple[int, ...], known: _Seen | None) -> _Seen:
    started = time.time_ns()
    content = Path(where).read_bytes()
    digest = hashlib.sha256(content).digest()
    reading = known.reading if known and known.digest == digest else read_bytes(content, where)
    return _Seen(signature, digest, reading, is_settled=started - signature[-1] > _RACY)


def read_bytes(content: bytes, where: str) -> Reading:
    """Reads all objects of a file's content; what is not UTF-8 is a finding."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        finding = Finding(where, line, "", "", "this file is not UTF-8 text", "save it as UTF-8")
        return Reading(where, findings=(finding,), is_complete=False)
    return read_objects(text, where)


def _unreadable(place: str, error: OSError) -> Reading:
    message = f"cannot be read: {error.strerror or error}"
    hint = "does it exist, and may this user read it? What it held before stays in force"
    return Reading(place, findings=(Finding(place, 0, "", "", message, hint),), is_complete=False)
