"""Who listens where in a lab: every process has an address of its own in 127.0.0.0/8 and the usual port on it. Pure.

127.<slot>.0.1            the lab itself; holding its port means owning the slot
127.<slot>.<c>.2          etcd of cluster c, counted from 1; .4 and .5 when it has three
127.<slot>.<c>.3          this cluster's ends of the links to the others, and of those to its etcd
127.<slot>.<c>.10 - .17   control plane replicas
127.<slot>.<c>.20 - .27   east-west gateways
127.<slot>.<c>.60 - .254  workload instances, then .1 - .254 of c+64, c+128, c+192
"""

from typing import NewType

import msgspec

from deploy.lab.plan import Cluster, Plan, Workload
from federation.model import ADS_PORT, CONTROL_ADMIN_PORT, GATEWAY_PORT, MESH_PORT, OUTBOUND_PORT, GatewayAddress

Slot = NewType("Slot", int)
"""Second octet of all addresses of one lab."""

SLOTS = tuple(Slot(number) for number in range(16, 240))
LOCK_PORT = 15099
ETCD_CLIENT_PORT = 2379
ETCD_PEER_PORT = 2380
_LINK_PORT_BASE = 20000
_LINK_PORTS_PER_CLUSTER = 10  # MAX_GATEWAYS fits
_ETCD_LINK_PORT_BASE = 21000  # beyond those of MAX_CLUSTERS
_ETCD_LINK_PORTS_PER_REPLICA = 10
_ETCD = (2, 4, 5)
_PAGE = 64  # MAX_CLUSTERS + 1: how far apart the octets of one cluster are
_FIRST_POD = 60
_LAST = 254


class LinkEnd(msgspec.Struct, frozen=True):
    """Where cluster `near` finds gateway number `gateway` of cluster `far`: a relay that leads to `target`."""

    near: str
    far: str
    gateway: int
    listen: GatewayAddress
    target: GatewayAddress


class EtcdLink(msgspec.Struct, frozen=True):
    """Where control plane replica number `replica` of a cluster finds its etcd number `node`: a relay to `target`."""

    cluster: str
    replica: int
    node: int
    listen: GatewayAddress
    target: GatewayAddress


class ClusterAddresses(msgspec.Struct, frozen=True):
    """The addresses of one cluster. `pods` is by (namespace, pod name)."""

    etcd: tuple[str, ...]
    control: tuple[str, ...]
    gateways: tuple[str, ...]
    pods: dict[tuple[str, str], str]

    @property
    def admin_urls(self) -> tuple[str, ...]:
        """Where the control plane replicas answer the command line."""
        return tuple(f"http://{address}:{CONTROL_ADMIN_PORT}" for address in self.control)

    @property
    def etcd_urls(self) -> tuple[str, ...]:
        """Where etcd itself listens."""
        return tuple(f"http://{address}:{ETCD_CLIENT_PORT}" for address in self.etcd)


class Addresses(msgspec.Struct, frozen=True):
    """All addresses of a lab."""

    slot: Slot
    clusters: dict[str, ClusterAddresses]
    links: tuple[LinkEnd, ...]
    etcd_links: tuple[EtcdLink, ...]


class Instance(msgspec.Struct, frozen=True):
    """One workload instance and where it listens."""

    cluster: Cluster
    workload: Workload
    number: int
    address: str

    @property
    def zone(self) -> str:
        """The zone it runs in."""
        return self.workload.zones[self.number - 1]

    @property
    def pod(self) -> str:
        """Its pod's name."""
        return self.workload.pod(self.number)


def lock_address(slot: Slot) -> tuple[str, int]:
    """Returns what the lab binds to own a slot."""
    return f"127.{slot}.0.1", LOCK_PORT


def assign(plan: Plan, slot: Slot) -> Addresses:
    """Gives every process of a plan its address. The same plan and slot give the same addresses."""
    clusters = {cluster.name: _cluster(cluster, slot, index) for index, cluster in enumerate(plan.clusters, start=1)}
    return Addresses(
        slot=slot,
        clusters=clusters,
        links=_links(plan, slot, clusters),
        etcd_links=_etcd_links(plan, slot, clusters),
    )


def listeners(addresses: Addresses) -> tuple[tuple[str, int], ...]:
    """Returns where the processes of a lab will listen for each other: what must be free for it to start."""
    relays = [*(end.listen for end in addresses.links), *(end.listen for end in addresses.etcd_links)]
    found = [(relay.address, relay.port) for relay in relays]
    for cluster in addresses.clusters.values():
        found += [(address, port) for address in cluster.etcd for port in (ETCD_CLIENT_PORT, ETCD_PEER_PORT)]
        found += [(address, port) for address in cluster.control for port in (ADS_PORT, CONTROL_ADMIN_PORT)]
        found += [(address, GATEWAY_PORT) for address in cluster.gateways]
        found += [(address, port) for address in cluster.pods.values() for port in (OUTBOUND_PORT, MESH_PORT)]
    return tuple(found)


def _cluster(cluster: Cluster, slot: Slot, index: int) -> ClusterAddresses:
    def at(number: int) -> str:
        return f"127.{slot}.{index}.{number}"

    names = [
        (workload.namespace, str(workload.pod(number)))
        for workload in cluster.workloads
        for number in range(1, len(workload.zones) + 1)
    ]
    return ClusterAddresses(
        etcd=tuple(at(number) for number in _ETCD[: cluster.etcd_replicas]),
        control=tuple(at(10 + number) for number in range(cluster.control_replicas)),
        gateways=tuple(at(20 + number) for number in range(cluster.gateways)),
        pods={name: _pod(slot, index, order) for order, name in enumerate(names)},
    )


def _pod(slot: Slot, index: int, order: int) -> str:
    first_page = _LAST - _FIRST_POD + 1
    if order < first_page:
        return f"127.{slot}.{index}.{_FIRST_POD + order}"
    page, number = divmod(order - first_page, _LAST)
    return f"127.{slot}.{index + _PAGE * (page + 1)}.{number + 1}"


def _links(plan: Plan, slot: Slot, clusters: dict[str, ClusterAddresses]) -> tuple[LinkEnd, ...]:
    return tuple(
        LinkEnd(
            near=near.name,
            far=far.name,
            gateway=gateway + 1,
            listen=GatewayAddress(
                address=f"127.{slot}.{near_index}.3",
                port=_LINK_PORT_BASE + _LINK_PORTS_PER_CLUSTER * far_index + gateway,
            ),
            target=GatewayAddress(address=address, port=GATEWAY_PORT),
        )
        for near_index, near in enumerate(plan.clusters, start=1)
        for far_index, far in enumerate(plan.clusters, start=1)
        if near is not far
        for gateway, address in enumerate(clusters[far.name].gateways)
    )


def _etcd_links(plan: Plan, slot: Slot, clusters: dict[str, ClusterAddresses]) -> tuple[EtcdLink, ...]:
    return tuple(
        EtcdLink(
            cluster=cluster.name,
            replica=replica,
            node=node,
            listen=GatewayAddress(
                address=f"127.{slot}.{index}.3",
                port=_ETCD_LINK_PORT_BASE + _ETCD_LINK_PORTS_PER_REPLICA * replica + node,
            ),
            target=GatewayAddress(address=address, port=ETCD_CLIENT_PORT),
        )
        for index, cluster in enumerate(plan.clusters, start=1)
        for replica in range(1, cluster.control_replicas + 1)
        for node, address in enumerate(clusters[cluster.name].etcd, start=1)
    )
