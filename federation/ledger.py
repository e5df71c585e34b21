"""What each proxy of this cluster acknowledged of its trust, in the cluster's etcd: the proof that rotations wait for."""

from collections.abc import Mapping
from datetime import datetime

import msgspec

from federation.etcd import EtcdClient
from federation.etcd.election import Leadership
from federation.peering.news import News
from federation.store import MeshStore


class ProxyTrust(msgspec.Struct, frozen=True, kw_only=True):
    """What one proxy acknowledged. `bundle`, `authority` and `revoked` are those of its TrustMark.

    `identity` is `namespace/account`; `revoked_at` is when it took that set; `expires`
    is the end of the certificate that it acknowledged, None before the first. `since` is when it connected, or was
    lost; `problem` why it did not take what it was offered last.
    """

    node: str
    identity: str
    bundle: str = ""
    authority: str = ""
    revoked: str = ""
    revoked_at: datetime | None = None
    expires: datetime | None = None
    is_connected: bool = True
    since: datetime
    problem: str = ""
    at: datetime


class ProxyLedger:
    """The records of all proxies of this cluster. `news` tells when one changed."""

    def __init__(self, etcd: EtcdClient) -> None:
        self._etcd = etcd
        self.news = News()

    @property
    def records(self) -> Mapping[str, ProxyTrust]:
        """What is known of each proxy, by node: etcd's copy, and what is still to be written."""
        raise NotImplementedError

    def note(self, record: ProxyTrust) -> None:
        """Takes what a proxy of this replica acknowledged; written soon, however long etcd is away. Never waits."""
        raise NotImplementedError

    def forget(self, node: str) -> None:
        """Removes the record of a proxy, soon."""
        raise NotImplementedError

    async def run(self) -> None:
        """Follows etcd and writes what was noted, for ever."""
        raise NotImplementedError

    async def sweep(self, leadership: Leadership, store: MeshStore) -> None:
        """Removes records of proxies that are no more, for ever. The leader's task."""
        raise NotImplementedError
