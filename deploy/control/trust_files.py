"""The data directory as the keeper of trust sees it, and the file by which proxies know their control plane. Blocks."""

import contextlib
import os
import stat
from pathlib import Path

from federation.xds.bootstrap import trust_bundle_file
from trust import files

_GROWING = ".jsonl"
"""Ends the name of a file in the data directory that says nothing of trust: the audit trail."""

Stamp = frozenset[tuple[str, int, int, int]]
"""Of a directory: name, inode, moment of change (ns) and size of each file."""


def stamp_of(directory: Path) -> Stamp:
    """Returns what changes with every file that is written in a directory; raises FileRefused."""
    try:
        with os.scandir(directory) as entries:
            found = [(one.name, one.stat(follow_symlinks=False)) for one in entries if not one.name.startswith(".")]
    except OSError as error:
        raise files.FileRefused(f"{directory}: {error.strerror}", "check the data directory and its rights") from error
    return frozenset(
        (name, one.st_ino, one.st_mtime_ns, one.st_size)
        for name, one in found
        if stat.S_ISREG(one.st_mode) and not name.endswith(_GROWING)
    )


def write_trust_file(path: Path, roots: bytes) -> None:
    """Writes the file by which proxies know their control plane, if it says something else; raises FileRefused."""
    content = trust_bundle_file(roots).encode()
    files.make_directory(path.parent)
    with contextlib.suppress(files.FileMissing):
        if files.read(path) == content:
            return
    files.replace(path, content)
