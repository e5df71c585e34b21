"""The command `isthmus`: a table of commands, each imported only when it is called.

`main` is the one place where errors that are somebody's (and not bugs) become `error:` and `hint:` on standard error.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

import click

from deploy.cli.reach import outer_reach_options
from deploy.failures import CommandFailed
from trust.refusals import Refusal

COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "lab": ("deploy.cli.lab:lab", "Run a whole mesh on this machine: clusters, proxies, programs."),
        "status": ("deploy.cli.status:status", "Show how a control plane is, and what is wrong with its objects."),
        "clusters": ("deploy.cli.clusters:clusters", "List the members of the mesh."),
        "services": (
            "deploy.cli.services:services",
            "List the services: who exports them, who sees them, where their endpoints are.",
        ),
        "proxies": ("deploy.cli.status:proxies", "List the proxies: what each acknowledged and what it rejected."),
        "check": ("deploy.cli.check:check", "Check manifests without a control plane."),
        "join": ("deploy.cli.members:join", "Make a cluster a member of the mesh, in one step."),
        "join-request": ("deploy.cli.members:join_request", "Print a cluster's request to become a member."),
        "grant": ("deploy.cli.members:grant", "Sign a join request with the root."),
        "accept": ("deploy.cli.members:accept", "Hand a grant to the cluster that asked for it."),
        "trust": ("deploy.cli.trust:trust", "Make, look at and rotate the keys that the mesh believes."),
        "revoke": ("deploy.cli.revoke:revoke", "Believe a cluster or a workload no longer, at once; or again."),
        "drain": ("deploy.cli.drain:drain", "Have calls leave a cluster, step by step, until it carries nothing."),
        "undrain": ("deploy.cli.drain:undrain", "Have calls come back to a cluster."),
        "leave": ("deploy.cli.leave:leave", "Have a cluster leave the mesh, or the others forget one that is lost."),
        "token": ("deploy.cli.token:token", "Make, list and revoke the tokens that proxies prove themselves with."),
        "control": ("deploy.cli.control:control", "Run the control plane of one cluster."),
    }
)
"""Command -> (module:attribute, what `isthmus --help` says about it)."""

_INTERRUPTED = 130  # what shells report for a command that SIGINT ended: 128 + 2


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, so that `--help` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names in the order of the table: what is used most comes first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports a command; None when there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        found = getattr(import_module(module), attribute)
        if not isinstance(found, click.Command):
            raise TypeError(f"{module}:{attribute} is no click command")
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Adds the nearest name to the message about an unknown command."""
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of commands from the table, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="isthmus", message="%(prog)s %(version)s")
@outer_reach_options
@click.pass_context
def isthmus(ctx: click.Context, /, **reach: str | None) -> None:
    """One mesh over many clusters: every call goes to the nearest healthy endpoint.

    Start with `isthmus lab up`, then `isthmus status`. Commands that ask a control plane find it by --cluster in a lab,
    or by --admin and --admin-token-file.
    """
    ctx.obj = reach


def main() -> None:
    """Runs the command line and exits."""
    try:
        # standalone_mode is off: it would call Ctrl-C "Aborted!" and exit with 1
        sys.exit(isthmus.main(prog_name="isthmus", standalone_mode=False))
    except click.ClickException as wrong:
        wrong.show()
        sys.exit(wrong.exit_code)
    except click.Abort:
        sys.exit(_INTERRUPTED)
    except (CommandFailed, Refusal) as failure:
        report(failure.message, failure.hint)
    except BrokenPipeError:
        # `isthmus services | head`: nobody reads any more, and Python must not complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


def report(message: str, hint: str) -> None:
    """Prints an error and what to do next on standard error."""
    click.secho("error: ", fg="red", nl=False, err=True)
    click.echo(message, err=True)
    if hint:
        click.secho("hint: ", fg="cyan", nl=False, err=True)
        click.echo(hint, err=True)


if __name__ == "__main__":
    main()
