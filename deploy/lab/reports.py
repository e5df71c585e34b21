"""What a running lab says about itself: the values of its API, printed by the command line. Pure values."""

from datetime import datetime
from enum import StrEnum

import msgspec

from deploy.lab.links import LinkState
from deploy.lab.processes import State
from deploy.lab.targets import Kind


class Phase(StrEnum):
    """Where the life of a lab stands."""

    STARTING = "starting"
    UP = "up"
    STOPPING = "stopping"


class Action(StrEnum):
    """What can be done to a process."""

    KILL = "kill"
    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    WIPE = "wipe"


class ProcessReport(msgspec.Struct, frozen=True, rename="camel"):
    """One process. `ready` is None for what has no readiness of its own. Memory in bytes, 0 when not asked for."""

    target: str
    cluster: str
    kind: Kind
    zone: str
    state: State
    address: str
    log: str
    pid: int | None = None
    exit_code: int | None = None
    ready: bool | None = None
    started: datetime | None = None
    resident_bytes: int = 0
    proportional_bytes: int = 0


class LinkReport(msgspec.Struct, frozen=True, rename="camel"):
    """What lies between two ends, such as two clusters; `latency` is the round trip in milliseconds."""

    between: tuple[str, str]
    state: LinkState
    latency: float


class ClusterReport(msgspec.Struct, frozen=True, rename="camel"):
    """Where one cluster is reached."""

    name: str
    region: str
    zones: tuple[str, ...]
    cloud: str
    network: str
    admin: str
    admin_token_file: str
    etcd: tuple[str, ...]
    gateways: tuple[str, ...]


class LabReport(msgspec.Struct, frozen=True, rename="camel"):
    """The whole lab. `events` tells what happened so far while it started, oldest first.

    `links` are those between clusters, `etcd_links` those from control planes to their etcds.

    Memory of all its processes, the lab's own included: `resident_bytes` counts shared pages once for each process that
    has them, `proportional_bytes` once.
    """

    name: str
    phase: Phase
    file: str
    domain: str
    pid: int
    addresses: str
    folder: str
    events: tuple[str, ...]
    clusters: tuple[ClusterReport, ...]
    processes: tuple[ProcessReport, ...]
    links: tuple[LinkReport, ...]
    etcd_links: tuple[LinkReport, ...]
    resident_bytes: int = 0
    proportional_bytes: int = 0


class ActionReport(msgspec.Struct, frozen=True, rename="camel"):
    """What an action did: `changed` and `unchanged` are names of processes; `ended` is when all was done (UTC)."""

    changed: tuple[str, ...]
    unchanged: tuple[str, ...]
    ended: datetime


class EnvironmentReport(msgspec.Struct, frozen=True, rename="camel"):
    """In what surroundings a process runs: for `lab exec`."""

    target: str
    folder: str
    variables: dict[str, str]


class ActionRequest(msgspec.Struct, frozen=True):
    """Asks to do something to all processes of a target."""

    action: Action
    target: str


class LinkRequest(msgspec.Struct, frozen=True):
    """Asks to change what is between two ends."""

    between: tuple[str, str]
    state: LinkState


class Refusal(msgspec.Struct, frozen=True):
    """The body of an answer that is not 200: what is wrong and what to do."""

    error: str
    hint: str = ""
