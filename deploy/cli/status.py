"""`isthmus status` and `proxies`: what a control plane says about itself and its proxies."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain

import click
import msgspec
from rich.console import RenderableType

from deploy.admin_client import AdminClient, ControlRefused, ControlUnreachable
from deploy.cli.drain_display import drains_table
from deploy.cli.output import ago, findings_table, output_option, show, span, table
from deploy.cli.targets import Targets, target_options
from deploy.failures import CommandFailed
from federation.reports import DrainReport, ProxyReport, StatusReport, TypeReport


class Silent(msgspec.Struct, frozen=True):
    """A control plane that did not answer."""

    cluster: str
    error: str


@click.command()
@target_options
@output_option
def status(targets: Targets, output: str) -> None:
    """Show how each control plane is, what does not work and since when, and what is wrong with its objects.

    PODS are the ready of all, PROXIES those in step of all. The replica with a star leads. With --cluster the answer is
    one object instead of a list. Fails when a control plane does not answer.
    """
    answers, drains = asyncio.run(_status_of_all(targets.all()))
    show(answers[0] if targets.is_one else answers, output, lambda: _render_status(answers, drains, datetime.now(UTC)))
    if not all(isinstance(answer, StatusReport) for answer in answers):
        raise SystemExit(1)


@click.command()
@target_options
@output_option
def proxies(targets: Targets, output: str) -> None:
    """List the proxies of each cluster: what they acknowledged, what they rejected and why.

    CDS to SDS are the clusters, endpoints, listeners, routes and secrets that a proxy acknowledged. Fails when a
    control plane does not answer, after it has shown the proxies of the others.
    """
    by_cluster = asyncio.run(_proxies_of_all(targets.all()))
    silent = [answer for answer in by_cluster if isinstance(answer, Silent)]
    answer = tuple(chain.from_iterable(each for each in by_cluster if not isinstance(each, Silent)))
    if answer or not silent:
        show(answer, output, lambda: _render_proxies(answer, datetime.now(UTC)))
    if silent:
        reasons = "; ".join(each.error for each in silent)
        raise CommandFailed(reasons, "its proxies go on with what they have; `isthmus lab status` shows a lab")


async def _proxies_of_all(clients: Mapping[str, AdminClient]) -> tuple[tuple[ProxyReport, ...] | Silent, ...]:
    async def ask(name: str, client: AdminClient) -> tuple[ProxyReport, ...] | Silent:
        try:
            async with client:
                return await client.all_proxies()
        except ControlUnreachable as error:
            return Silent(name, error.message)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(name, client)) for name, client in clients.items()]
    return tuple(task.result() for task in tasks)


async def _status_of_all(
    clients: Mapping[str, AdminClient],
) -> tuple[tuple[StatusReport | Silent, ...], frozenset[DrainReport]]:
    """Returns how each control plane is, and all drains that any of them knows."""
    drains: set[DrainReport] = set()

    async def ask(name: str, client: AdminClient) -> StatusReport | Silent:
        try:
            async with client:
                with contextlib.suppress(ControlRefused):  # not joined yet: it knows of none
                    drains.update(await client.drains())
                return await client.status()
        except ControlUnreachable as error:
            return Silent(name, error.message)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(name, client)) for name, client in clients.items()]
    return tuple(task.result() for task in tasks), frozenset(drains)


def _render_status(
    answers: Sequence[StatusReport | Silent], drains: frozenset[DrainReport], now: datetime
) -> list[RenderableType]:
    rows = []
    for answer in answers:
        if isinstance(answer, Silent):
            rows.append((answer.cluster, "-", "silent", *"-" * 8))
            continue
        state = "ready" if answer.is_ready else f"waits for {', '.join(answer.waiting_for)}"
        rows.append(
            (
                answer.cluster,
                answer.replica + ("*" if answer.is_leader else ""),
                state if answer.is_joined else "not joined",
                str(answer.clusters),
                str(answer.services),
                str(answer.exports),
                str(answer.imports),
                f"{answer.ready_pods}/{answer.pods}",
                f"{answer.proxies_in_step}/{answer.proxies}",
                "-" if answer.certificate_expires is None else span(answer.certificate_expires - now),
                ago(answer.started, now),
            )
        )
    columns = ["CLUSTER", "REPLICA", "STATE", "MEMBERS", "SERVICES", "EXPORTS", "IMPORTS", "PODS", "PROXIES"]
    shown: list[RenderableType] = [table([*columns, "CERT LEFT", "AGE"], rows)]
    problems = [
        (answer.cluster, one.subject, ago(one.since, now), one.message)
        for answer in answers
        if isinstance(answer, StatusReport)
        for one in answer.problems
    ]
    if problems:
        shown += ["", table(["CLUSTER", "WHAT", "SINCE", "WHAT IS WRONG"], problems)]
    if drains:
        shown += ["", drains_table(drains, now)]
    silent = [(answer.cluster, answer.error) for answer in answers if isinstance(answer, Silent)]
    if silent:
        shown += ["", table(["CLUSTER", "WHY IT IS SILENT"], silent)]
    answered = [answer for answer in answers if isinstance(answer, StatusReport) and answer.findings]
    if answered:
        findings = [finding for answer in answered for finding in answer.findings]
        whose = [answer.cluster for answer in answered for _ in answer.findings]
        shown += ["", findings_table(findings, clusters=whose)]
    return shown


def _render_proxies(answer: Sequence[ProxyReport], now: datetime) -> list[RenderableType]:
    rows = [
        (
            proxy.node,
            proxy.role,
            proxy.replica,
            "in step"
            if proxy.is_in_step
            else "behind"
            if not proxy.rejections
            else f"{len(proxy.rejections)} rejected",
            *(_delivery(proxy.types, kind) for kind in ("Cluster", "ClusterLoadAssignment", "Listener")),
            *(_delivery(proxy.types, kind) for kind in ("RouteConfiguration", "TypedExtensionConfig", "Secret")),
            ago(proxy.connected_since, now),
        )
        for proxy in answer
    ]
    columns = ["PROXY", "ROLE", "REPLICA", "STATE", "CDS", "EDS", "LDS", "RDS", "ECDS", "SDS", "AGE"]
    rejected = [
        (proxy.node, rejection.type, rejection.name, rejection.message, ago(rejection.since, now))
        for proxy in answer
        for rejection in proxy.rejections
    ]
    shown: list[RenderableType] = [table(columns, rows)]
    if rejected:
        shown += ["", table(["PROXY", "REJECTED TYPE", "NAME", "WHY", "SINCE"], rejected)]
    return shown


def _delivery(types: Sequence[TypeReport], kind: str) -> str:
    for one in types:
        if one.type == kind:
            return f"{one.acknowledged}" + (" stalled" if one.stalled_since else "")
    return "-"
