"""The lab file as it is written: its fields, their defaults and what single values mean. Pure.

The file's own words are those of Kubernetes where it has them. `plan_checks` says what is wrong with a file beyond its
types, `plan` completes it.
"""

import re
import shlex
from datetime import timedelta
from itertools import chain

import msgspec

_DURATION = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}  # seconds


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

    @property
    def variable(self) -> str:
        """The variable that tells the app where its sidecar offers this."""
        return self.env or self.service.partition(".")[0].upper().replace("-", "_") + "_ADDRESS"


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

    @property
    def probe_path(self) -> str:
        """The path of the readiness probe; empty for a TCP probe."""
        return self.readiness.http_get.path if self.readiness.http_get else ""

    def arguments(self) -> tuple[str, ...]:
        """Returns the words of the command; raises ValueError when a text cannot be split."""
        return tuple(shlex.split(self.command) if isinstance(self.command, str) else self.command)

    def placement(self, zones: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the zone of each instance, zone after zone; a number is spread, the first zones get the rest."""
        replicas = self.replicas
        if isinstance(replicas, int):
            each, rest = divmod(replicas, len(zones))
            replicas = {zone: each + (index < rest) for index, zone in enumerate(zones)}
        return tuple(chain.from_iterable([zone] * replicas.get(zone, 0) for zone in zones))


class ClusterFile(_File, frozen=True):
    """One member cluster. `gone_after` is a duration or `never`."""

    name: str
    region: str
    zones: tuple[str, ...] = ("a",)
    cloud: str = ""
    network: str = ""
    gateways: int = 1
    control_replicas: int = 1
    etcd_replicas: int = 1
    labels: dict[str, str] = {}
    stale_after: str = "4s"
    gone_after: str = "24h"
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


NEVER = "never"
"""What `goneAfter` says when silence never makes a member's endpoints go."""


def parse_span(text: str) -> timedelta:
    """Returns a span of whole seconds from 1, as the control plane takes it; raises ValueError."""
    span = parse_duration(text)
    if span < timedelta(seconds=1) or span % timedelta(seconds=1):
        raise ValueError(f"{text!r} is not a number of whole seconds from 1")
    return span


def parse_duration(text: str) -> timedelta:
    """Returns a span written as `250ms`, `1.5s`, `2m` or `1h`; raises ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration: a number and ms, s, m or h, such as 40ms")
    return timedelta(seconds=float(match["number"]) * _UNITS[match["unit"]])
