"""`isthmus trust`: the root of the mesh, kept offline."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import msgspec
from rich.console import RenderableType

from deploy.cli.output import output_option, show, table
from deploy.cli.roots import open_root, passphrase_option, read_passphrase, root_option
from deploy.failures import CommandFailed
from federation.names import host_port
from trust.authority import ROOT_LIFETIME, Root
from trust.certificates import CertificateSummary, describe
from trust.joining import Introduction
from trust.spiffe import InvalidName, parse_domain


class RootReport(msgspec.Struct, frozen=True):
    """What people want to know of a root."""

    directory: str
    domain: str
    certificate: CertificateSummary
    members: tuple[Introduction, ...]


@click.group()
def trust() -> None:
    """Make and look at the root of the mesh."""


@trust.command()
@click.option("--domain", required=True, help="Name of the mesh, such as mesh.example: part of every identity.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Directory to make.")
@click.option("--lifetime-days", type=click.IntRange(min=1), default=ROOT_LIFETIME.days, show_default=True)
@click.option("--ask-passphrase", is_flag=True, help="Ask for a passphrase that encrypts the key.")
@passphrase_option
@output_option
def init(
    output: str,
    *,
    domain: str,
    out: Path,
    lifetime_days: int,
    ask_passphrase: bool,
    passphrase_file: Path | None,
) -> None:
    """Make the root of a new mesh: a key that signs clusters. Keep the directory offline and safe."""
    try:
        mesh = parse_domain(domain)
    except InvalidName as error:
        raise CommandFailed(str(error), "isthmus trust init --domain mesh.example --out DIR") from error
    passphrase = None if passphrase_file is None else read_passphrase(passphrase_file)
    if ask_passphrase and passphrase is None:
        prompt = "Passphrase of the new root"
        passphrase = click.prompt(prompt, hide_input=True, confirmation_prompt=True, err=True).encode()
    now = datetime.now(UTC)
    root = Root.init(out, mesh, now=now, passphrase=passphrase, lifetime=timedelta(days=lifetime_days))
    made = _report(out, root)
    show(made, output, lambda: f"The root of {mesh} is in {out}. Next: isthmus join CLUSTER --root {out}")


@trust.command("show")
@root_option
@passphrase_option
@output_option
def show_root(output: str, *, root: Path, passphrase_file: Path | None) -> None:
    """Show the root's certificate and whom it made members."""
    found = _report(root, open_root(root, passphrase_file))
    show(found, output, lambda: _render(found))


def _report(directory: Path, root: Root) -> RootReport:
    return RootReport(str(directory), root.domain, describe(root.certificate), root.members())


def _render(found: RootReport) -> list[RenderableType]:
    certificate = found.certificate
    facts = [
        ("domain", found.domain),
        ("serial", certificate.serial),
        ("SHA-256", certificate.fingerprint),
        ("valid", f"{certificate.not_before:%Y-%m-%d} to {certificate.not_after:%Y-%m-%d}"),
    ]
    members = [
        (member.name, member.network, member.region, ", ".join(host_port(g.address, g.port) for g in member.gateways))
        for member in found.members
    ]
    return [
        table(["ROOT", str(found.directory)], facts),
        "",
        table(["MEMBER", "NETWORK", "REGION", "GATEWAYS"], members),
    ]
