"""Which control plane a command talks to.

A *contexts file* names them: `{"east": {"admin": "http://127.20.1.1:15014", "token_file": ".../admin-token"}}`. A lab
writes one; any other can be given with --contexts. `--admin` and `--admin-token-file` name one directly.
"""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from deploy.cli.admin_client import AdminClient
from deploy.cli.output import CommandFailed
from deploy.cli.reach import NAMES, cluster_option, effective, reach_options


class Context(msgspec.Struct, frozen=True):
    """Where one control plane listens and the file with its admin token."""

    admin: str
    token_file: str = ""


class Targets:
    """The control planes that a command may talk to. Nothing is read before the first is asked for."""

    def __init__(self, load: Callable[[], Mapping[str, Context]], chosen: str) -> None:
        """`load` reads the contexts; `chosen` is what --cluster says, or empty."""
        self._load = load
        self._chosen = chosen

    @property
    def is_one(self) -> bool:
        """Says whether one control plane was named: then an answer is about it, not a list."""
        return bool(self._chosen) or list(self.contexts) == [""]

    @functools.cached_property
    def contexts(self) -> Mapping[str, Context]:
        """The known control planes by cluster; "" is the one of --admin."""
        return self._load()

    def all(self) -> dict[str, AdminClient]:
        """Returns a client for each cluster, or for the chosen one."""
        names = [self._named(self._chosen)] if self._chosen else list(self.contexts)
        return {name: self.client(name) for name in names}

    def one(self) -> AdminClient:
        """Returns the client of the chosen cluster, or of the first."""
        return self.client(self._chosen or next(iter(self.contexts)))

    def client(self, name: str) -> AdminClient:
        """Returns the client of a cluster by name; raises CommandFailed when it is not known."""
        context = self.contexts[self._named(name)]
        return AdminClient(context.admin, _read_token(context.token_file))

    def _named(self, name: str) -> str:
        if name in self.contexts:
            return name
        if list(self.contexts) == [""]:
            return ""  # --admin: one control plane, whose name we learn from its answers
        raise CommandFailed(f"no cluster {name!r} here", f"known are: {', '.join(self.contexts)}")


def target_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --cluster and the options of `contexts_options` to a command: its parameter `targets`."""
    return cluster_option(contexts_options(command))


def contexts_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --lab, --contexts, --admin and --admin-token-file to a command that names its clusters by itself."""

    @reach_options
    @functools.wraps(command)
    def with_targets(*args: object, **options: object) -> None:
        said = effective({name: options.pop(name, None) for name in NAMES})

        def load() -> Mapping[str, Context]:
            if said["admin"]:
                return {"": Context(said["admin"], said["admin_token_file"])}
            return read_contexts(Path(said["contexts"]) if said["contexts"] else lab_contexts(said["lab"] or "lab"))

        command(*args, targets=Targets(load, said["cluster"]), **options)

    return with_targets


def lab_contexts(lab: str) -> Path:
    """Returns the contexts file that a lab writes."""
    home = os.environ.get("ISTHMUS_HOME") or Path.home() / ".local" / "state" / "isthmus"
    return Path(home) / "labs" / lab / "contexts.json"


def read_contexts(file: Path) -> Mapping[str, Context]:
    """Reads a contexts file; raises CommandFailed when there is none or it is not one."""
    try:
        contexts = msgspec.json.decode(file.read_bytes(), type=dict[str, Context])
    except FileNotFoundError as error:
        raise CommandFailed(
            f"no control plane to ask: {file} does not exist",
            "start a lab with `isthmus lab up`, or name a control plane with --admin and --admin-token-file",
        ) from error
    except (OSError, msgspec.MsgspecError) as error:
        raise CommandFailed(f"{file} is no contexts file: {error}", "name another one with --contexts") from error
    if not contexts:
        raise CommandFailed(f"{file} names no cluster", "start the lab again with `isthmus lab up`")
    return contexts


def _read_token(file: str) -> str:
    if not file:
        return ""
    try:
        return Path(file).read_text().strip()
    except OSError as error:
        raise CommandFailed(
            f"the admin token cannot be read: {error}", "name its file with --admin-token-file"
        ) from error
