"""What the admin API answers about leaving: this cluster leaves the mesh, or forgets a member that is lost."""

from federation.etcd import EtcdClient
from federation.model import ClusterSettings
from federation.store import MeshStore


class Departures:
    """Keeps in etcd who has left; the picture, the offer and the peers follow from there."""

    def __init__(self, settings: ClusterSettings, *, store: MeshStore, etcd: EtcdClient) -> None:
        self._settings = settings
        self._store = store
        self._etcd = etcd

    async def leave(self, *, asked_by: str) -> None:
        """Says farewell to all peers; raises AdminRefused."""
        raise NotImplementedError

    async def forget(self, cluster: str, *, asked_by: str) -> None:
        """Takes a member and all that it offered out of this cluster at once; raises AdminRefused."""
        raise NotImplementedError
