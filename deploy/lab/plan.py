"""What a lab file asks for: read, checked and completed with defaults. Pure.

The file's own words are those of Kubernetes where it has them. `read_plan` gives a `Plan`, in which nothing is optional
any more, or raises `InvalidLab` with every finding at once, each with its line.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import chain
from typing import NewType

import msgspec

from federation.model import Finding
from federation.sources.documents import FieldPath, convert, load_documents
from trust.spiffe import InvalidName, MeshDomain, is_dns_label, is_dns_name, parse_cluster, parse_domain

PodName = NewType("PodName", str)
"""`cart-1`: workload and number of the instance."""

MAX_CLUSTERS = 63  # addresses.py gives each cluster four octets of 127.<slot>.x.y
MAX_GATEWAYS = 8
MAX_CONTROL_REPLICAS = 8
MAX_INSTANCES = 900
RESERVED_PORTS = range(15000, 15100)
"""Ports of the sidecar beside each workload."""

_SUBJECT = "Lab"
_DURATION = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>ms|s|m)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}  # seconds
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A part of the lab file as it is written: unknown fields are errors."""


class HttpGetFile(_File, frozen=True):
    """A probe by HTTP: ready when the answer is 2xx or 3xx."""

    path: str = "/"


class ReadinessFile(_File, frozen=True):
    """How to see that a workload is ready; without `httpGet` by a TCP connection."""

    http_get: HttpGetFile | None = None


class UseFile(_File, frozen=True):
    """A plain TCP dependency: a service's host name and port; `env` names the variable that gets the address."""

    service: str
    port: int
    env: str = ""


class WorkloadFile(_File, frozen=True):
    """One program with its replicas."""

    name: str
    port: int
    command: str | list[str]
    namespace: str = "default"
    service_account: str = "default"
    labels: dict[str, str] = {}
    replicas: int | dict[str, int] = 1
    env: dict[str, str] = {}
    readiness: ReadinessFile = ReadinessFile()
    uses: list[UseFile] = []


class ClusterFile(_File, frozen=True):
    """One member cluster."""

    name: str
    region: str
    zones: tuple[str, ...] = ("a",)
    cloud: str = ""
    network: str = ""
    gateways: int = 1
    control_replicas: int = 1
    manifests: list[str] = []
    workloads: list[WorkloadFile] = []


class LinkFile(_File, frozen=True):
    """What lies between two clusters. `latency` is the round trip, such as `40ms`."""

    between: tuple[str, str]
    latency: str = "0ms"


class LabFile(_File, frozen=True):
    """The whole lab file."""

    clusters: list[ClusterFile]
    domain: str = "mesh.test"
    links: list[LinkFile] = []


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


_Problem = tuple[FieldPath, str, str]
"""Where in the document, what is wrong, what to do."""


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
    problems = [document.finding(path, message, hint=hint, subject=_SUBJECT) for path, message, hint in _check(lab)]
    if problems:
        raise InvalidLab(tuple(problems))
    return _complete(lab)


def parse_duration(text: str) -> timedelta:
    """Returns a span written as `250ms`, `1.5s` or `2m`; raises ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration: a number and ms, s or m, such as 40ms")
    return timedelta(seconds=float(match["number"]) * _UNITS[match["unit"]])


def _check(lab: LabFile) -> Iterator[_Problem]:
    """Yields all that types cannot say about a lab file."""
    try:
        parse_domain(lab.domain)
    except InvalidName as error:
        yield ("domain",), str(error), "leave it out for mesh.test"
    if not 1 <= len(lab.clusters) <= MAX_CLUSTERS:
        yield ("clusters",), f"{len(lab.clusters)} clusters", f"a lab has 1 to {MAX_CLUSTERS}"
    names = [cluster.name for cluster in lab.clusters]
    for index, cluster in enumerate(lab.clusters):
        if cluster.name in names[:index]:
            yield ("clusters", index, "name"), f"cluster {cluster.name!r} is here twice", "give it another name"
        for path, message, hint in _check_cluster(cluster):
            yield ("clusters", index, *path), message, hint
    seen: set[frozenset[str]] = set()
    for index, link in enumerate(lab.links):
        at = ("links", index)
        for side in (0, 1):
            if link.between[side] not in names:
                yield (*at, "between", side), f"no cluster {link.between[side]!r}", f"clusters are: {', '.join(names)}"
        if link.between[0] == link.between[1]:
            yield (*at, "between"), "a link is between two different clusters", "name another cluster"
        if frozenset(link.between) in seen:
            yield (*at, "between"), "this link is here twice", "a link holds for both directions: keep one"
        seen.add(frozenset(link.between))
        try:
            parse_duration(link.latency)
        except ValueError as error:
            yield (*at, "latency"), str(error), "latency is the round trip: 40ms"


def _check_cluster(cluster: ClusterFile) -> Iterator[_Problem]:
    try:
        parse_cluster(cluster.name)
    except InvalidName as error:
        yield ("name",), str(error), "such as east"
    for field, value, top in (
        ("gateways", cluster.gateways, MAX_GATEWAYS),
        ("controlReplicas", cluster.control_replicas, MAX_CONTROL_REPLICAS),
    ):
        if not 1 <= value <= top:
            yield (field,), f"{value} is not possible", f"a number from 1 to {top}"
    if not cluster.zones:
        yield ("zones",), "a cluster has one zone at least", "such as [a]"
    for index, zone in enumerate(cluster.zones):
        if not is_dns_label(zone):
            yield ("zones", index), f"{zone!r} is not the name of a zone", "lower-case letters, digits and '-'"
        if zone in cluster.zones[:index]:
            yield ("zones", index), f"zone {zone!r} is here twice", "keep one"
    pods: dict[tuple[str, str], str] = {}
    total = 0
    for index, workload in enumerate(cluster.workloads):
        at = ("workloads", index)
        problems = tuple(_check_workload(workload, cluster))
        yield from (((*at, *path), message, hint) for path, message, hint in problems)
        if problems:
            continue
        count = len(_spread(workload.replicas, cluster.zones))
        total += count
        # a workload `cart-1` beside `cart` would make `cart-1` mean two things on the command line
        for name in (workload.name, *(f"{workload.name}-{number}" for number in range(1, count + 1))):
            other = pods.setdefault((workload.namespace, name), workload.name)
            if other != workload.name or (name == workload.name and _is_repeated(cluster, index)):
                yield (*at, "name"), f"{name!r} is also a name of workload {other!r}", "give it another name"
                break
    if total > MAX_INSTANCES:
        yield ("workloads",), f"{total} instances in one cluster", f"at most {MAX_INSTANCES}"


def _is_repeated(cluster: ClusterFile, index: int) -> bool:
    workload = cluster.workloads[index]
    return any(
        (other.namespace, other.name) == (workload.namespace, workload.name) for other in cluster.workloads[:index]
    )


def _check_workload(workload: WorkloadFile, cluster: ClusterFile) -> Iterator[_Problem]:
    if not is_dns_label(workload.name):
        yield ("name",), f"{workload.name!r} is not the name of a workload", "lower-case letters, digits and '-'"
    if not is_dns_label(workload.namespace):
        yield ("namespace",), f"{workload.namespace!r} is not a namespace", "lower-case letters, digits and '-'"
    if not is_dns_name(workload.service_account):
        yield ("serviceAccount",), f"{workload.service_account!r} is not a service account", "such as cart"
    if not 1024 <= workload.port <= 65535 or workload.port in RESERVED_PORTS:
        yield ("port",), f"port {workload.port} cannot be used", "1024 to 65535; 15000 to 15099 are the sidecar's"
    try:
        if not _arguments(workload.command):
            yield ("command",), "the command is empty", "such as [python, -m, http.server, '{port}']"
    except ValueError as error:
        yield ("command",), f"the command cannot be split into words: {error}", "write it as a list"
    path = workload.readiness.http_get.path if workload.readiness.http_get else "/"
    if not path.startswith("/"):
        yield ("readiness", "httpGet", "path"), f"{path!r} is not a path", "it starts with /"
    if isinstance(workload.replicas, int):
        if workload.replicas < 0:
            yield ("replicas",), f"{workload.replicas} replicas", "a number from 0, or per zone {a: 2, b: 1}"
    else:
        for zone, count in workload.replicas.items():
            if zone not in cluster.zones:
                yield ("replicas", zone), f"no zone {zone!r} here", f"zones are: {', '.join(cluster.zones)}"
            elif count < 0:
                yield ("replicas", zone), f"{count} replicas", "a number from 0"
    for name in workload.env:
        if not _VARIABLE.fullmatch(name):
            yield ("env", name), f"{name!r} is not the name of a variable", "letters, digits and _"
    variables: list[str] = []
    for index, use in enumerate(workload.uses):
        if not is_dns_name(use.service):
            yield ("uses", index, "service"), f"{use.service!r} is not a host name", "such as cache.shop"
        if not 1 <= use.port <= 65535:
            yield ("uses", index, "port"), f"port {use.port} cannot be", "1 to 65535"
        variable = _variable(use)
        if not _VARIABLE.fullmatch(variable):
            yield ("uses", index, "env"), f"{variable!r} is not the name of a variable", "letters, digits and _"
        if variable in variables:
            yield ("uses", index), f"{variable} is set by another use already", "name the variable with `env`"
        variables.append(variable)


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
        zones=_spread(workload.replicas, zones),
        port=workload.port,
        command=_arguments(workload.command),
        env=tuple(sorted(workload.env.items())),
        probe_path=workload.readiness.http_get.path if workload.readiness.http_get else "",
        uses=_uses(workload),
    )


def _arguments(command: str | list[str]) -> tuple[str, ...]:
    return tuple(shlex.split(command) if isinstance(command, str) else command)


def _spread(replicas: int | Mapping[str, int], zones: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the zone of each instance, zone after zone; a number is spread evenly, the first zones get the rest."""
    if isinstance(replicas, int):
        each, rest = divmod(replicas, len(zones))
        replicas = {zone: each + (index < rest) for index, zone in enumerate(zones)}
    return tuple(chain.from_iterable([zone] * replicas.get(zone, 0) for zone in zones))


def _uses(workload: WorkloadFile) -> tuple[Use, ...]:
    """Gives each dependency a port of the pod: the service's own when that is free, which is easy to remember."""
    taken = {workload.port}
    uses = []
    for use in workload.uses:
        candidates = chain([use.port] if use.port >= 1024 else [], range(16000, 65536))
        listen = next(port for port in candidates if port not in taken and port not in RESERVED_PORTS)
        taken.add(listen)
        uses.append(Use(host=use.service, port=use.port, listen_port=listen, variable=_variable(use)))
    return tuple(uses)


def _variable(use: UseFile) -> str:
    return use.env or use.service.partition(".")[0].upper().replace("-", "_") + "_ADDRESS"
