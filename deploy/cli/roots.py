"""The directory of a root, as commands name and open it: --root, and the passphrase of its key."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import click

from deploy.failures import CommandFailed
from trust.custody import needs_passphrase, open_custody, remembered
from trust.root import Root


def root_option(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --root DIR, which must be given: the parameter `root`."""
    return _option(is_required=True)(command)


def maybe_root_option(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --root DIR, which may be left out: the parameter `root`, or None."""
    return _option(is_required=False)(command)


def passphrase_option(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --passphrase-file FILE: the parameter `passphrase_file`."""
    return click.option(
        "--passphrase-file",
        envvar="ISTHMUS_ROOT_PASSPHRASE_FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="File with the passphrase of the root's key; asked for when it is needed and not given.",
    )(command)


def open_root(directory: Path, passphrase_file: Path | None) -> Root:
    """Opens the root with its keys where they are, asks for the passphrase (or PIN) that they need.

    Raises trust's Refusals and CommandFailed.
    """
    passphrase = None if passphrase_file is None else read_passphrase(passphrase_file)
    where = remembered(directory)
    if passphrase is None and needs_passphrase(where, directory=directory):
        passphrase = ask_passphrase_of(f"the root in {directory}")
    custody = open_custody(where, directory=directory, passphrase=passphrase)
    return Root.open(directory, custody=custody, now=datetime.now(UTC))


def ask_passphrase_of(what: str) -> bytes:
    """Asks on the terminal for a passphrase, or PIN; raises CommandFailed where there is none."""
    if not sys.stdin.isatty():
        raise CommandFailed(f"{what} has a passphrase", "give it with --passphrase-file FILE")
    return str(click.prompt(f"Passphrase of {what}", hide_input=True, err=True)).encode()


def read_passphrase(file: Path) -> bytes:
    """Reads the passphrase in a file, without the end of its line; raises CommandFailed."""
    try:
        return file.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror}", "check --passphrase-file") from error


def _option(*, is_required: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--root",
        required=is_required,
        # Where it may be left out it changes what is done: then nothing but the command says so.
        envvar="ISTHMUS_ROOT" if is_required else None,
        type=click.Path(file_okay=False, path_type=Path),
        help="Directory of the mesh's root, made by `isthmus trust init`.",
    )
