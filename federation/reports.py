"""What a control plane says about itself: the values that the admin API serves and the command line shows.

Pure values; JSON by msgspec. Moments are aware UTC. Optional text is `""`.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

import msgspec

from federation.model import Finding, Liveness
from trust.bundle import TrustBundle
from trust.join_tokens import TokenState
from trust.statements import HeardStatement, TrustStatement


class ProblemReport(msgspec.Struct, frozen=True, order=True, rename="camel"):
    """Something that does not work now, and since when: `subject` is what ("etcd", "peer west"), `message` how."""

    subject: str
    message: str
    since: datetime


class StatusReport(msgspec.Struct, frozen=True, rename="camel"):
    """The health of one control plane replica.

    `waiting_for` names what must be listed before proxies are served ("source", "etcd", "join"); empty when ready.
    `leader` is the replica that leads as etcd last said, empty when unknown; `replicas` are the admin URLs of all.
    `warnings` are those of TrustReport; `problems` what this replica itself finds wrong now.
    """

    cluster: str
    domain: str
    replica: str
    replicas: tuple[str, ...]
    is_joined: bool
    is_ready: bool
    waiting_for: tuple[str, ...]
    is_leader: bool
    leader: str
    revision: int
    started: datetime
    services: int
    exports: int
    pods: int
    ready_pods: int
    imports: int
    clusters: int
    proxies: int
    proxies_in_step: int
    certificate_expires: datetime | None = None
    findings: tuple[Finding, ...] = ()
    warnings: tuple[str, ...] = ()
    problems: tuple[ProblemReport, ...] = ()


class DrainReport(msgspec.Struct, frozen=True, rename="camel"):
    """A drain in force: `cluster` gets `weight` percent of its calls, of `service` (`namespace/name`; "": of all).

    `asked_of` is the member whose admin asked for it: the drained one, for the whole mesh, or the asked cluster, for
    itself alone. `kept` are the services that only the drained member offers here: they stay.
    """

    cluster: str
    service: str
    weight: int
    clients: bool
    sever: bool
    since: datetime
    asked_of: str
    kept: tuple[str, ...] = ()


class ClusterReport(msgspec.Struct, frozen=True, rename="camel"):
    """One member of the mesh as the asked cluster sees it.

    `exports` counts the services that this member offers; `via` is the gateway over which the asked replica hears it
    now (only the leader does), `problem` why it is not heard; `rejected` says what was refused from it and why.
    `revoked` is who revoked it and why, empty when nobody did. `refuses` says what it refused of ours and why,
    `listens_since` since when it listens to the asked replica. `left` is when it left the mesh.
    """

    name: str
    is_self: bool
    network: str
    region: str
    cloud: str
    zones: tuple[str, ...]
    gateways: tuple[str, ...]
    state: Liveness
    since: datetime | None
    heard: datetime | None
    exports: int
    introduced_by: str = ""
    via: str = ""
    problem: str = ""
    rejected: tuple[str, ...] = ()
    revoked: str = ""
    labels: Mapping[str, str] = {}
    drains: tuple[DrainReport, ...] = ()
    refuses: tuple[str, ...] = ()
    listens_since: datetime | None = None
    left: datetime | None = None


class PlaceReport(msgspec.Struct, frozen=True, rename="camel"):
    """How many ready endpoints a service has in one zone of one member."""

    cluster: str
    region: str
    zone: str
    endpoints: int


class ExporterReport(msgspec.Struct, frozen=True, rename="camel"):
    """A member that exports a service, as the asked cluster knows it; `since` is what decides a conflict (MCS)."""

    cluster: str
    since: datetime | None
    ports: tuple[str, ...]
    endpoints: int
    state: Liveness


class ConditionReport(msgspec.Struct, frozen=True, rename="camel"):
    """A condition of the own ServiceExport, with the types and reasons of the MCS API (v1beta1)."""

    type: str
    status: str  # "True", "False" or "Unknown", as in Kubernetes
    reason: str
    message: str = ""


class ServiceReport(msgspec.Struct, frozen=True, rename="camel"):
    """One service name as the asked cluster sees it: here, in the others, or both.

    `visible_to` are the members that the own export is shown to; `conditions` are those of the own ServiceExport.
    `policy` is what its annotations say here, such as `drop after 30s` or `east=90, west=10`.
    """

    namespace: str
    name: str
    ports: tuple[str, ...]
    is_local: bool
    is_exported: bool
    places: tuple[PlaceReport, ...]
    exporters: tuple[ExporterReport, ...] = ()
    visible_to: tuple[str, ...] = ()
    conditions: tuple[ConditionReport, ...] = ()
    policy: tuple[str, ...] = ()


class TypeReport(msgspec.Struct, frozen=True, rename="camel"):
    """Delivery of one xDS type to one proxy: resources it acknowledged, responses sent to it on this stream."""

    type: str
    acknowledged: int
    pushes: int
    stalled_since: datetime | None = None


class RejectionReport(msgspec.Struct, frozen=True, rename="camel"):
    """A resource that a proxy refused: it is not sent again until it changes."""

    type: str
    name: str
    message: str
    since: datetime


class ProxyReport(msgspec.Struct, frozen=True, rename="camel"):
    """One proxy on an ADS stream of the asked replica. `identity` is its SPIFFE id.

    `is_in_step` says that it has taken the newest picture that it was offered: nothing refused, stalled or under way.
    """

    node: str
    role: str
    identity: str
    replica: str
    connected_since: datetime
    offered_revision: int
    acknowledged_revision: int
    acknowledged_at: datetime | None
    is_in_step: bool
    types: tuple[TypeReport, ...]
    rejections: tuple[RejectionReport, ...] = ()


class TokenReport(msgspec.Struct, frozen=True, rename="camel"):
    """A join token, told once: only its digest is kept. `id` names it from now on."""

    token: str
    namespace: str
    account: str
    role: str
    id: str
    expires: datetime | None = None
    once: bool = False


class KnownTokenReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A join token as it is kept: never the token itself. `last_used` is exact to an hour.

    One that is good `once` admits one proxy, the node `claimed_by`.
    """

    id: str
    state: TokenState
    namespace: str = ""
    account: str = ""
    role: str = ""
    created: datetime | None = None
    created_by: str = ""
    expires: datetime | None = None
    once: bool = False
    claimed_by: str = ""
    claimed_at: datetime | None = None
    last_used: datetime | None = None


class TrustReport(msgspec.Struct, frozen=True, rename="camel"):
    """Whom the asked cluster believes, what it says of its own trust, and what its peers last said of theirs, by name.

    `warnings` say what will break, and when, unless somebody does something about it.
    """

    bundle: TrustBundle
    own: TrustStatement
    others: tuple[HeardStatement, ...] = ()
    warnings: tuple[str, ...] = ()


class RevocationOrigin(StrEnum):
    """Who revoked somebody: the root for the whole mesh, or this cluster's own admin for it alone."""

    ROOT = "root"
    CLUSTER = "cluster"


class RevocationReport(msgspec.Struct, frozen=True, rename="camel"):
    """Somebody who is believed no longer in the asked cluster.

    `warning` says what about it may not be what was meant: that no such cluster is known here.
    """

    subject: str
    origin: RevocationOrigin
    at: datetime
    reason: str = ""
    sever: bool = False
    warning: str = ""


class ServiceLoad(msgspec.Struct, frozen=True, rename="camel"):
    """What the proxies of one replica sent to the pods of one member under a service port.

    `open` are requests, streams and TCP connections under way at the last report; the others count since the replica
    started: attempts begun, and those that ended in a 5xx or broke off.
    """

    service: str
    port: int
    member: str
    open: int
    issued: int
    failed: int


class LoadReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What one replica's proxies carry, by their own counters (Envoy's load reports).

    `reporting` counts the proxies whose last report counts: asked for every `interval` seconds, it counts while the
    proxy is connected, and for a while after. `silent` names those connected that did not report lately (three
    intervals, or ten seconds); `visitors` those that reported here and are connected to another replica, which may call
    them silent: who is in both lists has reported. `at` is when the oldest of the reports that count was made.
    """

    cluster: str
    replica: str
    interval: float
    reporting: int
    silent: tuple[str, ...]
    at: datetime | None
    started: datetime
    loads: tuple[ServiceLoad, ...]
    visitors: tuple[str, ...] = ()


class ErrorReport(msgspec.Struct, frozen=True, rename="camel"):
    """The body of every answer that is not 2xx."""

    error: str
    hint: str = ""
