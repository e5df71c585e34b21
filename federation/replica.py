"""This replica's copy of the cluster's etcd: what the leader wrote there becomes part of the picture, and stays."""

from collections.abc import Mapping

from federation.etcd import EtcdClient
from federation.model import ClusterSettings
from federation.store import MeshStore

ORIGIN = "etcd"


class Replica:
    """Follows members, imports and freshness in etcd and applies them to the store."""

    def __init__(self, settings: ClusterSettings, store: MeshStore) -> None:
        self._settings = settings
        self._store = store

    @property
    def records(self) -> Mapping[str, bytes]:
        """What etcd holds, by key, as far as it concerns the picture; this cluster's own exports too."""
        raise NotImplementedError

    @property
    def revision(self) -> int:
        """The revision of etcd that `records` shows; 0 before the first listing."""
        raise NotImplementedError

    async def run(self, etcd: EtcdClient) -> None:
        """Follows etcd for ever. Calls `store.mark_listed("etcd")` after the first listing."""
        raise NotImplementedError
