"""What the admin API answers about leaving: this cluster leaves the mesh and comes back, or forgets a lost member.

What is written here is a record in etcd; the picture, what is offered and who is listened to follow from there.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import TypeVar

from federation.admin import AdminRefused
from federation.etcd import EtcdClient, EtcdError
from federation.model import ClusterSettings, Departure
from federation.names import departure_key
from federation.peering.decisions import take_back
from federation.peering.farewells import depart
from federation.store import MeshStore
from trust.audit import AuditEvent, AuditKind
from trust.spiffe import ClusterName

_Answer = TypeVar("_Answer")

_CATCH_UP = timedelta(seconds=5)
"""How long the picture may take to show what was written: the answer of the API is made from it."""


class Departures:
    """Keeps in etcd who has left."""

    def __init__(
        self, settings: ClusterSettings, *, store: MeshStore, etcd: EtcdClient, on_event: Callable[[AuditEvent], None]
    ) -> None:
        self._settings = settings
        self._store = store
        self._etcd = etcd
        self._on_event = on_event

    async def leave(self, *, asked_by: str) -> None:
        """Says farewell to all peers, for as long as this control plane runs; raises AdminRefused.

        To leave twice is to leave once.
        """
        own = self._settings.name
        departure = Departure(own, datetime.now(UTC), by=asked_by)
        # `depart` clears away nothing of our own: what we offer goes because it is offered no more.
        if await _written(depart(self._etcd, departure, keeps_records=True)):
            self._tell(AuditKind.LEFT, own, asked_by=asked_by, reason="left the mesh")
        await self._shown(own, is_departed=True)

    async def come_back(self, *, asked_by: str) -> None:
        """Undoes `leave`: this cluster calls its peers again, with its own word. Raises AdminRefused."""
        own = self._settings.name
        if own not in self._store.snapshot.departures:
            raise AdminRefused(f"{own} has not left the mesh", "there is nothing to do", status=409)
        await _written(take_back(self._etcd, departure_key(own)))
        self._tell(AuditKind.JOINED, own, asked_by=asked_by, reason="came back")
        await self._shown(own, is_departed=False)

    async def forget(self, cluster: str, *, asked_by: str) -> None:
        """Takes a member and all that it offered out of this cluster at once; raises AdminRefused.

        One that lives is back as soon as it calls: to keep it out, it is revoked.
        """
        name, snapshot = ClusterName(cluster), self._store.snapshot
        if name == self._settings.name:
            raise AdminRefused(f"{name} cannot forget itself", f"isthmus leave {name}", status=409)
        if name in snapshot.departures:
            return
        if name not in snapshot.members:
            near = get_close_matches(name, list(snapshot.members), n=1)
            known = ", ".join(sorted(snapshot.members.keys() - {self._settings.name})) or "none"
            hint = f"did you mean {near[0]}?" if near else f"members known here: {known}"
            raise AdminRefused(f"{self._settings.name} knows no member {cluster}", hint, status=404)
        if await _written(depart(self._etcd, Departure(name, datetime.now(UTC), by=asked_by))):
            self._tell(AuditKind.LEFT, name, asked_by=asked_by, reason="forgotten")
        await self._shown(name, is_departed=True)

    async def _shown(self, cluster: ClusterName, *, is_departed: bool) -> None:
        """Waits until the picture shows what was written."""
        try:
            async with asyncio.timeout(_CATCH_UP.total_seconds()):
                snapshot = self._store.snapshot
                while (cluster in snapshot.departures) != is_departed:
                    snapshot = await self._store.wait_newer(snapshot.revision)
        except TimeoutError:
            return  # it is written all the same, and shown when etcd tells of it

    def _tell(self, kind: AuditKind, cluster: ClusterName, *, asked_by: str, reason: str) -> None:
        self._on_event(
            AuditEvent(kind=kind, at=datetime.now(UTC), subject=f"cluster {cluster}", asked_by=asked_by, reason=reason)
        )


async def _written(doing: Awaitable[_Answer]) -> _Answer:
    try:
        return await doing
    except EtcdError as error:
        raise AdminRefused(f"etcd did not take it: {error}", "ask again when etcd is well", status=503) from error
