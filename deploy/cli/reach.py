"""The options that say which control plane is meant: on `isthmus` itself and on each command that asks one.

Apart from `targets`, so that `isthmus --help` imports nothing that talks to a network.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., None])

_OPTIONS = (
    ("--lab", "NAME", "ISTHMUS_LAB", "A lab's name.  [lab]"),
    ("--contexts", "FILE", "ISTHMUS_CONTEXTS", "JSON file that names control planes."),
    ("--admin", "URL", "ISTHMUS_ADMIN", "Admin address of one control plane."),
    ("--admin-token-file", "FILE", "ISTHMUS_ADMIN_TOKEN_FILE", "Its token."),
)
NAMES = ("cluster", "lab", "contexts", "admin", "admin_token_file")
"""The parameters of these options."""


def reach_options(command: _Command) -> _Command:
    """Adds --lab, --contexts, --admin and --admin-token-file to a command."""
    for option, metavar, _, text in reversed(_OPTIONS):
        command = click.option(option, metavar=metavar, help=text)(command)
    return command


def cluster_option(command: _Command) -> _Command:
    """Adds --cluster to a command."""
    return click.option("--cluster", metavar="NAME", help="The member cluster to ask.")(command)


def outer_reach_options(command: _Command) -> _Command:
    """Adds all of them to the group, where they are also read from the environment: what a command says wins."""
    for option, metavar, variable, _ in reversed(_OPTIONS):
        command = click.option(option, metavar=metavar, envvar=variable, hidden=True)(command)
    return click.option("--cluster", metavar="NAME", hidden=True)(command)


def effective(own: Mapping[str, object]) -> dict[str, str]:
    """Returns what holds for the command that runs now: its own options, else those of the group; "" for neither."""
    outer = click.get_current_context().find_root().obj
    values = outer if isinstance(outer, dict) else {}
    return {name: str(own.get(name) or values.get(name) or "") for name in NAMES}
