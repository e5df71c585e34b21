"""`python -m tests.benchmarks`: what the mesh costs and how fast it is, on this machine."""

import asyncio
import sys
import tempfile
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from tests.benchmarks import joining as costs
from tests.benchmarks.convergence import measure
from tests.benchmarks.figures import Figures, tables
from tests.benchmarks.plan import Plan
from tests.benchmarks.simulation import prepare

_FORMAT = click.Choice(["table", "json"])


@click.group()
def main() -> None:
    """Measures the mesh on this machine. Trust ratios, and CPU more than times: others may use the machine too."""


@main.command()
@click.option("--members", default=50, show_default=True)
@click.option("--services", default=20, show_default=True, help="Exported by each member.")
@click.option("--endpoints", default=5, show_default=True, help="Of each service.")
@click.option("--changes", default=60, show_default=True, help="Made one after another.")
@click.option("--rate", "rates", multiple=True, type=float, default=(0.5, 1.0, 2.0, 5.0), show_default=True)
@click.option(
    "--seconds", default=15.0, show_default=True, help="Of each rate; longer until some 20 changes were made."
)
@click.option("--stale-after", default=60.0, show_default=True, help="Seconds; members beat four times as often.")
@click.option("-o", "--output", type=_FORMAT, default="table", show_default=True)
@click.option("--save", type=click.Path(path_type=Path), help="Write the JSON to a file, too.")
def simulation(
    members: int,
    services: int,
    endpoints: int,
    changes: int,
    rates: tuple[float, ...],
    seconds: float,
    stale_after: float,
    output: str,
    save: Path | None,
) -> None:
    """Many members with real etcd, control planes and TLS: what one costs, at rest, per change and when it joins."""
    plan = Plan(
        members=members,
        services=services,
        endpoints=endpoints,
        quiet_changes=changes,
        rates=rates,
        churn_seconds=seconds,
        stale_after=stale_after,
    )

    async def run() -> Figures:
        async with prepare(plan, lambda text: click.echo(text, err=True)) as prepared:
            return await prepared.run()

    figures = asyncio.run(run())
    document = msgspec.json.format(msgspec.json.encode(figures))
    if save is not None:
        save.write_bytes(document)
    if output == "json":
        sys.stdout.buffer.write(document + b"\n")
    else:
        console = Console(width=100)
        pictures = "are equal to what was offered" if figures.is_consistent else "DIFFER from what was offered"
        console.print(
            f"{figures.members} members, {figures.services} exported services of {figures.endpoints} endpoints; "
            f"{figures.machine}; the run took {figures.took:.0f} s; at its end all pictures {pictures}"
        )
        for table in tables(figures):
            console.print(table)
    if not figures.is_consistent:
        sys.exit(1)


@main.command()
@click.option("--changes", default=100, show_default=True, help="With each number of dead replicas.")
@click.option("-o", "--output", type=_FORMAT, default="table", show_default=True)
def convergence(changes: int, output: str) -> None:
    """A change in east until west's proxies have acknowledged it, in a lab, with 0, 1 and 2 of 3 replicas killed."""
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as folder:
        found = measure(Path(folder), changes=changes, say=lambda text: click.echo(text, err=True))
    if output == "json":
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
        return
    table = Table(title="From a change in east to the ACK of a proxy in west", title_justify="left")
    for column in ("leaders killed in east and west", "changes", "acknowledged", "p50", "p99"):
        table.add_column(column, justify="right")
    for loss in found:
        times = (f"{loss.p50 * 1000:.0f} ms", f"{loss.p99 * 1000:.0f} ms")
        table.add_row(str(loss.killed), str(loss.changes), str(loss.acknowledged), *times)
    Console(width=100).print(table)


@main.command()
@click.option("--members", "sizes", multiple=True, type=int, default=(3, 10, 50, 200), show_default=True)
@click.option("--services", default=20, show_default=True, help="Exported by each member.")
@click.option("--tries", default=5, show_default=True, help="The least counts.")
@click.option("-o", "--output", type=_FORMAT, default="table", show_default=True)
def joining(sizes: tuple[int, ...], services: int, tries: int, output: str) -> None:
    """One more member, and one change, in a member that is there: CPU of this process alone, and what is done anew."""
    found = dict(costs.measure(Plan(services=services), sizes, tries=tries))
    if output == "json":
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
        return
    for table in costs.tables(found):
        Console(width=100).print(table)


if __name__ == "__main__":
    main()
