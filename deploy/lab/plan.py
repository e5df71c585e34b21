"""What a lab file asks for: read, checked and completed with defaults. Pure.

`read_plan` gives a `Plan`, in which nothing is optional any more, or raises `InvalidLab` with every finding at once,
each with its line.
"""

from collections.abc import Mapping
from datetime import timedelta
from itertools import chain
from typing import NewType

import msgspec

from deploy.lab.plan_checks import RESERVED_PORTS, check
from deploy.lab.plan_file import NEVER, LabFile, WorkloadFile, parse_duration, parse_span
from federation.model import Finding, Thresholds
from federation.sources.documents import convert, load_documents
from trust.spiffe import MeshDomain, parse_domain

PodName = NewType("PodName", str)
"""`cart-1`: workload and number of the instance."""

_SUBJECT = "Lab"


class Use(msgspec.Struct, frozen=True):
    """A declared TCP dependency: the sidecar offers `host:port` on `listen_port`; `variable` tells the app."""

    host: str
    port: int
    listen_port: int
    variable: str


class Workload(msgspec.Struct, frozen=True):
    """One program. `zones` holds the zone of each instance; instance n is `zones[n - 1]`.

    `probe_path` is empty for a TCP probe.
    """

    name: str
    namespace: str
    account: str
    labels: tuple[tuple[str, str], ...]
    zones: tuple[str, ...]
    port: int
    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    probe_path: str
    uses: tuple[Use, ...]

    def pod(self, number: int) -> PodName:
        """Returns the name of instance `number`, from 1."""
        return PodName(f"{self.name}-{number}")


class Cluster(msgspec.Struct, frozen=True):
    """One member cluster. `manifests` are paths as written, relative to the lab file's folder."""

    name: str
    region: str
    zones: tuple[str, ...]
    cloud: str
    network: str
    gateways: int
    control_replicas: int
    etcd_replicas: int
    labels: tuple[tuple[str, str], ...]
    thresholds: Thresholds
    manifests: tuple[str, ...]
    workloads: tuple[Workload, ...]


class Plan(msgspec.Struct, frozen=True):
    """All that a lab is. `latency` is by unordered pair of cluster names, the round trip."""

    domain: MeshDomain
    clusters: tuple[Cluster, ...]
    latency: Mapping[frozenset[str], timedelta]

    def round_trip(self, one: str, other: str) -> timedelta:
        """Returns the latency that the link between two clusters adds to a round trip."""
        return self.latency.get(frozenset((one, other)), timedelta())


class InvalidLab(ValueError):
    """The lab file is wrong; `findings` holds all that was found, by line."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        super().__init__("; ".join(f"{each.where}:{each.line}: {each.message}" for each in findings))
        self.findings = findings


def read_plan(text: str, where: str) -> Plan:
    """Reads a lab file; `where` names it in findings. Raises InvalidLab."""
    documents, findings = load_documents(text, where)
    if findings:
        raise InvalidLab(tuple(findings))
    if len(documents) != 1:
        message = f"a lab file is one YAML document, here are {len(documents)}"
        raise InvalidLab((Finding(where, 1, _SUBJECT, "", message, "put all clusters into one list `clusters:`"),))
    [document] = documents
    lab, findings = convert(document, LabFile, subject=_SUBJECT)
    if lab is None:
        raise InvalidLab(tuple(findings))
    problems = [document.finding(path, message, hint=hint, subject=_SUBJECT) for path, message, hint in check(lab)]
    if problems:
        raise InvalidLab(tuple(problems))
    return _complete(lab)


def _complete(lab: LabFile) -> Plan:
    return Plan(
        domain=parse_domain(lab.domain),
        clusters=tuple(
            Cluster(
                name=cluster.name,
                region=cluster.region,
                zones=cluster.zones,
                cloud=cluster.cloud,
                network=cluster.network or cluster.name,
                gateways=cluster.gateways,
                control_replicas=cluster.control_replicas,
                etcd_replicas=cluster.etcd_replicas,
                labels=tuple(sorted(cluster.labels.items())),
                thresholds=Thresholds(
                    stale_after=parse_span(cluster.stale_after),
                    gone_after=None if cluster.gone_after == NEVER else parse_span(cluster.gone_after),
                ),
                manifests=tuple(cluster.manifests),
                workloads=tuple(_workload(workload, cluster.zones) for workload in cluster.workloads),
            )
            for cluster in lab.clusters
        ),
        latency={frozenset(link.between): parse_duration(link.latency) for link in lab.links},
    )


def _workload(workload: WorkloadFile, zones: tuple[str, ...]) -> Workload:
    return Workload(
        name=workload.name,
        namespace=workload.namespace,
        account=workload.service_account,
        labels=tuple(sorted((workload.labels or {"app": workload.name}).items())),
        zones=workload.placement(zones),
        port=workload.port,
        command=workload.arguments(),
        env=tuple(sorted(workload.env.items())),
        probe_path=workload.probe_path,
        uses=_uses(workload),
    )


def _uses(workload: WorkloadFile) -> tuple[Use, ...]:
    """Gives each dependency a port of the pod: the service's own when that is free, which is easy to remember."""
    taken = {workload.port}
    uses = []
    for use in workload.uses:
        candidates = chain([use.port] if use.port >= 1024 else [], range(16000, 65536))
        listen = next(port for port in candidates if port not in taken and port not in RESERVED_PORTS)
        taken.add(listen)
        uses.append(Use(host=use.service, port=use.port, listen_port=listen, variable=use.variable))
    return tuple(uses)
