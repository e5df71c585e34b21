"""What each proxy of this cluster acknowledged of its trust, in its etcd: the proof that rotations wait for.

    a proxy's stream --note--> kept here --(at most every 200 ms)--> etcd --follow--> every replica

Every replica writes of the proxies on its own streams; the leader removes those that are no more. Nothing here reaches
the picture: what proxies say must not change what they are told.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import msgspec

from federation import names
from federation.etcd import Delete, EtcdClient, EtcdRefused, EtcdUnavailable, Listing, Operation, Put, Unchanged
from federation.etcd.election import Leadership
from federation.peering.news import News
from federation.proxy_trust import ProxyTrust, has_place, is_over, with_past
from federation.store import MeshStore

log = logging.getLogger(__name__)

MOST_RECORDS = 50_000
"""Of one cluster. Proxies are admitted before they are noted: this bounds what a stolen token costs, with pods that
come and go; those beyond it are served, and shown as connected without a record."""

_WRITE_EVERY = timedelta(milliseconds=200)
_RETRY = timedelta(seconds=1)
_MOST_WRITES = 100  # of one transaction; etcd takes 128
_LARGEST = 4096  # bytes of a record
_LONGEST_PROBLEM = 300  # characters
_ASK_AGAIN = timedelta(seconds=30)
"""Between two times that the record of a proxy without a pod is removed, to be written again by whoever holds it."""
_SWEEP_EVERY = timedelta(seconds=2)


class Acknowledgements:
    """What all proxies of this cluster acknowledged of their trust. `news` tells when one changed."""

    def __init__(self, etcd: EtcdClient) -> None:
        self._etcd = etcd
        self._kept: dict[str, ProxyTrust] = {}  # what etcd holds, by node
        self._revisions: dict[str, int] = {}  # of the keys of `_kept`, readable or not
        self._own: dict[str, ProxyTrust] = {}  # of proxies that are connected here
        self._due: dict[str, ProxyTrust | None] = {}  # what etcd does not hold yet; None is to be removed
        self._due_news = News()
        self._is_listed = asyncio.Event()
        self._is_full = False
        self.news = News()

    @property
    def records(self) -> Mapping[str, ProxyTrust]:
        """What is known of each proxy, by node: etcd's copy, and what is still to be written."""
        merged = {**self._kept, **self._due}
        return {node: record for node, record in merged.items() if record is not None}

    def record(self, node: str) -> ProxyTrust | None:
        """Returns what is known of one proxy."""
        return self._due[node] if node in self._due else self._kept.get(node)

    def note(self, record: ProxyTrust) -> None:
        """Takes what a proxy of this replica acknowledged; written soon, however long etcd is away. Never waits."""
        known = self.record(record.node)
        if known is not None and known.since > record.since:
            return  # it has come back since, here or to another replica
        if known is None and len(self._kept) + len(self._due) >= MOST_RECORDS:
            if not self._is_full:
                log.error("too many proxies to note what they acknowledged", extra={"most": MOST_RECORDS})
            self._is_full = True
            return
        record = with_past(msgspec.structs.replace(record, problem=_short(record.problem)), known)
        if record.is_connected:
            self._own[record.node] = record
        else:
            self._own.pop(record.node, None)
        self._write_soon(record.node, record)

    def forget(self, node: str) -> None:
        """Removes the record of a proxy, soon."""
        self._own.pop(node, None)
        self._write_soon(node, None)

    async def run(self) -> None:
        """Follows etcd and writes what was noted, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._write_all())

    async def sweep(self, leadership: Leadership, store: MeshStore) -> None:
        """Removes records of proxies that are no more, for ever. The leader's task; raises Fenced."""
        await store.wait_ready()
        gone_since: dict[str, datetime] = {}
        while True:
            now = datetime.now(UTC)
            pods, records = store.snapshot.pods.keys(), self.records
            gone = {node for node in records if not has_place(node, pods)}
            gone_since = {node: _asked_at(gone_since.get(node, now), now) for node in gone}
            dead = [
                node
                for node, record in records.items()
                if node not in self._own and is_over(record, gone_since=gone_since.get(node), now=now)
            ]
            try:
                for node in dead:
                    # Unless it was written since: then its proxy lives, at another replica.
                    unchanged = Unchanged(names.proxy_key(node), self._revisions.get(node, 0))
                    await self._etcd.transact([leadership.guard, unchanged], [Delete(names.proxy_key(node))])
            except (EtcdUnavailable, EtcdRefused):
                pass  # at the next look
            await asyncio.sleep(_SWEEP_EVERY.total_seconds())

    def _write_soon(self, node: str, record: ProxyTrust | None) -> None:
        self._due[node] = record
        self._due_news.tell()
        self.news.tell()

    async def _write_all(self) -> None:
        await self._is_listed.wait()  # before, nobody knows what would be overwritten
        is_failing = False
        while True:
            seen = self._due_news.count
            try:
                await self._write()
            except (EtcdUnavailable, EtcdRefused) as error:
                if not is_failing:
                    log.warning("what proxies acknowledged is not written", extra={"reason": str(error)})
                is_failing = True
                await asyncio.sleep(_RETRY.total_seconds())
                continue
            if is_failing:
                log.info("what proxies acknowledged is written again")
            is_failing = False
            await asyncio.sleep(_WRITE_EVERY.total_seconds())
            if not self._due:
                await self._due_news.wait_newer(seen)

    async def _write(self) -> None:
        batch = dict(list(self._due.items())[:_MOST_WRITES])
        if not batch:
            return
        operations: list[Operation] = [
            Delete(names.proxy_key(node)) if record is None else Put(names.proxy_key(node), msgspec.json.encode(record))
            for node, record in batch.items()
        ]
        outcome = await self._etcd.transact([], operations)
        for node, record in batch.items():
            if self._due.get(node) is record:
                del self._due[node]
                # The watch brings it too, later: between, nothing may look as it was before.
                if self._revisions.get(node, 0) < outcome.revision:
                    self._keep(node, record, outcome.revision)

    async def _follow(self) -> None:
        async with aclosing(self._etcd.follow(names.PROXIES_PREFIX)) as following:
            async for item in following:
                if isinstance(item, Listing):
                    self._relist(item)
                    missing = self._own.keys() - self._kept.keys()
                else:
                    node = _node(item.key)
                    if self._revisions.get(node, 0) > item.revision:
                        continue  # what this replica wrote since
                    found = item.item
                    self._keep(node, _read(item.key, found.value) if found else None, item.revision)
                    missing = {node} & self._own.keys()
                for node in missing:
                    self._insist(node)
                self.news.tell()

    def _relist(self, listing: Listing) -> None:
        # What this replica wrote while etcd listed is there too, unless etcd has lost data.
        newer = {} if listing.is_after_loss else {n: r for n, r in self._revisions.items() if r > listing.revision}
        kept = {node: self._kept[node] for node in newer}
        self._kept, self._revisions = {}, {}
        for item in listing.items:
            self._keep(_node(item.key), _read(item.key, item.value), item.mod_revision)
        self._kept |= kept
        self._revisions |= newer
        for noted in (self._own, self._due):
            for node, record in noted.items():
                if record is not None:
                    noted[node] = with_past(record, self._kept.get(node))
        self._is_listed.set()

    def _keep(self, node: str, record: ProxyTrust | None, revision: int) -> None:
        if len(self._revisions) >= MOST_RECORDS and node not in self._revisions:
            return
        self._revisions[node] = revision
        if record is None:
            self._kept.pop(node, None)
            self._revisions.pop(node, None)
        else:
            self._kept[node] = record
            due = self._due.get(node)
            if due is not None and due.since < record.since:
                del self._due[node]  # it has come back since, to another replica

    def _insist(self, node: str) -> None:
        """Writes again what etcd lost, or what another replica overwrote late, of a proxy that is connected here."""
        mine, found = self._own[node], self._kept.get(node)
        if found is not None and found.since > mine.since:
            del self._own[node]  # it has gone to another replica
        elif node not in self._due and (found is None or found.since < mine.since):
            # With a new moment: it says that the proxy was there after whoever removed it had looked.
            self._write_soon(node, msgspec.structs.replace(mine, at=datetime.now(UTC)))


def _asked_at(asked: datetime, now: datetime) -> datetime:
    return asked if now - asked < _ASK_AGAIN else now


def _node(key: str) -> str:
    return key.removeprefix(names.PROXIES_PREFIX)


def _read(key: str, body: bytes) -> ProxyTrust | None:
    """Returns a record; None for one that nobody can read: its proxy is then one that said nothing."""
    if len(body) > _LARGEST:
        return None
    try:
        record = msgspec.json.decode(body, type=ProxyTrust)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return record if record.node == _node(key) else None


def _short(text: str) -> str:
    short = text if len(text) <= _LONGEST_PROBLEM else text[:_LONGEST_PROBLEM] + "..."
    return "".join(letter if letter.isprintable() else " " for letter in short)
