"""`isthmus trust`: the root of the mesh, kept offline, and what the members make of it."""

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import msgspec
from rich.console import RenderableType

from deploy.cli.output import output_option, show, table
from deploy.cli.roots import (
    ask_passphrase_of,
    maybe_root_option,
    open_root,
    passphrase_option,
    read_passphrase,
    root_option,
)
from deploy.cli.rotate import rotate
from deploy.cli.spans import Span
from deploy.cli.survey import ReachedMesh, Survey, reasons_of
from deploy.cli.targets import Targets, target_options
from deploy.cli.trust_display import render_status
from deploy.cli.trust_status import standing_of
from deploy.failures import CommandFailed
from federation.names import host_port
from trust.bundle import bundle_pem, root_certificates, root_fingerprints, spiffe_document
from trust.certificates import CertificateSummary, describe
from trust.custody import needs_passphrase, open_custody
from trust.joining import Introduction
from trust.root import ROOT_LIFETIME, Root
from trust.rotation import RootStage
from trust.spiffe import InvalidName, parse_domain


class RootReport(msgspec.Struct, frozen=True):
    """What people want to know of a root. `certificate` is that of the root that signs; `others` are trusted too.

    `keys` are the hex SHA-256 of their keys, in this order: what `trust status` knows them by.
    """

    directory: str
    domain: str
    sequence: int
    stage: RootStage
    certificate: CertificateSummary
    others: tuple[CertificateSummary, ...]
    keys: tuple[str, ...]
    members: tuple[Introduction, ...]


@click.group()
def trust() -> None:
    """Make, look at and rotate the keys that the mesh believes."""


@trust.command()
@click.option("--domain", required=True, help="Name of the mesh, such as mesh.example: part of every identity.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Directory to make.")
@click.option("--lifetime-days", type=click.IntRange(min=1), default=ROOT_LIFETIME.days, show_default=True)
@click.option(
    "--keys",
    default="",
    metavar="URI",
    help="Where its keys are to be: a token's `pkcs11:token=...?module-path=...` (RFC 7512).  [files in the directory]",
)
@click.option("--ask-passphrase", is_flag=True, help="Ask for a passphrase that encrypts the key, or the token's PIN.")
@passphrase_option
@output_option
def init(
    output: str,
    *,
    domain: str,
    out: Path,
    lifetime_days: int,
    keys: str,
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
        if not sys.stdin.isatty():
            raise CommandFailed("there is no terminal to ask for a passphrase", "give it with --passphrase-file FILE")
        prompt = "Passphrase of the new root"
        passphrase = click.prompt(prompt, hide_input=True, confirmation_prompt=True, err=True).encode()
    if keys and passphrase is None and needs_passphrase(keys, directory=out):
        passphrase = ask_passphrase_of(f"the token for {out}")
    now = datetime.now(UTC)
    custody = open_custody(keys, directory=out, passphrase=passphrase)
    root = Root.init(out, mesh, custody=custody, now=now, lifetime=timedelta(days=lifetime_days))
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


@trust.command()
@maybe_root_option
@passphrase_option
@click.option(
    "--warn-before", type=Span(), default="30d", show_default=True, help="Warn of what expires within this time."
)
@click.option("--deliver", is_flag=True, help="Hand every control plane the documents of --root that it missed.")
@target_options
@output_option
def status(
    targets: Targets,
    output: str,
    *,
    root: Path | None,
    passphrase_file: Path | None,
    warn_before: timedelta,
    deliver: bool,
) -> None:
    """Show every CA of the mesh: its slot, until when it lives, who trusts it; and how far a rotation is.

    One control plane is asked, which knows the word of all members; others are when it is silent, or has not heard of
    them. Fails when something needs somebody: a CA that expires soon, a rotation that stands still for ten minutes, a
    member that missed news of the root for as long, or whatever the control plane warns of. A rotation on its way is no
    failure.
    """
    if deliver and root is None:
        raise click.UsageError("--deliver hands over the documents of a root: give --root")
    mesh = ReachedMesh(targets.names, targets.client)
    opened = None if root is None else open_root(root, passphrase_file)

    async def ask() -> Survey:
        refused = () if opened is None or not deliver else (await mesh.deliver(opened.documents(), ())).silent
        survey = await mesh.glance()
        silent = {one.cluster: one for one in (*refused, *survey.silent)}
        return msgspec.structs.replace(survey, silent=tuple(silent.values()))

    survey = asyncio.run(ask())
    if survey.bundle is None:
        hint = "is one running? `isthmus lab status` shows a lab; --cluster and --admin name another one"
        if not all(one.is_away for one in survey.silent):
            hint = "give the token of that control plane with --admin-token-file: `admin-token` in its data directory"
            raise CommandFailed(f"no control plane can be asked: {reasons_of(survey)}", hint)
        raise CommandFailed(f"no control plane answered: {reasons_of(survey)}", hint)
    bundle, now = survey.bundle, datetime.now(UTC)
    if opened is not None and opened.domain != bundle.domain:
        message = f"{root} is the root of {opened.domain}, the control plane is of {bundle.domain}"
        raise CommandFailed(message, "name the right root with --root, or the right control planes")
    if opened is not None and opened.bundle.sequence > bundle.sequence:
        bundle = opened.bundle
    found = standing_of(
        survey,
        bundle,
        now=now,
        warn_before=warn_before,
        documents=opened.documents() if opened else (),
        # An older copy of the root directory would tell of a stage that is over.
        stage=opened.stage if opened and opened.bundle.sequence == bundle.sequence else None,
        members=[member.name for member in opened.members()] if opened else (),
    )
    show(found, output, lambda: render_status(found, now))
    if found.warnings:
        raise SystemExit(1)


@trust.command()
@maybe_root_option
@passphrase_option
@click.option(
    "-o",
    "--output",
    type=click.Choice(["pem", "spiffe"]),
    default="pem",
    show_default=True,
    help="PEM for TLS libraries, or a SPIFFE bundle document (JWK set).",
)
@target_options
def bundle(targets: Targets, *, root: Path | None, passphrase_file: Path | None, output: str) -> None:
    """Print the roots that the mesh trusts: of the root directory, or as a control plane knows them."""
    if root is not None:
        found = open_root(root, passphrase_file).bundle
    else:
        survey = asyncio.run(ReachedMesh(targets.names, targets.client).glance())
        if survey.bundle is None:
            raise CommandFailed(f"no control plane answered: {reasons_of(survey)}", "or give the root: --root DIR")
        found = survey.bundle
    if output == "pem":
        click.echo(bundle_pem(found).decode(), nl=False)
    else:
        click.echo(msgspec.json.format(msgspec.json.encode(spiffe_document(found)), indent=2).decode())


trust.add_command(rotate)


def _report(directory: Path, root: Root) -> RootReport:
    certificates = tuple(describe(one) for one in root_certificates(root.bundle))
    return RootReport(
        directory=str(directory),
        domain=root.domain,
        sequence=root.bundle.sequence,
        stage=root.stage,
        certificate=certificates[0],
        others=certificates[1:],
        keys=root_fingerprints(root.bundle),
        members=root.members(),
    )


def _render(found: RootReport) -> list[RenderableType]:
    facts = [("domain", found.domain), ("trust bundle", str(found.sequence)), ("rotation", found.stage.value)]
    certificates = (found.certificate, *found.others)
    for number, (certificate, key) in enumerate(zip(certificates, found.keys, strict=True)):
        name = "trusted too" if number else "signs"
        valid = f"{certificate.not_before:%Y-%m-%d} to {certificate.not_after:%Y-%m-%d}"
        facts += [(name, valid), ("  key", key), ("  serial", certificate.serial)]
        facts += [("  certificate", certificate.fingerprint)]
    members = [
        (member.name, member.network, member.region, ", ".join(host_port(g.address, g.port) for g in member.gateways))
        for member in found.members
    ]
    return [
        table(["ROOT", str(found.directory)], facts),
        "",
        table(["MEMBER", "NETWORK", "REGION", "GATEWAYS"], members),
    ]
