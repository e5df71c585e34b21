"""This replica's copy of the cluster's etcd: what the leader wrote there becomes part of the picture, and stays.

Nothing leaves the picture because etcd forgot it: when etcd comes back with less than it had acknowledged (lost writes,
an empty data folder), what is missing stays here as `lost`, and the leader's publisher writes it again. What an admin
of this cluster decided does not come back in an older form either: an undone drain stays undone. What was decided after
the loss stands, whatever was known here before (`decisions`).
"""

import logging
from collections.abc import Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from federation import names
from federation.etcd import EtcdClient, Event, Listing
from federation.model import ClusterSettings, ExportedService, Finding
from federation.peering.checks import Malformed
from federation.peering.decisions import decided_since, is_decision, number_of
from federation.peering.news import News
from federation.peering.records import Lost, Place, place_of, read_record
from federation.peering.trust_records import is_trust_record
from federation.snapshot import Change, Replace, Section
from federation.store import MeshStore

log = logging.getLogger(__name__)

ORIGIN = "etcd"
"""Name under which the store waits for the first listing."""

_SECTIONS = (
    Section.MEMBERS,
    Section.IMPORTS,
    Section.FRESHNESS,
    Section.REVOCATIONS,
    Section.DRAINS,
    Section.SEVERANCES,
    Section.DEPARTURES,
)
_OF_OTHERS = frozenset({Section.IMPORTS, Section.FRESHNESS})
_ADMINS = frozenset({Section.REVOCATIONS, Section.DRAINS, Section.SEVERANCES, Section.DEPARTURES})
"""Records that nobody tells again: of these it is remembered what they said before."""
_SIGNS = frozenset({names.REFILLED_KEY, names.TAKEN_BACK_KEY})
_MOST_PAST = 4096
_WHERE = "etcd "
"""Begins the place of a finding about a record: the key follows."""


class Replica:
    """Follows the shared records in etcd and applies to the store what belongs into the picture."""

    def __init__(self, settings: ClusterSettings, store: MeshStore) -> None:
        self._settings = settings
        self._store = store
        self._records: dict[str, bytes] = {}
        self._own_records: dict[str, bytes] = {}
        self._revision = 0
        self._taken_back = 0
        self._decided = 0  # the highest number of a decision that was seen
        self._losses = 0
        self._lost: dict[str, Lost] = {}
        self._past: dict[tuple[str, bytes], None] = {}  # what records of _ADMINS said before, the oldest first
        self.news = News()
        self.own_news = News()

    @property
    def records(self) -> Mapping[str, bytes]:
        """What etcd holds, by key: members, freshness, exports (those of this cluster too), revocations, statements
        and grants. `news` tells when it changed."""
        return MappingProxyType(self._records)

    @property
    def own_records(self) -> Mapping[str, bytes]:
        """Those of `records` that are neither what the others offer nor when they were heard: of a large mesh, few.
        `own_news` tells when they changed, and when something changed that had been lost."""
        return MappingProxyType(self._own_records)

    @property
    def revision(self) -> int:
        """The revision of etcd that `records` shows; 0 before the first listing."""
        return self._revision

    @property
    def taken_back(self) -> int:
        """The revision at which something was last taken back, as far as `lost` shows; 0 for never."""
        return self._taken_back

    @property
    def losses(self) -> int:
        """How often it came into doubt what etcd holds: then whoever wrote must make sure of what is there.

        It does when etcd comes back with less than it had, and again when that is written again: something of it may
        have been taken back by its owner in the meantime.
        """
        return self._losses

    @property
    def lost(self) -> Mapping[str, Lost]:
        """What etcd lost and does not hold again yet, by key, except what this cluster says of itself."""
        return MappingProxyType(self._lost)

    def decision(self, key: str) -> int:
        """Returns the number of the last decision about the record under `key`; 0 when none is known."""
        where = names.decided_key(key)
        lost = self._lost.get(where)
        return number_of(where, lost.body if lost else self._records.get(where))

    async def run(self, etcd: EtcdClient) -> None:
        """Follows etcd for ever; the store hears of the first listing under ORIGIN."""
        async with aclosing(etcd.follow(names.ETCD_PREFIX)) as following:
            async for item in following:
                match item:
                    case Listing():
                        self._relist(item)
                        self._store.mark_listed(ORIGIN)
                        self.news.tell()
                        self.own_news.tell()
                    case Event():
                        was_lost = item.key in self._lost
                        self._follow(item)
                        # What proxies acknowledge comes in the same stream, and is much.
                        if _is_ours(item.key) or item.key in _SIGNS:
                            self.news.tell()
                            if was_lost or self._concerns_us(item.key):
                                self.own_news.tell()

    def _relist(self, listing: Listing) -> None:
        if listing.is_after_loss:
            self._losses += 1
            log.warning("etcd lost data", extra={"had_revision": self._revision, "has_revision": listing.revision})
        self._revision = listing.revision
        records = {item.key: item.value for item in listing.items if _is_ours(item.key)}
        revisions = {item.key: item.mod_revision for item in listing.items}
        self._taken_back = revisions.get(names.TAKEN_BACK_KEY, 0)
        lost = self._what_is_lost(records, is_after_loss=listing.is_after_loss)
        self._lost = {key: one._replace(revision=revisions.get(key, 0)) for key, one in lost.items()}
        self._decided = max((self._decided, *(number_of(key, body) for key, body in records.items())))
        for key, held in self._records.items():
            if key not in self._lost:
                self._remember(key, held, records.get(key))
        self._records = records
        self._own_records = {key: body for key, body in records.items() if self._concerns_us(key)}
        effective = {key: body for key, body in records.items() if key not in self._lost}
        effective |= {key: lost.body for key, lost in self._lost.items() if lost.body is not None}
        before = self._store.snapshot
        known: dict[Section, Mapping[Any, Any]] = {section: getattr(before, section.value) for section in _SECTIONS}
        values: dict[Section, dict[Any, Any]] = {section: {} for section in _SECTIONS}
        findings = {}
        for key, body in effective.items():
            place = self._place(key)
            if place is None:
                continue
            try:
                values[place.section][place.key] = read_record(key, body)
            except Malformed as error:
                findings[_WHERE + key] = (_finding(key, error),)
                if place.key in known[place.section]:
                    values[place.section][place.key] = known[place.section][place.key]
        cleared = {where for where in before.findings if where.startswith(_WHERE)} - findings.keys()
        self._store.apply(
            [
                *(Replace(section, found) for section, found in values.items()),
                *(Change(Section.FINDINGS, where, found) for where, found in findings.items()),
                *(Change(Section.FINDINGS, where, None) for where in cleared),
            ]
        )

    def _follow(self, event: Event) -> None:
        self._revision = event.revision
        if event.key == names.REFILLED_KEY:
            self._losses += 1
        if event.key == names.TAKEN_BACK_KEY:
            self._taken_back = event.revision if event.item else 0
        if not _is_ours(event.key):
            return
        if self._lost.pop(event.key, None) and not self._lost:
            self._losses += 1
        held = self._records.pop(event.key, None)
        self._own_records.pop(event.key, None)
        if event.item is not None:
            self._records[event.key] = event.item.value
            if self._concerns_us(event.key):
                self._own_records[event.key] = event.item.value
            self._decided = max(self._decided, number_of(event.key, event.item.value))
        if held is not None:
            self._remember(event.key, held, self._records.get(event.key))
        place = self._place(event.key)
        if place is None:
            return
        at = datetime.now(UTC)
        try:
            value = read_record(event.key, event.item.value) if event.item else None
        except Malformed as error:
            # The last good value stays in force.
            self._store.apply([Change(Section.FINDINGS, _WHERE + event.key, (_finding(event.key, error),))])
            return
        if isinstance(value, ExportedService):
            at = min(at, value.changed_at)  # a peer whose clock is ahead must not make convergence negative
        self._store.apply(
            [Change(place.section, place.key, value), Change(Section.FINDINGS, _WHERE + event.key, None)], at=at
        )

    def _what_is_lost(self, found: Mapping[str, bytes], *, is_after_loss: bool) -> dict[str, Lost]:
        """Returns what is lost when etcd holds `found`: it was before and nobody wrote since, or it is now."""
        lost = {key: one for key, one in self._lost.items() if found.get(key) == one.found}
        if is_after_loss:
            lost |= self._what_was_lost_now(found)
        since = decided_since(found, self._decided)
        return {key: one for key, one in lost.items() if key not in since}

    def _what_was_lost_now(self, found: Mapping[str, bytes]) -> dict[str, Lost]:
        held = {key: body for key, body in self._records.items() if not self._is_of_self(key)}
        held |= {key: one.body for key, one in self._lost.items() if one.body is not None}
        # A record that reads as it did earlier was not written since: etcd has taken back what followed.
        past = {key: body for key, body in found.items() if (key, body) in self._past and held.get(key) != body}
        past |= {key: body for key, body in found.items() if number_of(key, body) < number_of(key, held.get(key))}
        missing = {key: Lost(body, None) for key, body in held.items() if key not in found}
        return missing | {key: Lost(held.get(key), body) for key, body in past.items()}

    def _remember(self, key: str, body: bytes, now: bytes | None) -> None:
        """Remembers what an admin's record said before."""
        place = place_of(key)
        if body == now or place is None or place.section not in _ADMINS:
            return
        self._past[key, body] = None
        if now is not None:
            self._past.pop((key, now), None)
        if len(self._past) > _MOST_PAST:
            del self._past[next(iter(self._past))]

    def _is_of_self(self, key: str) -> bool:
        """Says whether a record is what this cluster says of itself: the leader knows better what it should say."""
        place = place_of(key)
        return place is not None and place.section not in _ADMINS and place.cluster == self._settings.name

    def _concerns_us(self, key: str) -> bool:
        place = place_of(key)
        return place is None or place.section not in _OF_OTHERS or place.cluster == self._settings.name

    def _place(self, key: str) -> Place | None:
        """Returns where a record belongs in the picture; None for what this cluster tells the others."""
        place = place_of(key)
        if place is None or (place.section in _OF_OTHERS and place.cluster == self._settings.name):
            return None
        return place


def _is_ours(key: str) -> bool:
    return is_trust_record(key) or is_decision(key) or place_of(key) is not None


def _finding(key: str, error: Malformed) -> Finding:
    return Finding(
        where=_WHERE + key,
        line=0,
        object="",
        field="",
        message=str(error),
        hint="its last good value stays in force; the leader writes it again when its owner says it anew",
    )
