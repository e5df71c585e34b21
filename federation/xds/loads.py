"""What proxies carry, by their own counters: Envoy's load reporting service, summed up per service and member.

Every sidecar reports to the replica that serves it. The localities of its endpoints have the member as `sub_zone`.
"""

import grpc

from federation.reports import LoadReport
from federation.store import MeshStore


class LoadServer:
    """Takes the load reports of the proxies of this replica."""

    def __init__(self, store: MeshStore, *, cluster: str, replica: str) -> None:
        self._store = store
        self._cluster = cluster
        self._replica = replica

    @property
    def handler(self) -> grpc.GenericRpcHandler:
        """The load reporting service, for the server of the ADS port."""
        raise NotImplementedError

    def report(self) -> LoadReport:
        """Returns the sums since this replica started, and what is open now."""
        raise NotImplementedError
