"""What the processes of a lab are called, and which of them a TARGET means. Pure.

CLUSTER                              all of a cluster
CLUSTER/etcd[-N]                     numbered when there are three
CLUSTER/control[-N]                  without N: all of them
CLUSTER/gateway[-N]
CLUSTER/NAMESPACE/WORKLOAD[-N]       app and sidecar
CLUSTER/NAMESPACE/WORKLOAD[-N]/app   or /sidecar
"""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from enum import StrEnum

import msgspec

from deploy.lab.plan import Plan

_NUMBERED = re.compile(r"(?P<name>.+)-(?P<number>[1-9]\d*)")


class Kind(StrEnum):
    """The kinds of process in a lab, in the order in which a cluster starts them."""

    ETCD = "etcd"
    CONTROL = "control"
    GATEWAY = "gateway"
    SIDECAR = "sidecar"
    APP = "app"


_OF_CLUSTER = (Kind.ETCD, Kind.CONTROL, Kind.GATEWAY)


class ProcessId(msgspec.Struct, frozen=True):
    """Names one process. `number` counts from 1, and is 0 for the only etcd of a cluster; namespace and workload are
    empty unless it belongs to a workload."""

    cluster: str
    kind: Kind
    number: int = 1
    namespace: str = ""
    workload: str = ""

    def __str__(self) -> str:
        match self.kind:
            case Kind.ETCD | Kind.CONTROL | Kind.GATEWAY:
                return f"{self.cluster}/{self.kind}" + (f"-{self.number}" if self.number else "")
            case Kind.SIDECAR | Kind.APP:
                return f"{self.cluster}/{self.namespace}/{self.pod}/{self.kind}"

    @property
    def pod(self) -> str:
        """The workload instance that the process belongs to; empty for others."""
        return f"{self.workload}-{self.number}" if self.workload else ""


def parse_process(text: str) -> ProcessId | None:
    """Inverse of the name of a process; None for any other text."""
    match text.split("/"):
        case [cluster, Kind.ETCD]:
            return ProcessId(cluster, Kind.ETCD, 0)
        case [cluster, name] if (found := _NUMBERED.fullmatch(name)) and found["name"] in _OF_CLUSTER:
            return ProcessId(cluster, Kind(found["name"]), int(found["number"]))
        case [cluster, namespace, pod, Kind.APP | Kind.SIDECAR as kind] if found := _NUMBERED.fullmatch(pod):
            return ProcessId(cluster, Kind(kind), int(found["number"]), namespace=namespace, workload=found["name"])
        case _:
            return None


class UnknownTarget(ValueError):
    """No process is called so; `hint` says what there is."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def all_processes(plan: Plan) -> tuple[ProcessId, ...]:
    """Returns the processes of a lab, cluster by cluster, in the order of starting."""
    return tuple(process for cluster in plan.clusters for process in _of_cluster(plan, cluster.name))


def _of_cluster(plan: Plan, name: str) -> Iterator[ProcessId]:
    [cluster] = [each for each in plan.clusters if each.name == name]
    for number in range(1, cluster.etcd_replicas + 1):
        yield ProcessId(name, Kind.ETCD, number if cluster.etcd_replicas > 1 else 0)
    for number in range(1, cluster.control_replicas + 1):
        yield ProcessId(name, Kind.CONTROL, number)
    for number in range(1, cluster.gateways + 1):
        yield ProcessId(name, Kind.GATEWAY, number)
    for kind in (Kind.SIDECAR, Kind.APP):
        for workload in cluster.workloads:
            for number in range(1, len(workload.zones) + 1):
                yield ProcessId(name, kind, number, namespace=workload.namespace, workload=workload.name)


def select(target: str, processes: Sequence[ProcessId]) -> tuple[ProcessId, ...]:
    """Returns the processes that a TARGET means, in the order given; never none. Raises UnknownTarget."""
    found = tuple(process for process in processes if target in _names(process))
    if found:
        return found
    known = list(dict.fromkeys(name for process in processes for name in _names(process)))
    near = get_close_matches(target, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`isthmus lab status` lists them"
    raise UnknownTarget(f"nothing in this lab is called {target!r}", hint)


def select_kind(target: str, processes: Sequence[ProcessId], kind: Kind) -> tuple[ProcessId, ...]:
    """Returns the processes of one kind that a TARGET means when it means no others; maybe none."""
    found = tuple(process for process in processes if target in _names(process))
    return found if all(process.kind is kind for process in found) else ()


def _names(process: ProcessId) -> tuple[str, ...]:
    """Returns all targets that mean this process, among others."""
    match process.kind:
        case Kind.ETCD | Kind.CONTROL | Kind.GATEWAY:
            return process.cluster, f"{process.cluster}/{process.kind}", str(process)
        case Kind.SIDECAR | Kind.APP:
            all_of_them = f"{process.cluster}/{process.namespace}/{process.workload}"
            this = f"{process.cluster}/{process.namespace}/{process.pod}"
            return process.cluster, all_of_them, f"{all_of_them}/{process.kind}", this, str(process)
