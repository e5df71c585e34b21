"""`isthmus check`: what the control plane would say about manifests, without one."""

import sys
from pathlib import Path

import click
import msgspec
from rich.console import RenderableType

from deploy.cli import output as printed
from federation.model import Finding, Severity
from federation.sources.assembly import assemble
from federation.sources.objects import Reading
from federation.sources.tree import ManifestTree, read_bytes

_STDIN = "-"


class Report(msgspec.Struct, frozen=True):
    """What `-o json` prints: how much was read, and everything that was found, by file and line."""

    files: int
    objects: int
    errors: int
    warnings: int
    findings: tuple[Finding, ...]


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
@printed.output_option
def check(files: tuple[Path, ...], output: str) -> None:
    """Checks Kubernetes manifests: FILES are files, folders, or - for standard input.

    Exits with 1 if there is an error, with 0 if there are only warnings or nothing at all.
    """
    report = _check(files)
    printed.show(report, output, lambda: _render(report))
    if report.errors:
        raise click.exceptions.Exit(1)


def _check(files: tuple[Path, ...]) -> Report:
    readings: dict[str, Reading] = dict(ManifestTree(tuple(path for path in files if str(path) != _STDIN)).read())
    if any(str(path) == _STDIN for path in files):
        readings[_STDIN] = read_bytes(sys.stdin.buffer.read(), _STDIN)
    by_file = assemble(readings).findings
    findings = tuple(finding for where in sorted(by_file) for finding in by_file[where])
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    return Report(
        files=len(readings),
        objects=sum(len(reading.objects) for reading in readings.values()),
        errors=errors,
        warnings=len(findings) - errors,
        findings=findings,
    )


def _render(report: Report) -> list[RenderableType]:
    counts = (
        f"{_count(report.objects, 'object')} in {_count(report.files, 'file')}: "
        f"{_count(report.errors, 'error')}, {_count(report.warnings, 'warning')}"
    )
    if not report.findings:
        return [counts]
    return [printed.findings_table(report.findings), "", counts]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
