"""How the command line speaks: tables for people, JSON and YAML for programs.

Every command that shows something takes `-o table|json|yaml` (`output_option`) and ends in `show`.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import click
import msgspec
import yaml
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from federation.model import Finding

_Command = TypeVar("_Command", bound=Callable[..., object])

_WIDTH_OF_A_PIPE = 10_000  # columns: rich would take 80 when stdout is no terminal, and cut names in two


def output_option(command: _Command) -> _Command:
    """Adds `-o table|json|yaml` to a command: its parameter `output`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json", "yaml"]),
        default="table",
        show_default=True,
        help="How to print the answer.",
    )(command)


def show(value: object, output: str, render: Callable[[], RenderableType | Sequence[RenderableType]]) -> None:
    """Prints `value`: as JSON, as YAML, or what `render` makes of it (a table, a text, or several)."""
    match output:
        case "json":
            click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
        case "yaml":
            click.echo(yaml.safe_dump(msgspec.to_builtins(value, builtin_types=()), sort_keys=False), nl=False)
        case "table":
            rendered = render()
            console = stdout_console()
            for part in [rendered] if isinstance(rendered, str) or not isinstance(rendered, Sequence) else rendered:
                console.print(plain(part) if isinstance(part, str) else part)
        case _:
            raise ValueError(output)


def stdout_console() -> Console:
    """Returns a console on standard output that does not fold lines when it is a pipe."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE, highlight=False)


def table(columns: Iterable[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> Table:
    """Makes the plain table that every list is shown as. Cells are text, not rich markup."""
    made = Table(box=None, pad_edge=False, title=title, title_justify="left", header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(plain(cell) for cell in row))
    return made


def plain(text: str) -> Text:
    """Returns a text as it is shown: nothing in it is markup, or an order to the terminal, whoever wrote it."""
    return Text("".join(one if one.isprintable() or one == "\n" else repr(one)[1:-1] for one in text))


def findings_table(findings: Iterable[Finding], *, clusters: Sequence[str] = ()) -> Table:
    """Makes the table of what is wrong with manifests; `clusters` says for each finding whose it is, or is empty.

    Message and hint stand below each other: side by side they would leave each other ten letters of a terminal.
    """
    rows = []
    for finding in findings:
        where = f"{finding.where}:{finding.line}" if finding.line else finding.where
        what = f"{finding.field}: {finding.message}" if finding.field else finding.message
        hint = f"\nhint: {finding.hint}" if finding.hint else ""
        rows.append((where, finding.severity.value, finding.object or "-", what + hint))
    columns = ["FILE:LINE", "SEVERITY", "OBJECT", "WHAT IS WRONG"]
    if clusters:
        return table(["CLUSTER", *columns], [(name, *row) for name, row in zip(clusters, rows, strict=True)])
    return table(columns, rows)


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """Returns how long ago a moment was in one unit: `4s`, `7m`, `3h`, `2d`; `-` for None."""
    if moment is None:
        return "-"
    return span((now or datetime.now(UTC)) - moment)


def span(length: timedelta) -> str:
    """Returns a span of time in its largest whole unit: `4s`, `7m`, `3h`, `2d`."""
    seconds = max(0, round(length.total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
