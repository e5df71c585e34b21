"""The order in which a lab comes to life.

each cluster:   etcd -> control plane, not yet joined
the root:       is made; each cluster asks, is granted, accepts; the first one introduces the others
each cluster:   control plane serves -> tokens -> gateways, sidecars, programs
all:            every cluster hears every other, every program is ready
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice

import aiohttp

from deploy.admin_client import AdminClient, ControlUnreachable
from deploy.failures import CommandFailed
from deploy.lab.addresses import ETCD_CLIENT_PORT
from deploy.lab.commands import admin_token_file
from deploy.lab.plan import Cluster
from deploy.lab.state import write_atomically
from deploy.lab.supervisor import Lab
from deploy.lab.targets import Kind, ProcessId
from federation.model import ADS_PORT, CONTROL_ADMIN_PORT, PROXY_ADMIN_PORT, Liveness, Locality, PodKey
from federation.names import gateway_node, sidecar_node
from federation.xds.bootstrap import TRUST_BUNDLE_FILE, bootstrap, token_file
from trust.custody import FileCustody
from trust.joining import Introduction
from trust.refusals import Refusal
from trust.root import Root
from trust.spiffe import (
    GATEWAY_ACCOUNT,
    SYSTEM_NAMESPACE,
    ClusterName,
    Namespace,
    control_dns_name,
    control_identity,
    spiffe_id,
)

PATIENCE = timedelta(seconds=60)
"""How long anything may take to start; a loaded machine of two cores needs a few seconds."""

_POLL = 0.05  # seconds between two looks at something that starts
_ANSWER = 2.0  # seconds that a health question may take
_TAIL = 15  # lines of a log that an error shows


class BringUpFailed(CommandFailed):
    """Something did not come up; the hint ends with the last lines of its log."""


async def bring_up(lab: Lab) -> None:
    """Starts everything in order. Raises CommandFailed with the log of what did not come up."""
    began = datetime.now(UTC)

    def tell(text: str) -> None:
        lab.tell(f"{(datetime.now(UTC) - began).total_seconds():5.1f} s  {text}")

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ANSWER)) as http:
        await _each_cluster(lab, lambda cluster: _start_control(lab, http, cluster))
        tell("etcd and control planes run")
        await _join(lab)
        tell(f"joined: {', '.join(cluster.name for cluster in lab.plan.clusters)}")
        await _each_cluster(lab, lambda cluster: _start_workloads(lab, cluster))
        tell("gateways, sidecars and programs run")
        await _each_cluster(lab, lambda cluster: _wait_proxies(lab, http, cluster))
        tell("every proxy is configured, every program is ready")
        await _each_cluster(lab, lambda cluster: _wait_peers(lab, cluster))
        if len(lab.plan.clusters) > 1:
            tell("every cluster hears every other")


async def _each_cluster(lab: Lab, step: Callable[[Cluster], Awaitable[None]]) -> None:
    async def run(cluster: Cluster) -> None:
        await step(cluster)

    async with asyncio.TaskGroup() as group:
        for cluster in lab.plan.clusters:
            group.create_task(run(cluster))


def _processes(lab: Lab, cluster: Cluster, *kinds: Kind) -> list[ProcessId]:
    return [process for process in lab.select(cluster.name) if process.kind in kinds]


async def _start_control(lab: Lab, http: aiohttp.ClientSession, cluster: Cluster) -> None:
    etcds = _processes(lab, cluster, Kind.ETCD)
    for etcd in etcds:
        await lab.start_process(etcd)  # one of three is not healthy without a second
    for etcd in etcds:
        await _until(lab, etcd, partial(_answers, http, f"http://{lab.address(etcd)}:{ETCD_CLIENT_PORT}/health"))
    replicas = _processes(lab, cluster, Kind.CONTROL)
    for replica in replicas:
        await lab.start_process(replica)
        await _until(lab, replica, partial(_is_open, lab, replica))


async def _is_open(lab: Lab, replica: ProcessId) -> bool:
    """Says whether the admin API of a replica answers, joined or not."""
    try:
        async with _admin(lab, replica) as admin:
            await admin.status()
    except (ControlUnreachable, OSError):
        return False  # it does not listen yet, or its token is not written yet
    return True


def _admin(lab: Lab, replica: ProcessId) -> AdminClient:
    token = admin_token_file(lab.folder, replica.cluster).read_text().strip()
    return AdminClient(f"http://{lab.address(replica)}:{CONTROL_ADMIN_PORT}", token)


@asynccontextmanager
async def _asking(lab: Lab, replica: ProcessId) -> AsyncIterator[AdminClient]:
    """Gives the admin API of a replica that should answer; raises BringUpFailed with its log when it does not."""
    async with _admin(lab, replica) as admin:
        try:
            yield admin
        except ControlUnreachable as error:
            raise _failure(lab, replica, f"{replica} does not answer any more: {error.message}") from error


async def _join(lab: Lab) -> None:
    """Makes the root and every cluster a member."""
    now = datetime.now(UTC)
    introductions: list[Introduction] = []
    try:
        custody = FileCustody(lab.folder.root)
        root = await asyncio.to_thread(lambda: Root.init(lab.folder.root, lab.plan.domain, custody=custody, now=now))
        for cluster in lab.plan.clusters:
            first = _processes(lab, cluster, Kind.CONTROL)[0]
            async with _asking(lab, first) as admin:
                request = await admin.join_request()
                sign = partial(root.grant, request, now=datetime.now(UTC), introductions=tuple(introductions))
                grant = await asyncio.to_thread(sign)
                await admin.join(grant)
                introductions = introductions or [await admin.member()]
    except Refusal as error:
        raise BringUpFailed(f"a cluster of the lab was refused: {error}", "this is a defect of Isthmus") from error


async def _start_workloads(lab: Lab, cluster: Cluster) -> None:
    for replica in _processes(lab, cluster, Kind.CONTROL):
        await _until(lab, replica, partial(_is_serving, lab, replica))
    async with _asking(lab, _processes(lab, cluster, Kind.CONTROL)[0]) as admin:
        for proxy in _processes(lab, cluster, Kind.GATEWAY, Kind.SIDECAR):
            namespace, account, role = str(SYSTEM_NAMESPACE), str(GATEWAY_ACCOUNT), "gateway"
            if proxy.kind is Kind.SIDECAR:
                workload = lab.instance(proxy).workload
                namespace, account, role = workload.namespace, workload.account, "sidecar"
            token = await admin.create_token(namespace, account, role)
            await asyncio.to_thread(_write_proxy, lab, cluster, proxy, token=token.token)
            await lab.start_process(proxy)
    for app in _processes(lab, cluster, Kind.APP):
        await lab.start_process(app)


async def _is_serving(lab: Lab, replica: ProcessId) -> bool:
    try:
        async with _admin(lab, replica) as admin:
            return (await admin.status()).is_ready
    except ControlUnreachable:
        return False


def _write_proxy(lab: Lab, cluster: Cluster, proxy: ProcessId, *, token: str) -> None:
    """Writes what an Envoy starts with: bootstrap and its join token; whom it trusts is its control plane's file."""
    folder = lab.folder.proxy(proxy)
    folder.mkdir(mode=0o700, parents=True)
    write_atomically(folder / "token.json", token_file(token))
    name = ClusterName(cluster.name)
    if proxy.kind is Kind.SIDECAR:
        node = sidecar_node(name, PodKey(Namespace(proxy.namespace), proxy.pod))
        zone = lab.instance(proxy).zone
    else:
        node = gateway_node(name, f"gateway-{proxy.number}")
        zone = cluster.zones[(proxy.number - 1) % len(cluster.zones)]
    config = bootstrap(
        node,
        Locality(region=cluster.region, zone=zone, cloud=cluster.cloud),
        address=lab.address(proxy),
        control_addresses=[(address, ADS_PORT) for address in lab.addresses.clusters[cluster.name].control],
        control_dns_name=control_dns_name(name, lab.plan.domain),
        control_spiffe_id=spiffe_id(control_identity(name), lab.plan.domain),
        trust_bundle_path=str(lab.folder.of(cluster.name, "control") / TRUST_BUNDLE_FILE),
        token_path=str(folder / "token.json"),
    )
    write_atomically(folder / "bootstrap.json", json.dumps(config, indent=1))


async def _wait_proxies(lab: Lab, http: aiohttp.ClientSession, cluster: Cluster) -> None:
    for proxy in _processes(lab, cluster, Kind.GATEWAY, Kind.SIDECAR):
        url = f"http://{lab.address(proxy)}:{PROXY_ADMIN_PORT}/ready"
        await _until(lab, proxy, partial(_answers, http, url))
    for app in _processes(lab, cluster, Kind.APP):
        await _until(lab, app, partial(_is_ready, lab, app))


async def _wait_peers(lab: Lab, cluster: Cluster) -> None:
    """Waits until the cluster hears all others."""
    replicas = _processes(lab, cluster, Kind.CONTROL)

    async def hears_all() -> bool:
        async with _admin(lab, replicas[0]) as admin:
            known = await admin.clusters()
        live = {member.name for member in known if member.is_self or member.state is Liveness.LIVE}
        return live >= {each.name for each in lab.plan.clusters}

    await _until(lab, replicas[0], hears_all)


async def _is_ready(lab: Lab, app: ProcessId) -> bool:
    return lab.is_ready(app)


async def _answers(http: aiohttp.ClientSession, url: str) -> bool:
    """Says whether a URL answers 200."""
    try:
        async with http.get(url) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _until(lab: Lab, process: ProcessId, check: Callable[[], Awaitable[bool]]) -> None:
    """Waits until `check` holds; raises BringUpFailed when the process ends before, or after PATIENCE."""
    child = lab.children[str(process)]
    try:
        async with asyncio.timeout(PATIENCE.total_seconds()):
            while not await check():
                if not child.is_alive:
                    raise _failure(lab, process, f"{process} ended with status {child.exit_code} while it started")
                await asyncio.sleep(_POLL)
    except TimeoutError as error:
        message = f"{process} is not ready after {PATIENCE.total_seconds():.0f} s"
        raise _failure(lab, process, message) from error


def _failure(lab: Lab, process: ProcessId, message: str) -> BringUpFailed:
    log = lab.folder.log(process)
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    tail = "\n".join(f"  | {line}" for line in islice(lines, max(0, len(lines) - _TAIL), None))
    return BringUpFailed(message, f"the end of its log, {log}:\n{tail}")
