"""Members that leave: what their farewell does here, how they come back, and what is cleared away after them.

    own word with `has_left`, or an admin's forget  -->  departures/<member>  -->  all else of it goes, at once
    own word with it, of an earlier incarnation     -->  nothing: Overtaken
    own word without it                             -->  departures/<member> goes, and the member is back
    departures/<own>                                -->  what others offer goes; who they are stays

The record of the departure is the truth: what of the member is found in etcd beside it is cleared away, by the leader,
whenever it turns up (hearsay, an etcd that lost writes). A removal holds only while the record still stands unchanged,
so that nothing is taken from a member that has just come back. What others say of a member that left is not heeded.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from federation import names
from federation.etcd import (
    Condition,
    Delete,
    EtcdClient,
    EtcdRefused,
    EtcdUnavailable,
    Fenced,
    Get,
    Guard,
    KeyValue,
    Operation,
    Put,
    Unchanged,
)
from federation.etcd.election import Leadership
from federation.model import Departure, MemberCluster
from federation.peering import exports
from federation.peering.checks import Malformed
from federation.peering.decisions import numbered
from federation.peering.news import News, pass_on
from federation.peering.records import keep_member
from federation.peering.replica import Replica
from federation.snapshot import Snapshot
from federation.store import MeshStore
from trust.spiffe import ClusterName

log = logging.getLogger(__name__)

_QUIET = timedelta(milliseconds=200)
"""Between two looks for what members that left may have left behind: pictures change often."""
_RETRY = timedelta(seconds=1)
_MOST_DELETES = 100  # etcd takes 128 operations in a transaction
_ATTEMPTS = 5  # of writing a departure while another replica writes what the member says


class Overtaken(Exception):
    """A member says farewell that came back since: a replica of it speaks that is cut off from its own etcd.

    What such a replica offers, nothing, is not to be believed either.
    """


async def take_word(etcd: EtcdClient, said: MemberCluster, *, guard: Guard | None = None) -> bool:
    """Keeps what a member said of itself: that it is there, or that it left. Returns whether that was news.

    Raises Overtaken, Fenced when the guard does not hold, EtcdUnavailable, EtcdRefused.
    """
    if said.has_left:
        return await _take_farewell(etcd, said, guard=guard)
    key = names.departure_key(said.name)
    held = await etcd.get(key)
    if held is None:
        return await keep_member(etcd, said, guard=guard)
    put = Put(names.member_key(said.name), exports.encode(said))
    conditions: list[Condition] = [Unchanged(key, held.mod_revision)]
    back = [*await numbered(etcd, key), Delete(key), put, Put(names.TAKEN_BACK_KEY, key.encode())]
    is_done = await _transact(etcd, conditions, back, guard=guard)
    if is_done:
        log.info("member is back", extra={"member": said.name})
    return is_done  # if not, somebody else took its word, or sent it away once more


async def _take_farewell(etcd: EtcdClient, said: MemberCluster, *, guard: Guard | None) -> bool:
    key = names.member_key(said.name)
    for _ in range(_ATTEMPTS):
        held = await etcd.get(key)
        if 0 < said.incarnation < _incarnation(held):
            raise Overtaken(f"{said.name} says farewell, and came back since: this replica of it is not up to date")
        as_read = Unchanged(key, held.mod_revision if held else 0)
        if await depart(etcd, Departure(said.name, datetime.now(UTC)), guard=guard, condition=as_read):
            return True
        if await etcd.get(names.departure_key(said.name)) is not None:
            return False
    raise EtcdUnavailable(f"{key} is written by others all the time")


def _incarnation(held: KeyValue | None) -> int:
    """Returns the incarnation that a member told us of itself; 0 when it did not: hearsay counts for nothing."""
    try:
        known = exports.decode_member(held.value) if held else None
    except Malformed:
        return 0
    return known.incarnation if known is not None and not known.introduced_by else 0


async def depart(
    etcd: EtcdClient,
    departure: Departure,
    *,
    guard: Guard | None = None,
    condition: Condition | None = None,
    keeps_records: bool = False,
) -> bool:
    """Writes that a member left, if `condition` holds, and clears away what is held of it; returns whether it was news.

    With `keeps_records` nothing is cleared away: it is this cluster itself that leaves. Raises Fenced when the guard
    does not hold, EtcdUnavailable, EtcdRefused.
    """
    key = names.departure_key(departure.cluster)
    conditions = [Unchanged(key, 0), *([condition] if condition else [])]
    decision = [*await numbered(etcd, key), Put(key, exports.encode(departure))]
    is_news = await _transact(etcd, conditions, decision, guard=guard)
    if not is_news and departure.by:
        # What is there may have been undone, by what etcd has lost of late: it was decided anew all the same.
        await _transact(etcd, [], [*await numbered(etcd, key)], guard=guard)
    if is_news:
        log.info("member left", extra={"member": departure.cluster, "asked_by": departure.by or departure.cluster})
    if not keeps_records:
        await clear_away(etcd, departure.cluster, guard=guard)
    return is_news


async def clear_away(etcd: EtcdClient, member: ClusterName, *, guard: Guard | None = None) -> int:
    """Removes all that etcd holds of a member, as long as its departure stands; returns how many records that were.

    Raises Fenced when the guard does not hold, EtcdUnavailable, EtcdRefused.
    """
    departure = await etcd.get(names.departure_key(member))
    if departure is None:
        return 0
    found = [names.member_key(member), names.freshness_key(member), names.statement_key(member)]
    found += [names.drain_key(member, None)]
    keys = [key for key in found if await etcd.get(key) is not None]
    for prefix in (names.export_prefix(member), names.drain_key(member, None) + "/"):
        keys += [item.key for item in (await etcd.list(prefix)).items]
    removed = await _remove(etcd, keys, departure, guard=guard)
    if removed:
        log.info("member cleared away", extra={"member": member, "records": removed})
    return removed


async def clear_after_ourselves(etcd: EtcdClient, own: ClusterName, *, guard: Guard | None = None) -> int:
    """Removes all that others offer, as long as this cluster has left; returns how many records that were.

    Who they are stays, so that it can come back. Raises Fenced when the guard does not hold, EtcdUnavailable,
    EtcdRefused.
    """
    departure = await etcd.get(names.departure_key(own))
    if departure is None:
        return 0
    listings = [await etcd.list(prefix) for prefix in (names.EXPORTS_PREFIX, names.freshness_key(ClusterName("")))]
    keys = [item.key for listing in listings for item in listing.items]
    others = [key for key in keys if not key.startswith(names.export_prefix(own))]
    return await _remove(etcd, others, departure, guard=guard)


class Farewells:
    """Clears away, while this replica leads, what is found of members that left."""

    def __init__(self, *, store: MeshStore, etcd: EtcdClient, replica: Replica, own: ClusterName) -> None:
        self._store = store
        self._etcd = etcd
        self._replica = replica
        self._own = own

    async def run(self, leadership: Leadership) -> None:
        """Looks whenever etcd has news, for ever; to be cancelled when leadership is lost. Raises Fenced (in a group)
        when it was lost unnoticed."""
        due = News()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pass_on(self._replica.news, due))
            tasks.create_task(self._clear(leadership, due))

    async def _clear(self, leadership: Leadership, due: News) -> None:
        await self._store.wait_ready()
        while True:
            seen = due.count
            try:
                snapshot = self._store.snapshot
                for member in left_behind(snapshot, self._own):
                    await clear_away(self._etcd, member, guard=leadership.guard)
                if self._own in snapshot.departures and (snapshot.imports or snapshot.freshness):
                    await clear_after_ourselves(self._etcd, self._own, guard=leadership.guard)
            except (EtcdUnavailable, EtcdRefused) as error:
                log.warning("departed member not cleared away", extra={"reason": str(error)})
                await asyncio.sleep(_RETRY.total_seconds())
                continue
            await asyncio.sleep(_QUIET.total_seconds())
            await due.wait_newer(seen)


def left_behind(snapshot: Snapshot, own: ClusterName) -> tuple[ClusterName, ...]:
    """Returns the members that left and of which the picture still holds something, sorted."""
    gone = snapshot.departures.keys() - {own}
    if not gone:
        return ()
    held = gone & (snapshot.members.keys() | snapshot.freshness.keys())
    held |= {cluster for cluster, _ in snapshot.imports if cluster in gone}
    return tuple(sorted(held | {cluster for cluster, _ in snapshot.drains if cluster in gone}))


async def _remove(etcd: EtcdClient, keys: Sequence[str], departure: KeyValue, *, guard: Guard | None) -> int:
    """Removes keys as long as a departure stands unchanged, and returns how many were removed."""
    stands = Unchanged(departure.key, departure.mod_revision)
    for first in range(0, len(keys), _MOST_DELETES):
        batch: list[Operation] = [Delete(key) for key in keys[first : first + _MOST_DELETES]]
        if not await _transact(etcd, [stands], batch, guard=guard):
            return first  # it is back
    return len(keys)


async def _transact(
    etcd: EtcdClient, conditions: list[Condition], operations: list[Operation], *, guard: Guard | None
) -> bool:
    """Says whether the conditions held; raises Fenced when it was the guard that did not."""
    found = [Get(guard.key)] if guard else []
    outcome = await etcd.transact([*conditions, *([guard] if guard else [])], operations, found)
    if not outcome.succeeded and guard is not None:
        [leader] = outcome.found
        if leader is None or leader.create_revision != guard.create_revision:
            raise Fenced(f"somebody else leads: {guard.key} was written by another")
    return outcome.succeeded
