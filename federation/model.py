"""The nouns of the mesh: frozen values, equal when they mean the same.

Sources make the local ones (Service, Pod, ServiceExport), peers the remote ones (MemberCluster, ExportedService);
`snapshot` holds them all, `view` places them for one proxy. Optional text is `""`, never None.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import NewType

import msgspec

from trust.bundle import TrustBundle
from trust.spiffe import ClusterName, Identity, MeshDomain, Namespace, ServiceAccount

NetworkName = NewType("NetworkName", str)
"""Clusters of one network reach each other's pods directly; others go through a gateway."""

MESH_PORT = 15008
OUTBOUND_PORT = 15001
PROXY_ADMIN_PORT = 15000
ADS_PORT = 15012
FEDERATION_PORT = 15013
CONTROL_ADMIN_PORT = 15014
GATEWAY_PORT = 15443
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""Stands for a moment that nobody told."""
WIRE_VERSION = 1
"""Version of what members tell each other; a member with another one is shown and its unknown parts are skipped."""


class Protocol(StrEnum):
    """What a service port speaks. HTTP is HTTP/1.1, HTTP2 is cleartext HTTP/2 (h2c)."""

    HTTP = "http"
    HTTP2 = "http2"
    GRPC = "grpc"
    TCP = "tcp"


class Locality(msgspec.Struct, frozen=True, order=True):
    """Where something runs. `cloud` may be empty; an empty zone or region is a place of its own."""

    region: str = ""
    zone: str = ""
    cloud: str = ""


class ServiceKey(msgspec.Struct, frozen=True, order=True):
    """Name of a service; the same name in every member means the same service (KEP-1645, namespace sameness)."""

    namespace: Namespace
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class PodKey(msgspec.Struct, frozen=True, order=True):
    """Name of a workload instance."""

    namespace: Namespace
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class ServicePort(msgspec.Struct, frozen=True, order=True):
    """One port of a service. `target` is the pod's port, or the name of one of its container ports."""

    number: int
    protocol: Protocol
    name: str = ""
    target: int | str = 0


class Service(msgspec.Struct, frozen=True):
    """A Kubernetes Service of this cluster. An empty selector selects nothing. `selector` is sorted."""

    key: ServiceKey
    ports: tuple[ServicePort, ...]
    selector: tuple[tuple[str, str], ...] = ()


class MemberSelector(msgspec.Struct, frozen=True, order=True):
    """Some members of the mesh: the one called `name`, or, without a name, those with the label `label`=`value`."""

    name: str = ""
    label: str = ""
    value: str = ""


class ServiceExport(msgspec.Struct, frozen=True):
    """The wish that a service of this cluster be known in the others (MCS API).

    Only members that one of `export_to` selects get to know it; all do when that is empty. `created` is the object's
    creationTimestamp, None when it has none.
    """

    key: ServiceKey
    export_to: tuple[MemberSelector, ...] = ()
    created: datetime | None = None


class WhenStale(StrEnum):
    """What becomes of a silent member's endpoints: they stay behind all others (KEEP), go after a time (DROP), or stay
    only while this cluster has no endpoint of its own (PREFER_LOCAL)."""

    KEEP = "keep"
    DROP = "drop"
    PREFER_LOCAL = "prefer-local"


class ServicePolicy(msgspec.Struct, frozen=True):
    """How the callers of this cluster use a service. `drop_after` is the silence of a member that DROP waits for.

    `weights` divide the calls among members, sorted by name: each gets its share as long as it has healthy endpoints;
    members that are not named, or have 0, are called when none of these can be. Empty: the nearest are called.
    """

    when_stale: WhenStale = WhenStale.KEEP
    drop_after: timedelta = timedelta()
    weights: tuple[tuple[ClusterName, int], ...] = ()


class TcpUse(msgspec.Struct, frozen=True, order=True):
    """A plain TCP dependency that a pod declares: `host:port` of a service, offered on `listen_port` of the pod."""

    host: str
    port: int
    listen_port: int


class Pod(msgspec.Struct, frozen=True):
    """A workload instance of this cluster. `labels` and `ports` (name, number) are sorted."""

    key: PodKey
    address: str
    account: ServiceAccount
    locality: Locality
    ready: bool = True
    labels: tuple[tuple[str, str], ...] = ()
    ports: tuple[tuple[str, int], ...] = ()
    uses: tuple[TcpUse, ...] = ()


class Endpoint(msgspec.Struct, frozen=True, order=True):
    """A ready workload instance as a caller sees it: its sidecar listens on `address`:MESH_PORT."""

    address: str
    pod: str
    account: ServiceAccount
    locality: Locality
    labels: tuple[tuple[str, str], ...] = ()


class ExportedService(msgspec.Struct, frozen=True):
    """What one member offers to the others under one service name. `endpoints` are sorted by address.

    `changed_at` is when the origin's source saw the last change: the start of the convergence measurement.
    `exported_at` is when the origin began to export it: of exports that contradict each other the oldest wins (MCS).
    `version` is the one under which its origin told it, so that it need not tell it again; empty for what is our own.
    """

    cluster: ClusterName
    key: ServiceKey
    ports: tuple[ServicePort, ...]
    endpoints: tuple[Endpoint, ...]
    changed_at: datetime
    exported_at: datetime = EPOCH
    version: str = ""


class GatewayAddress(msgspec.Struct, frozen=True, order=True):
    """Where other clusters reach an east-west gateway: an IP address and a port."""

    address: str
    port: int = GATEWAY_PORT


class Drain(msgspec.Struct, frozen=True):
    """Calls are to leave a member: it gets `weight` percent (0 to 99) of what it would get, of `service` or of all.

    Its own callers leave it too with `clients`. `sever` ends what is still open to it. `since` is when the drain began.
    """

    cluster: ClusterName
    weight: int
    since: datetime
    service: ServiceKey | None = None
    clients: bool = False
    sever: bool = False


class Severance(msgspec.Struct, frozen=True):
    """What was open to `cluster`, this one, or to one `service` of it, was made to end at the end of a drain.

    At the gateways it ends, or also at the `sidecars`. It is kept when the drain is undone (see federation.severing).
    """

    cluster: ClusterName
    at: datetime
    service: ServiceKey | None = None
    sidecars: bool = False


class Departure(msgspec.Struct, frozen=True):
    """A member that left the mesh by its own will, or was made to leave by an admin of this cluster (`by`)."""

    cluster: ClusterName
    at: datetime
    by: str = ""


class MemberCluster(msgspec.Struct, frozen=True):
    """A cluster of the mesh, as it describes itself. `labels` are sorted, and nobody's word but its own.

    `drains` are those that its own admin asked for; `has_left` is its farewell. `incarnation` grows whenever it leaves
    or comes back: a farewell counts for nothing once it came back since. 0: it does not say, and is believed.
    `introduced_by` is empty when the record came from the member itself, else it is hearsay of that member: good enough
    to find the gateways, replaced as soon as the member speaks for itself.
    """

    name: ClusterName
    network: NetworkName
    region: str
    gateways: tuple[GatewayAddress, ...]
    cloud: str = ""
    zones: tuple[str, ...] = ()
    wire_version: int = WIRE_VERSION
    certificate: str = ""
    introduced_by: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    drains: tuple[Drain, ...] = ()
    has_left: bool = False
    incarnation: int = 0


class Liveness(StrEnum):
    """What is known of a member: LIVE (heard lately), STALE (silent too long), GONE (silent so long that its endpoints
    are used no more, though still known), UNKNOWN (never heard)."""

    LIVE = "live"
    STALE = "stale"
    GONE = "gone"
    UNKNOWN = "unknown"


class Thresholds(msgspec.Struct, frozen=True):
    """The silence after which a member counts as stale, and as gone. The second is longer; None: never."""

    stale_after: timedelta = timedelta(seconds=4)
    gone_after: timedelta | None = timedelta(hours=24)


class Freshness(msgspec.Struct, frozen=True):
    """Liveness of a peer, since when, and when it was last heard. All times are those of the cluster that listens.

    `silent` is how long a stale or gone peer was listened to in vain, measured by a clock that nobody sets, when this
    was written: never more than it was in truth.
    """

    state: Liveness
    since: datetime
    heard: datetime | None = None
    silent: timedelta = timedelta()


class Trust(msgspec.Struct, frozen=True):
    """Whom this `cluster` believes, and the authority that signs its certificates now (hex SHA-256 of the key)."""

    cluster: ClusterName
    bundle: TrustBundle
    authority: str


class Severity(StrEnum):
    """How bad a finding about an object is: a WARNING leaves the object in force."""

    ERROR = "error"
    WARNING = "warning"


class Finding(msgspec.Struct, frozen=True, order=True):
    """Something wrong with an object that a user wrote. `line` counts from 1; 0 when unknown.

    `object` is `Kind namespace/name`, or empty when not even that could be read. `field` is a path such as
    `spec.ports[0].port`.
    """

    where: str
    line: int
    object: str
    field: str
    message: str
    hint: str
    severity: Severity = Severity.ERROR


class ClusterSettings(msgspec.Struct, frozen=True):
    """What a control plane is told about its own cluster when it starts.

    `peer_gateways` overrides, for a named peer, the gateway addresses that the peer announces: a private link, a NAT.
    """

    name: ClusterName
    domain: MeshDomain
    network: NetworkName
    region: str
    cloud: str = ""
    zones: tuple[str, ...] = ()
    gateways: tuple[GatewayAddress, ...] = ()
    peer_gateways: Mapping[ClusterName, tuple[GatewayAddress, ...]] = MappingProxyType({})
    labels: tuple[tuple[str, str], ...] = ()
    thresholds: Thresholds = Thresholds()


class ProxyRole(StrEnum):
    """The kinds of proxy that are told something."""

    SIDECAR = "sidecar"
    GATEWAY = "gateway"


class Audience(msgspec.Struct, frozen=True):
    """All that what a proxy is told about *others* may depend on. Proxies of one audience share one compilation."""

    role: ProxyRole
    cluster: ClusterName
    network: NetworkName
    locality: Locality
    namespace: Namespace


class ProxyScope(msgspec.Struct, frozen=True):
    """All that a proxy's configuration may depend on: its audience and what is its own.

    `pod` is the workload instance of a sidecar; a gateway has none and listens on `address`.
    """

    audience: Audience
    identity: Identity
    address: str
    pod: Pod | None = None
