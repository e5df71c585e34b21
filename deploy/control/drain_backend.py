"""What the admin API answers about drains: which members calls are to leave, asked for here."""

from federation.admin import DrainOrder
from federation.etcd import EtcdClient
from federation.model import ClusterSettings
from federation.reports import DrainReport
from federation.store import MeshStore


class DrainBackend:
    """Keeps the drains that this cluster's admin asks for in etcd; the picture gets them from there."""

    def __init__(self, settings: ClusterSettings, *, store: MeshStore, etcd: EtcdClient) -> None:
        self._settings = settings
        self._store = store
        self._etcd = etcd

    def drains(self) -> tuple[DrainReport, ...]:
        """Returns the drains in force here: asked of this cluster, or said by the drained members themselves."""
        raise NotImplementedError

    async def drain(self, order: DrainOrder, *, asked_by: str) -> tuple[DrainReport, ...]:
        """Begins a drain, or changes its weight; raises AdminRefused."""
        raise NotImplementedError

    async def undrain(self, cluster: str, service: str, *, asked_by: str) -> tuple[DrainReport, ...]:
        """Ends a drain that was asked of this cluster; raises AdminRefused."""
        raise NotImplementedError
