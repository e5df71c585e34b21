"""What this cluster exports, made into offers of the federation stream: from the picture, in every replica alike.

Replicas see a change a moment apart; the moments are the leader's, as it published them in etcd.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from operator import is_

import msgspec

from federation import names
from federation.model import ClusterSettings, ExportedService, ServiceKey
from federation.peering import exports
from federation.peering.checks import Malformed
from federation.peering.replica import Replica
from federation.peering.visibility import Shares
from federation.snapshot import Replace, Section, Snapshot
from federation.store import MeshStore
from federation.xds.resources import Resource

log = logging.getLogger(__name__)


class Unoffered(msgspec.Struct, frozen=True):
    """An export that peers would refuse as it is now, why, and since when. What they have of it is kept as far as it is
    still true."""

    exported: ExportedService
    reason: str
    since: datetime


class OwnExports:
    """The offers, brought up to a picture by `take_up`. What stays as it is stays the very same object."""

    def __init__(self, settings: ClusterSettings, *, store: MeshStore, replica: Replica) -> None:
        self._settings = settings
        self._store = store
        self._replica = replica
        self._exports: Mapping[ServiceKey, ExportedService] = {}
        self._unoffered: Mapping[ServiceKey, Unoffered] = {}
        self._stamped: set[ServiceKey] = set()  # exported since this replica first saw them, unless etcd says otherwise
        self._origin: tuple[object, ...] = ()
        self._offers: Mapping[str, Resource] = {}
        self._shares = Shares({}, {})

    @property
    def exports(self) -> Mapping[ServiceKey, ExportedService]:
        """What this cluster offers."""
        return self._exports

    @property
    def unoffered(self) -> Mapping[ServiceKey, Unoffered]:
        """The exports that cannot be offered as they are now."""
        return self._unoffered

    @property
    def shares(self) -> Shares:
        """The offers as resources, as each member may see them."""
        return self._shares

    @property
    def is_unsure(self) -> bool:
        """Whether moments are this replica's own, because the leader's are not in etcd yet."""
        return bool(self._stamped)

    def recall(self) -> None:
        """Begins with what the leader published before this process started: what is still so keeps its moment."""
        prefix = names.export_prefix(self._settings.name)
        found = {}
        for key, body in self._replica.own_records.items():
            if key.startswith(prefix):
                try:
                    exported = exports.decode_export(body)
                except Malformed:
                    continue
                found[exported.key] = exported
        self._exports = found

    def take_up(self, snapshot: Snapshot, seen_at: datetime) -> None:
        """Makes the offers of a picture. What stays as it is stays the very same object, down to the mappings."""
        origin = (snapshot.services, snapshot.exports, snapshot.endpoints, snapshot.revoked, snapshot.departures)
        if self._origin and not self._stamped and all(map(is_, origin, self._origin)):
            return  # what peers say changes nothing here
        self._origin = origin
        before = self._exports = self._as_published(self._exports)
        judged = {**before, **{key: one.exported for key, one in self._unoffered.items()}}
        has_left = self._settings.name in snapshot.departures
        found = {} if has_left else exports.offered(snapshot, self._settings, before=judged, changed_at=seen_at)
        chosen, unoffered = {}, {}
        for key, exported in found.items():
            known = self._unoffered.get(key)
            if before.get(key) is exported:
                chosen[key] = exported
            elif known is not None and known.exported is exported:
                unoffered[key] = known
            elif reason := exports.why_not_taken(exported):
                since = known.since if known else seen_at
                unoffered[key] = Unoffered(exported, reason, since)
                if known is None or known.reason != reason:
                    log.error("service cannot be offered", extra={"service": str(key), "reason": reason})
            else:
                chosen[key] = exported
            if key not in before and snapshot.exports[key].created is None:
                self._stamped.add(key)
            if key in unoffered and key in before:
                chosen[key] = exports.still_true(before[key], exported)
        offers = {
            str(key): self._offers[str(key)]
            if before.get(key) is exported and str(key) in self._offers
            else exports.export_resource(exported)
            for key, exported in chosen.items()
        }
        self._exports, self._unoffered = chosen, unoffered
        restricted = {str(key): to for key in chosen if (to := snapshot.exports[key].export_to)}
        if offers != self._offers or restricted != self._shares.restricted:
            self._offers, self._shares = offers, Shares(offers, restricted)
        # What this cluster thinks of a conflict must follow from what it tells the others.
        self._store.apply([Replace(Section.PUBLISHED, {key: one.exported_at for key, one in chosen.items()})])

    def _as_published(self, offers: Mapping[ServiceKey, ExportedService]) -> Mapping[ServiceKey, ExportedService]:
        """Returns the offers with the leader's word for since when we export what: replicas see that a moment apart."""
        told = {}
        for key in tuple(self._stamped):
            record = self._replica.records.get(names.export_key(self._settings.name, key))
            if record is not None:
                self._stamped.discard(key)
                with suppress(Malformed):
                    told[key] = exports.decode_export(record).exported_at
        changed = {key: at for key, at in told.items() if key in offers and offers[key].exported_at != at}
        if not changed:
            return offers
        return {**offers, **{key: msgspec.structs.replace(offers[key], exported_at=at) for key, at in changed.items()}}
