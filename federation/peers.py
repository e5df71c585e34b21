"""Listens to the other clusters: receives what they offer and keeps it in this cluster's etcd. The leader's task."""

from collections.abc import Callable
from datetime import datetime

import msgspec

from federation.election import Leadership
from federation.etcd import EtcdClient
from federation.model import ClusterSettings, Liveness, MemberCluster
from federation.store import MeshStore
from trust.issuance import X509Svid
from trust.spiffe import ClusterName


class PeerRejection(msgspec.Struct, frozen=True, order=True):
    """Something that a peer said and that was refused. `resource` is `Kind name`."""

    resource: str
    message: str
    since: datetime


class PeerStatus(msgspec.Struct, frozen=True):
    """One peer as the leader hears it. `via` is the gateway it is heard through now, empty when it is not.

    `problem` says why the last attempt to hear it ended; empty while it is heard.
    """

    peer: ClusterName
    state: Liveness
    since: datetime | None
    heard: datetime | None
    via: str
    exports: int
    members: int
    rejections: tuple[PeerRejection, ...] = ()
    problem: str = ""


class Peers:
    """One stream to each known peer, while this replica leads."""

    def __init__(
        self,
        settings: ClusterSettings,
        member: MemberCluster,
        *,
        store: MeshStore,
        etcd: EtcdClient,
        identity: Callable[[], X509Svid],
        trust_bundle: Callable[[], bytes],
    ) -> None:
        """`identity` gives this control plane's certificate, `trust_bundle` the roots (PEM); asked at each connection.

        `member` is this cluster's own record: it introduces us to the peer.
        """
        raise NotImplementedError

    def status(self) -> tuple[PeerStatus, ...]:
        """The peers this replica listens to, by name; empty while another replica leads."""
        raise NotImplementedError

    async def run(self, leadership: Leadership) -> None:
        """Listens to every peer of the picture for ever; to be cancelled when leadership is lost."""
        raise NotImplementedError
