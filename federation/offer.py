"""What this cluster serves to its peers on the federation stream, and to whom."""

from collections.abc import Mapping
from datetime import datetime

import grpc
import msgspec

from federation.etcd import EtcdClient
from federation.model import ClusterSettings, ExportedService, MemberCluster, ServiceKey
from federation.replica import Replica
from federation.store import MeshStore
from trust.spiffe import ClusterName

FEDERATION_METHOD = "/isthmus.federation.v1.Federation/DeltaResources"


class ListenerStatus(msgspec.Struct, frozen=True):
    """A peer that listens to this replica. `rejections` are (resource, message) of what it refused."""

    peer: ClusterName
    since: datetime
    rejections: tuple[tuple[str, str], ...] = ()


class Offer:
    """What is offered now, kept from the picture by `run`, and the gRPC handler that serves it to peers."""

    def __init__(
        self, settings: ClusterSettings, member: MemberCluster, *, store: MeshStore, etcd: EtcdClient, replica: Replica
    ) -> None:
        """`member` is this cluster's own record (`exports.own_member`)."""
        raise NotImplementedError

    @property
    def member(self) -> MemberCluster:
        """This cluster's own record."""
        raise NotImplementedError

    @property
    def exports(self) -> Mapping[ServiceKey, ExportedService]:
        """What this cluster offers now; empty before the picture is ready."""
        raise NotImplementedError

    @property
    def handler(self) -> grpc.GenericRpcHandler:
        """The federation method, for a grpc.aio server whose credentials require client certificates of this mesh."""
        raise NotImplementedError

    def listeners(self) -> tuple[ListenerStatus, ...]:
        """The peers on this replica's federation streams now, by name."""
        raise NotImplementedError

    async def run(self) -> None:
        """Keeps what is offered in step with the picture, beats, and remembers who introduced himself. For ever."""
        raise NotImplementedError
