"""What this cluster serves to its peers on the federation stream, and to whom.

Each replica offers from its own picture, not from etcd: an etcd that is away or lost records takes nothing from peers.
Peers are told of the members that told us of themselves, of the root's documents and of the own trust; each peer of the
own exports that it may see, and of the grant that waits for it; and there is a beat every second. A type that a peer
does not know it does not ask for.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from operator import is_

import grpc
import msgspec
from envoy.config.core.v3.base_pb2 import Node

from federation.etcd import EtcdClient
from federation.model import ClusterSettings, ExportedService, Liveness, MemberCluster, NetworkName, ServiceKey
from federation.peering import exports, trust_records
from federation.peering.beats import Beats
from federation.peering.checks import Malformed
from federation.peering.exports import short_line
from federation.peering.freshness import BEAT_PERIOD, LONGEST_SILENCE
from federation.peering.hearsay import Tellers, Told
from federation.peering.intake import KINDS
from federation.peering.introductions import Introductions
from federation.peering.membership import NotAPeer, peer_of, why_revoked
from federation.peering.news import News
from federation.peering.own_exports import OwnExports
from federation.peering.replica import Replica
from federation.peering.trust_keeper import TrustKeeper, own_issuer, spread
from federation.snapshot import Snapshot, differing
from federation.store import MeshStore
from federation.xds.protocol import DeltaStream, Order
from federation.xds.resources import Resource, ResourceSet, TypeUrl
from federation.xds.server import (
    Refused,
    ServicerContext,
    Unauthenticated,
    Unavailable,
    delta_handler,
    read_first,
    serve_stream,
)
from trust.spiffe import ClusterName

log = logging.getLogger(__name__)

FEDERATION_SERVICE = "isthmus.federation.v1.Federation"
FEDERATION_METHOD = "DeltaResources"
INTRODUCTION = "member"
"""Key of the node's metadata under which a peer introduces itself: its member record, as JSON text."""
REFUSAL = "refusal"
"""Key of the node's metadata under which a peer says why it ended the stream before this one: text."""

_HOLD = LONGEST_SILENCE - BEAT_PERIOD
"""How long a peer waits at most for its first answer until it is in the picture: not until it thinks us silent."""
_MOST_STREAMS = 16
"""Of one peer. It needs one; those that broke unnoticed are given up within 15 to 25 seconds."""
_TRUST_QUIET = timedelta(milliseconds=100)
"""Between two statements: the proxies of a cluster answer one after another."""

_MADE_OF = ("services", "exports", "members", "departures", "drains", "endpoints", "revoked")
"""The parts of the picture of which this cluster's offers, and whom they are for, are made."""


class ListenerStatus(msgspec.Struct, frozen=True):
    """A peer that listens to this replica. `rejections` are (resource, message) of what it refused."""

    peer: ClusterName
    since: datetime
    rejections: tuple[tuple[str, str], ...] = ()


class _Listener(msgspec.Struct, frozen=True):
    """A peer on a stream. `refusal` is why it ended the one before, `news` wakes the stream."""

    peer: ClusterName
    since: datetime
    refusal: str
    news: News


class Offer:
    """What is offered now, kept from the picture by `run`, and the gRPC handler that serves it to peers."""

    def __init__(
        self, settings: ClusterSettings, keeper: TrustKeeper, *, store: MeshStore, etcd: EtcdClient, replica: Replica
    ) -> None:
        self._settings = settings
        self._keeper = keeper
        self._store = store
        self._replica = replica
        self._own = OwnExports(settings, store=store, replica=replica)
        self._member_resources: Mapping[MemberCluster, Resource] = {}
        self._tellers = Tellers()
        self._resources: Mapping[TypeUrl, Mapping[str, Resource]] = {}
        self._introductions = Introductions(etcd)
        self._listeners: dict[DeltaStream, _Listener] = {}
        self.news = News()

    @property
    def exports(self) -> Mapping[ServiceKey, ExportedService]:
        """What this cluster offers now; empty before the picture is ready. `news` tells when it changed."""
        return self._own.exports

    @property
    def unoffered(self) -> tuple[tuple[ServiceKey, str, datetime], ...]:
        """The exports that cannot be offered as they are now: of which service, why, since when; by service."""
        return tuple((key, one.reason, one.since) for key, one in sorted(self._own.unoffered.items()))

    @property
    def handler(self) -> grpc.GenericRpcHandler:
        """The federation method, for a grpc.aio server whose credentials require client certificates of this mesh."""
        return delta_handler(FEDERATION_SERVICE, FEDERATION_METHOD, self._serve)

    def listeners(self) -> tuple[ListenerStatus, ...]:
        """The peers on this replica's federation streams now, by name."""
        found = [
            ListenerStatus(listener.peer, listener.since, tuple(sorted(_refused(stream, listener.refusal))))
            for stream, listener in self._listeners.items()
        ]
        return tuple(sorted(found, key=lambda status: (status.peer, status.since)))

    async def wait_ready(self) -> None:
        """Returns once it is known what this cluster offers: before, nothing may be told or taken back."""
        await self.news.wait_newer(0)

    async def run(self) -> None:
        """Keeps what is offered in step with the picture, beats, and remembers who introduced itself. For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_in_step())
            tasks.create_task(self._keep_trust_in_step())
            tasks.create_task(self._follow_grants())
            tasks.create_task(self._introductions.run())

    async def _follow_grants(self) -> None:
        """Wakes the streams when a grant has come or gone: what else concerns us in etcd is nothing to tell there."""
        known: dict[str, bytes] = {}
        while True:
            seen, records = self._replica.own_news.count, self._replica.own_records
            grants = {key: records[key] for key in records if key.startswith(trust_records.GRANTS_PREFIX)}
            if grants != known:
                known = grants
                self._wake()
            await self._replica.own_news.wait_newer(seen)

    async def _keep_in_step(self) -> None:
        snapshot = await self._store.wait_ready()
        self._own.recall()
        seen_at = datetime.now(UTC)
        told: tuple[object, ...] = ()
        while True:
            self._own.take_up(snapshot, seen_at)
            known = self._resources.get(TypeUrl.MEMBER, {})
            self._set({TypeUrl.MEMBER: self._known_members(snapshot)})
            members = differing(known, self._resources[TypeUrl.MEMBER])
            before_that, told = told, (self._own.shares, self._own.exports, snapshot.revoked)
            if self._settings.name in members or not before_that or not all(map(is_, told, before_that)):
                self._wake()
                self.news.tell()
            elif members:
                self._wake(members)
            revision = snapshot.revision
            before, snapshot = snapshot, await self._store.wait_newer(revision)
            while not self._own.is_unsure and _is_the_same_to_us(before, snapshot):
                revision = snapshot.revision
                snapshot = await self._store.wait_newer(revision)
            seen_at = self._first_seen(revision)

    async def _keep_trust_in_step(self) -> None:
        await self._store.wait_ready()
        while True:
            seen = self._keeper.news.count
            statement = self._keeper.statement()
            told = (trust_records.statement_resource(statement),) if statement is not None else ()
            self._set(
                {
                    TypeUrl.TRUST_BUNDLE: trust_records.document_resources(self._keeper.documents()),
                    TypeUrl.TRUST_STATEMENT: {resource.name: resource for resource in told},
                    TypeUrl.MEMBER: self._known_members(self._store.snapshot),
                }
            )
            self._wake()  # the own authority may be another, too
            await asyncio.sleep(_TRUST_QUIET.total_seconds())
            await self._keeper.news.wait_newer(seen)

    def _first_seen(self, revision: int) -> datetime:
        """Returns when the source saw what changed after `revision`; what peers changed is none of our exports."""
        match self._store.changed_since(revision):
            case (moment, False):
                return moment
            case _:
                return datetime.now(UTC)

    def _known_members(self, snapshot: Snapshot) -> Mapping[str, Resource]:
        own = self._keeper.own_member()
        # One that has left says farewell, to whoever asks and as long as it runs, and speaks for nobody else.
        others = [] if own.has_left else [member for member in snapshot.members.values() if member.name != own.name]
        told, known = (own, *exports.may_pass_on(others)), self._member_resources
        live = (name for name, one in snapshot.freshness.items() if one.state is Liveness.LIVE)
        self._tellers = Tellers((own.name, *live))
        self._member_resources = {member: known.get(member) or exports.member_resource(member) for member in told}
        return {member.name: resource for member, resource in self._member_resources.items()}

    def _set(self, found: Mapping[TypeUrl, Mapping[str, Resource]]) -> None:
        """Takes what all peers are told."""
        changed = {type_url: new for type_url, new in found.items() if self._resources.get(type_url) != new}
        self._resources = {**self._resources, **changed}

    def _wake(self, members: Collection[str] = ()) -> None:
        """Wakes all streams; or, when there is only news of other members, those that it may concern: few of many."""
        own, tellers = self._settings.name, self._tellers
        for one in self._listeners.values():
            told = (name == one.peer or tellers.are_to_tell(name, own=own, peer=one.peer) for name in members)
            if not members or any(told):
                one.news.tell()

    async def _serve(self, context: ServicerContext) -> None:
        # Read before refusing: who is refused while it still writes is not told why (gRPC).
        first = await read_first(context)
        peer = self._identify(context)
        self._refuse_revoked(peer)
        self._introduce(peer, first.node)
        await self._hold(peer)
        if sum(one.peer == peer for one in self._listeners.values()) >= _MOST_STREAMS:
            raise Unavailable(f"{peer} has {_MOST_STREAMS} streams here already")
        stream = DeltaStream(Order.NONE)
        fields = first.node.metadata.fields
        refusal = short_line(fields[REFUSAL].string_value) if REFUSAL in fields else ""
        listener = self._listeners[stream] = _Listener(peer, datetime.now(UTC), refusal, News())
        log.info("peer listens", extra={"peer": peer})
        try:
            await serve_stream(context, first, stream=stream, feed=self._feed(listener, first.node))
        finally:
            del self._listeners[stream]
            log.info("peer listens no more", extra={"peer": peer})

    async def _feed(self, listener: _Listener, node: Node) -> AsyncIterator[ResourceSet]:
        """Yields what a peer should have, whenever that changed, and beats."""
        await self.wait_ready()
        peer = listener.peer
        now = asyncio.get_running_loop().time
        issuer = own_issuer(self._keeper)
        ends_at = math.inf
        beats = Beats(self._settings.name, node, now())
        told = Told(self._settings.name, peer)
        last: ResourceSet = {}
        while True:
            seen = listener.news.count
            self._refuse_revoked(peer)
            if ends_at == math.inf and own_issuer(self._keeper) != issuer:
                ends_at = now() + spread()
            grants = [trust_records.grant_resource(grant) for grant in self._keeper.grants_for(peer)]
            offered: ResourceSet = {
                **self._resources,
                TypeUrl.MEMBER: told.of(self._resources[TypeUrl.MEMBER], self._tellers),
                TypeUrl.BEAT: {self._settings.name: beats.latest(now())},
                TypeUrl.EXPORT: self._own.shares.of(self._record_of(peer)),
                TypeUrl.TRUST_GRANT: {grant.name: grant for grant in grants},
            }
            if offered != last:
                last = offered
                yield offered
            try:
                async with asyncio.timeout_at(min(ends_at, beats.due_at)):
                    await listener.news.wait_newer(seen)
            except TimeoutError:
                if now() >= ends_at:
                    raise Unavailable("this cluster has a new authority: connect again") from None

    def _record_of(self, peer: ClusterName) -> MemberCluster:
        # Of one that is not in the picture yet its certificate tells the name, and nothing tells its labels.
        stranger = MemberCluster(peer, NetworkName(""), "", (), introduced_by=peer)
        return self._store.snapshot.members.get(peer, stranger)

    async def _hold(self, peer: ClusterName) -> None:
        """Waits until the own picture holds a peer: only then do the own gateways let its proxies in."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_HOLD.total_seconds()):
                snapshot = await self._store.wait_ready()
                while peer not in snapshot.members:
                    snapshot = await self._store.wait_newer(snapshot.revision)

    def _refuse_revoked(self, peer: ClusterName) -> None:
        reason = why_revoked(self._store.snapshot.revoked, peer)
        if reason:
            raise Refused(reason)

    def _identify(self, context: ServicerContext) -> ClusterName:
        certificates = list(context.auth_context().get("x509_pem_cert", ()))
        if not certificates:
            raise Unauthenticated("a client certificate of this mesh is needed")
        try:
            peer = peer_of(certificates[0], self._settings.domain)
        except NotAPeer as error:
            raise Refused(str(error)) from error
        if peer == self._settings.name:
            raise Refused(f"this is {peer} itself")
        return peer

    def _introduce(self, peer: ClusterName, node: Node) -> None:
        fields = node.metadata.fields
        if INTRODUCTION not in fields:
            return
        try:
            self._introductions.note(exports.read_member(peer, fields[INTRODUCTION].string_value.encode(), peer))
        except Malformed as error:
            raise Refused(f"the introduction cannot be believed: {error}") from error


def _is_the_same_to_us(before: Snapshot, after: Snapshot) -> bool:
    return all(getattr(before, part) is getattr(after, part) for part in _MADE_OF)


def _refused(stream: DeltaStream, refusal: str) -> Iterator[tuple[str, str]]:
    """Yields what a peer refuses, as (resource, message). What it says of several at once is divided among them."""
    if refusal and not stream.has_taken(TypeUrl.EXPORT):
        yield "Stream", refusal
    for each in stream.rejections.values():
        kind = KINDS.get(each.type_url, each.type_url.rpartition(".")[2])
        _, is_named, rest = each.message.partition(f"{each.name}: ")
        yield f"{kind} {each.name}", short_line(rest.partition("; ")[0] if is_named else each.message)
