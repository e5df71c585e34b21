"""Who is left when the revoked are taken away: endpoints, callers, and whose connections must end. Pure."""

from collections.abc import Iterable

from federation.model import ClusterSettings, Endpoint, ServiceKey
from federation.snapshot import Snapshot
from trust.bundle import Revocation, revoked_clusters, revoked_digest
from trust.spiffe import ClusterName, Identity


class Revoked:
    """The revocations of one picture, made ready to be asked about every endpoint."""

    def __init__(self, revoked: Iterable[Revocation]) -> None:
        """`revoked` as in Snapshot.revoked."""
        revoked = tuple(revoked)
        self.clusters = revoked_clusters(revoked)
        """The members that are revoked as a whole."""
        self._accounts: dict[tuple[str, str], set[str]] = {}
        for one in revoked:
            if one.account:
                self._accounts.setdefault((one.namespace, one.account), set()).add(one.cluster)

    def spare(self, endpoints: tuple[Endpoint, ...], *, cluster: ClusterName, key: ServiceKey) -> tuple[Endpoint, ...]:
        """Returns the endpoints of a service in `cluster` that are not revoked; the same tuple when none is."""
        if cluster in self.clusters:
            return ()
        if not self._accounts or not any(self._is_revoked(endpoint, cluster, key) for endpoint in endpoints):
            return endpoints
        return tuple(endpoint for endpoint in endpoints if not self._is_revoked(endpoint, cluster, key))

    def covers(self, identity: Identity) -> bool:
        """Says whether one identity is revoked (see trust.bundle.is_revoked)."""
        where = self._accounts.get((identity.namespace, identity.account), ())
        return identity.cluster in self.clusters or "" in where or identity.cluster in where

    def _is_revoked(self, endpoint: Endpoint, cluster: ClusterName, key: ServiceKey) -> bool:
        where = self._accounts.get((key.namespace, endpoint.account))
        return where is not None and ("" in where or cluster in where)


def tunnel_callers(snapshot: Snapshot, settings: ClusterSettings) -> tuple[ClusterName, ...]:
    """Returns the members that may open tunnels into this cluster, sorted: all others that are not revoked."""
    return tuple(sorted(snapshot.members.keys() - revoked_clusters(snapshot.revoked) - {settings.name}))


def severing_epoch(snapshot: Snapshot, settings: ClusterSettings) -> str:
    """Returns a name for the time since the last revocation that ends connections at sidecars; empty before any.

    Those are the revocations with `sever`, and of clusters that reach our pods directly: no gateway can cut them off.
    Sidecars put it into the names of their filter chains, so that with a new one every older connection drains.
    """

    def severs(one: Revocation) -> bool:
        member = snapshot.members.get(ClusterName(one.cluster))
        is_direct = not one.account and member is not None and member.network == settings.network
        return one.sever or is_direct

    return revoked_digest(one for one in snapshot.revoked if severs(one))
