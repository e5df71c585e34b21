"""What a test says of files on disk."""

from pathlib import Path


def tree(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Returns mode and content of all that lies below a directory, by path; locks left out. Equal: nothing changed."""
    return {
        str(path.relative_to(directory)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(directory.rglob("*"))
        if path.name != ".lock"
    }
