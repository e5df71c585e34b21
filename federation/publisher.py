"""Writes into this cluster's etcd what the cluster says of itself. The leader's task."""

from federation.election import Leadership
from federation.etcd import EtcdClient
from federation.offer import Offer
from federation.replica import Replica


class Publisher:
    """Keeps the own member record and the own exports in etcd equal to what is offered."""

    def __init__(self, etcd: EtcdClient, replica: Replica, offer: Offer) -> None:
        self._etcd = etcd
        self._replica = replica
        self._offer = offer

    async def run(self, leadership: Leadership) -> None:
        """Publishes for ever; to be cancelled when leadership is lost."""
        raise NotImplementedError
