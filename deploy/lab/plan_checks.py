"""What is wrong with a lab file that its types cannot say. Pure."""

import re
from collections.abc import Iterator
from datetime import timedelta

from deploy.lab.plan_file import NEVER, ClusterFile, LabFile, WorkloadFile, parse_duration, parse_span
from federation.sources.documents import FieldPath
from trust.spiffe import InvalidName, is_dns_label, is_dns_name, parse_cluster, parse_domain

MAX_CLUSTERS = 63  # addresses.py gives each cluster four octets of 127.<slot>.x.y
MAX_GATEWAYS = 8
MAX_CONTROL_REPLICAS = 8
MAX_INSTANCES = 900
ETCD_REPLICAS = (1, 3)
RESERVED_PORTS = range(15000, 15100)
"""Ports of the sidecar beside each workload."""

_LABEL = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Problem = tuple[FieldPath, str, str]
"""Where in the document, what is wrong, what to do."""


def check(lab: LabFile) -> Iterator[Problem]:
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


def _check_cluster(cluster: ClusterFile) -> Iterator[Problem]:
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
    if cluster.etcd_replicas not in ETCD_REPLICAS:
        yield ("etcdReplicas",), f"{cluster.etcd_replicas} is not possible", "1, or 3 that stand the loss of one"
    yield from _check_federation(cluster)
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
        count = len(workload.placement(cluster.zones))
        total += count
        # a workload `cart-1` beside `cart` would make `cart-1` mean two things on the command line
        for name in (workload.name, *(f"{workload.name}-{number}" for number in range(1, count + 1))):
            other = pods.setdefault((workload.namespace, name), workload.name)
            if other != workload.name or (name == workload.name and _is_repeated(cluster, index)):
                yield (*at, "name"), f"{name!r} is also a name of workload {other!r}", "give it another name"
                break
    if total > MAX_INSTANCES:
        yield ("workloads",), f"{total} instances in one cluster", f"at most {MAX_INSTANCES}"


def _check_federation(cluster: ClusterFile) -> Iterator[Problem]:
    """Yields what is wrong with what a cluster tells others, and with when it believes that they are silent."""
    for label, value in cluster.labels.items():
        if not _LABEL.fullmatch(label) or not _LABEL_VALUE.fullmatch(value):
            yield ("labels", label), f"{label}={value} is not a label", "as in Kubernetes, such as tier: gold"
    spans: dict[str, timedelta] = {}
    for field, text in (("staleAfter", cluster.stale_after), ("goneAfter", cluster.gone_after)):
        if field == "goneAfter" and text == NEVER:
            continue
        try:
            spans[field] = parse_span(text)
        except ValueError as error:
            yield (field,), str(error), "such as 4s or 24h" + ("; or never" if field == "goneAfter" else "")
    if len(spans) == 2 and spans["goneAfter"] <= spans["staleAfter"]:
        yield ("goneAfter",), "a member is gone before it is stale", "give goneAfter more than staleAfter"


def _is_repeated(cluster: ClusterFile, index: int) -> bool:
    workload = cluster.workloads[index]
    return any(
        (other.namespace, other.name) == (workload.namespace, workload.name) for other in cluster.workloads[:index]
    )


def _check_workload(workload: WorkloadFile, cluster: ClusterFile) -> Iterator[Problem]:
    if not is_dns_label(workload.name):
        yield ("name",), f"{workload.name!r} is not the name of a workload", "lower-case letters, digits and '-'"
    if not is_dns_label(workload.namespace):
        yield ("namespace",), f"{workload.namespace!r} is not a namespace", "lower-case letters, digits and '-'"
    if not is_dns_name(workload.service_account):
        yield ("serviceAccount",), f"{workload.service_account!r} is not a service account", "such as cart"
    if not 1024 <= workload.port <= 65535 or workload.port in RESERVED_PORTS:
        yield ("port",), f"port {workload.port} cannot be used", "1024 to 65535; 15000 to 15099 are the sidecar's"
    try:
        if not workload.arguments():
            yield ("command",), "the command is empty", "such as [python, -m, http.server, '{port}']"
    except ValueError as error:
        yield ("command",), f"the command cannot be split into words: {error}", "write it as a list"
    if workload.readiness.http_get and not workload.probe_path.startswith("/"):
        yield ("readiness", "httpGet", "path"), f"{workload.probe_path!r} is not a path", "it starts with /"
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
        if not _VARIABLE.fullmatch(use.variable):
            yield ("uses", index, "env"), f"{use.variable!r} is not the name of a variable", "letters, digits and _"
        if use.variable in variables:
            yield ("uses", index), f"{use.variable} is set by another use already", "name the variable with `env`"
        variables.append(use.variable)
