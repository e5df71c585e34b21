"""Membership: `isthmus join` in one step, `join-request`, `grant` and `accept` for two operators."""

import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import click

from deploy.cli.output import output_option, show
from deploy.cli.roots import open_root, passphrase_option, root_option
from deploy.cli.spans import Span
from deploy.cli.targets import Targets, contexts_options, target_options
from deploy.failures import CommandFailed
from federation.reports import StatusReport
from trust import joining
from trust.joining import Grant, Introduction, JoinRequest


@click.command()
@click.argument("newcomer", metavar="CLUSTER")
@click.option("--via", metavar="CLUSTER", help="A member that introduces it: how the new one finds the others.")
@click.option("--replace", is_flag=True, help="Give the name to a new key: the cluster lost its old one.")
@root_option
@passphrase_option
@contexts_options
@output_option
def join(
    targets: Targets,
    output: str,
    *,
    newcomer: str,
    via: str | None,
    replace: bool,
    root: Path,
    passphrase_file: Path | None,
) -> None:
    """Make CLUSTER a member of the mesh: its request, the root's signature and the introduction in one step.

    For an operator who reaches the control plane and the root. The first cluster of a mesh needs no --via. One that
    left the mesh is simply back: it knows the others, and its certificate is still good.
    """

    async def run() -> tuple[Grant | None, StatusReport]:
        async with targets.client(newcomer) as client:
            if any(one.is_self and one.left and one.name == newcomer for one in await client.clusters()):
                return None, await client.come_back()
            request = await client.join_request()
            if request.cluster.name != newcomer:
                raise CommandFailed(
                    f"the control plane that was asked is of cluster {request.cluster.name}, not of {newcomer}",
                    f"isthmus join {request.cluster.name} ...",
                )
            introductions = [] if via is None else [await _introduction(targets, via)]
            signed = await asyncio.to_thread(
                lambda: open_root(root, passphrase_file).grant(
                    request, now=datetime.now(UTC), introductions=introductions, replace=replace
                )
            )
            return signed, await client.join(signed)

    signed, status = asyncio.run(run())
    if signed is None:
        show(status, output, lambda: f"{newcomer} is back in {status.domain}.")
        return
    others = [introduced.name for introduced in signed.introductions if introduced.name != newcomer]
    known = f"; it was introduced to {', '.join(others)}" if others else ""
    show(status, output, lambda: f"{newcomer} is a member of {signed.domain}{known}.")


@click.command("join-request")
@click.option("--new", is_flag=True, help="Make a new request: the grant of the last one was lost, or has expired.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the request to this file.")
@target_options
def join_request(targets: Targets, *, new: bool, out: Path | None) -> None:
    """Print a cluster's request to become a member: send it to the operator who holds the root.

    It is the same request each time, until --new: no request is granted twice.
    """

    async def ask() -> JoinRequest:
        async with targets.one() as client:
            return await client.join_request(fresh=new)

    _write(joining.encode(asyncio.run(ask())), out)


@click.command()
@click.argument("request", type=click.File("rb"))
@click.option("--introduce", metavar="CLUSTER", multiple=True, help="Ask this member for its gateways as of now.")
@click.option("--replace", is_flag=True, help="Give the name to a new key: the cluster lost its old one.")
@click.option("--valid-for", type=Span(), default="24h", show_default=True, help="How long it may be accepted.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the grant to this file.")
@root_option
@passphrase_option
@contexts_options
def grant(
    targets: Targets,
    *,
    request: BinaryIO,
    introduce: Sequence[str],
    replace: bool,
    valid_for: timedelta,
    out: Path | None,
    root: Path,
    passphrase_file: Path | None,
) -> None:
    """Sign the REQUEST of a cluster with the root, and print the grant: send it back. `-` reads standard input."""

    async def introductions() -> list[Introduction]:
        return [await _introduction(targets, name) for name in introduce]

    signed = open_root(root, passphrase_file).grant(
        joining.decode_request(request.read()),
        now=datetime.now(UTC),
        introductions=asyncio.run(introductions()),
        valid_for=valid_for,
        replace=replace,
    )
    _write(joining.encode(signed), out)


@click.command()
@click.argument("grant", type=click.File("rb"))
@contexts_options
@output_option
def accept(targets: Targets, output: str, *, grant: BinaryIO) -> None:
    """Hand the GRANT to the cluster that asked for it. `-` reads standard input."""
    signed = joining.decode_grant(grant.read())

    async def run() -> StatusReport:
        async with targets.client(signed.cluster) as client:
            return await client.join(signed)

    status = asyncio.run(run())
    show(status, output, lambda: f"{status.cluster} is a member of {status.domain}.")


async def _introduction(targets: Targets, name: str) -> Introduction:
    async with targets.client(name) as client:
        return await client.member()


def _write(text: bytes, out: Path | None) -> None:
    if out is None:
        sys.stdout.buffer.write(text)
        return
    try:
        out.write_bytes(text)
    except OSError as error:
        raise CommandFailed(f"{out} cannot be written: {error.strerror}", "name another file with --out") from error
