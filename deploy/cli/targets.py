"""Which control plane a command talks to: one of a lab's contexts file or that of --contexts, or the one of --admin."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.admin_client import AdminClient
from deploy.cli.reach import NAMES, cluster_option, effective, reach_options
from deploy.contexts import Context, read_contexts
from deploy.failures import CommandFailed
from deploy.lab.state import folder


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

    @property
    def names(self) -> tuple[str, ...]:
        """The clusters that are known, or the chosen one; "" is the one of --admin."""
        return (self._named(self._chosen),) if self._chosen else tuple(self.contexts)

    def all(self) -> dict[str, AdminClient]:
        """Returns a client for each cluster, or for the chosen one."""
        return {name: self.client(name) for name in self.names}

    def one(self) -> AdminClient:
        """Returns the client of the chosen cluster, or of the first."""
        return self.client(self._chosen or next(iter(self.contexts)))

    def only(self) -> AdminClient:
        """Returns the client of the chosen cluster, or of the only one that is known: for what belongs to one cluster.

        Raises CommandFailed when several could be meant.
        """
        if len(self.names) > 1:
            raise CommandFailed("which cluster is meant?", f"--cluster NAME, one of: {', '.join(self.names)}")
        return self.client(self.names[0])

    def client(self, name: str) -> AdminClient:
        """Returns the client of a cluster by name; raises CommandFailed when it is not known."""
        context = self.contexts[self._named(name)]
        return AdminClient(context.admin, _read_token(context.token_file), context.others)

    def _named(self, name: str) -> str:
        if name in self.contexts:
            return name
        if list(self.contexts) == [""]:
            return ""  # --admin: one control plane, whose name we learn from its answers
        raise CommandFailed(
            f"no cluster {name!r} here",
            f"known are: {', '.join(self.contexts)}; others are reached with --admin and --admin-token-file",
        )


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
            return read_contexts(Path(said["contexts"]) if said["contexts"] else folder(said["lab"] or "lab").contexts)

        command(*args, targets=Targets(load, said["cluster"]), **options)

    return with_targets


def _read_token(file: str) -> str:
    if not file:
        return ""
    try:
        return Path(file).read_text().strip()
    except OSError as error:
        raise CommandFailed(
            f"the admin token cannot be read: {error}", "name its file with --admin-token-file"
        ) from error
