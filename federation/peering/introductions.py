"""Members that introduced themselves on a federation stream are remembered in etcd, so that the leader listens to them.

This is how one introduction lets a newcomer meet all: who was joined `via` one member calls it, and that member tells
the others. A member's own word also replaces what is known of it, so one that moved to other gateways is found again.
"""

import asyncio
import logging
from contextlib import suppress
from datetime import timedelta

from federation.etcd import EtcdClient, EtcdRefused, EtcdUnavailable
from federation.model import MemberCluster
from federation.peering.farewells import Overtaken, take_word
from federation.peering.news import News
from trust.spiffe import ClusterName

log = logging.getLogger(__name__)

_RETRY = timedelta(seconds=1)


class Introductions:
    """What members said of themselves and etcd may not know yet: the latest of each."""

    def __init__(self, etcd: EtcdClient) -> None:
        self._etcd = etcd
        self._said: dict[ClusterName, MemberCluster] = {}
        self._news = News()

    def note(self, member: MemberCluster) -> None:
        """Takes what a member said of itself."""
        self._said[member.name] = member
        self._news.tell()

    async def run(self) -> None:
        """Writes what was noted into etcd, for ever. Any replica may: it is the member's own word, whoever hears it."""
        is_failing = False
        while True:
            seen = self._news.count
            try:
                await self._write()
            except (EtcdUnavailable, EtcdRefused) as error:
                if not is_failing:
                    log.warning("introduction not written", extra={"reason": str(error)})
                is_failing = True
                await asyncio.sleep(_RETRY.total_seconds())
                continue
            is_failing = False
            await self._news.wait_newer(seen)

    async def _write(self) -> None:
        for name, member in list(self._said.items()):
            with suppress(Overtaken):
                if await take_word(self._etcd, member):
                    log.info("member introduced itself", extra={"member": name})
            if self._said.get(name) is member:
                del self._said[name]
