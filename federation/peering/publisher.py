"""Writes into this cluster's etcd what the cluster says of itself, and again what etcd lost. The leader's task.

It also clears away the grants that their addressees have. What a new leader does not know to be lost, because it was
not there, another replica writes again that was: only where there is nothing, so that it overwrites nobody.
"""

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from federation import names
from federation.etcd import EtcdClient, EtcdRefused, EtcdUnavailable, Put, Unchanged
from federation.etcd.election import Leadership
from federation.peering import exports
from federation.peering.checks import Malformed
from federation.peering.news import News, pass_on
from federation.peering.offer import Offer
from federation.peering.records import restore_records, write_records
from federation.peering.replica import Replica
from federation.peering.trust_keeper import TrustKeeper
from federation.peering.trust_records import delivered_grants
from federation.store import MeshStore
from trust.spiffe import ClusterName

log = logging.getLogger(__name__)

_CATCH_UP = timedelta(seconds=5)
"""How long the copy of etcd may take to show a write before it is compared all the same: an outage, or lost writes."""
_RETRY = timedelta(seconds=1)
_HELP_AFTER = timedelta(seconds=5)
"""How long another replica waits for the leader to write again what etcd lost: it takes milliseconds if it knows."""


class Unwritten(NamedTuple):
    """Own records are not written: why, and since when."""

    reason: str
    since: datetime


class Publisher:
    """Keeps the own member record and the own exports in etcd equal to what is offered."""

    def __init__(
        self, keeper: TrustKeeper, *, store: MeshStore, etcd: EtcdClient, replica: Replica, offer: Offer
    ) -> None:
        self._keeper = keeper
        self._store = store
        self._etcd = etcd
        self._replica = replica
        self._offer = offer
        self._unwritten: Unwritten | None = None

    @property
    def unwritten(self) -> Unwritten | None:
        """Why own records are not written, while this replica leads; None when they are."""
        return self._unwritten

    @property
    def missing(self) -> int:
        """How many records etcd does not hold that it should, as far as this replica knows."""
        own = self._keeper.own_member().name
        keys = [names.member_key(own), *(names.export_key(own, key) for key in self._offer.exports)]
        return len(self._replica.lost) + sum(key not in self._replica.records for key in keys)

    async def run(self, leadership: Leadership) -> None:
        """Publishes for ever; to be cancelled when leadership is lost. Raises Fenced when it was lost unnoticed."""
        due = News()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(pass_on(self._offer.news, due))
                tasks.create_task(pass_on(self._replica.own_news, due))
                tasks.create_task(pass_on(self._keeper.news, due))
                tasks.create_task(self._publish(leadership, due))
        finally:
            self._unwritten = None

    async def run_helping(self) -> None:
        """Writes again, for ever, what etcd lost while the leader was not there to know. Any replica's task."""
        while True:
            seen, losses = self._replica.news.count, self._replica.losses
            if self._replica.lost:
                await asyncio.sleep(_HELP_AFTER.total_seconds())
                if self._replica.losses == losses:
                    await self._help()
            await self._replica.news.wait_newer(seen)

    async def _help(self) -> None:
        missing = {
            key: one.body for key, one in self._replica.lost.items() if one.found is None and one.body is not None
        }
        nothing_taken_back = Unchanged(names.TAKEN_BACK_KEY, self._replica.taken_back)
        while missing:
            try:
                for key, body in missing.items():
                    await self._etcd.transact([Unchanged(key, 0), nothing_taken_back], [Put(key, body)])
                await self._etcd.put(names.REFILLED_KEY, b"")
                return
            except (EtcdUnavailable, EtcdRefused) as error:
                log.warning("lost records not written", extra={"reason": str(error)})
                await asyncio.sleep(_RETRY.total_seconds())

    async def _publish(self, leadership: Leadership, due: News) -> None:
        # Before all origins have been listed, what is offered is not known, and nothing may be taken back.
        await self._store.wait_ready()
        await self._offer.wait_ready()
        while True:
            seen = due.count
            try:
                await self._write_differences(leadership)
            except (EtcdUnavailable, EtcdRefused) as error:
                if self._unwritten is None or self._unwritten.reason != str(error):
                    log.warning("own records not written", extra={"reason": str(error)})
                since = self._unwritten.since if self._unwritten else datetime.now(UTC)
                self._unwritten = Unwritten(str(error), since)
                await asyncio.sleep(_RETRY.total_seconds())
                continue
            self._unwritten = None
            await due.wait_newer(seen)

    async def _write_differences(self, leadership: Leadership) -> None:
        records = self._replica.own_records  # to walk all of a large mesh at each would cost too much
        wanted = self._wanted()
        puts = {key: body for key, body in wanted.items() if not _says_the_same(key, records.get(key), body)}
        own = names.export_prefix(self._keeper.own_member().name)
        deletes = [key for key in records if key.startswith(own) and key not in wanted]
        deletes += delivered_grants(records, now=datetime.now(UTC))
        lost = {
            key: one
            for key, one in self._replica.lost.items()
            if key not in puts and key not in deletes and not (one.body is not None and self._is_told_again(key))
        }
        if not puts and not deletes and not lost:
            return
        losses, taken_back, revision = self._replica.losses, self._replica.taken_back, 0
        if puts or deletes:
            revision = await write_records(self._etcd, leadership.guard, puts=puts, deletes=deletes)
            log.info("own records written", extra={"written": len(puts), "removed": len(deletes)})
        if lost:
            restored = await restore_records(self._etcd, leadership.guard, lost, taken_back=taken_back)
            log.info("lost records written", extra={"records": len(lost), "is_overtaken": not restored})
            revision = max(revision, restored)
        try:
            async with asyncio.timeout(_CATCH_UP.total_seconds()):
                while self._replica.revision < revision and self._replica.losses == losses:
                    await self._replica.news.wait_newer(self._replica.news.count)
        except TimeoutError:
            log.warning("etcd copy is late", extra={"wrote_revision": revision, "has_revision": self._replica.revision})

    def _is_told_again(self, key: str) -> bool:
        """Says whether a record is the freshness of a peer that is listened to: who hears it knows better by now."""
        prefix, snapshot = names.freshness_key(ClusterName("")), self._store.snapshot
        present = snapshot.members.keys() - snapshot.departures.keys()
        is_here = self._keeper.own_member().name not in snapshot.departures
        return is_here and key.startswith(prefix) and key.removeprefix(prefix) in present

    def _wanted(self) -> Mapping[str, bytes]:
        member, offers = self._keeper.own_member(), self._offer.exports
        wanted = {names.member_key(member.name): exports.encode(member)}
        for key, exported in offers.items():
            wanted[names.export_key(member.name, key)] = exports.encode(exported)
        return wanted


def _says_the_same(key: str, held: bytes | None, body: bytes) -> bool:
    """Says whether two records mean the same; the moment of the last change is no difference."""
    if held is None or held == body:
        return held is not None
    match names.parse_etcd_key(key):
        case ("exports", _, _):
            try:
                versions = {exports.export_version(exports.decode_export(each)) for each in (held, body)}
            except Malformed:
                return False
            return len(versions) == 1
        case _:
            return False
