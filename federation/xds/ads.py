"""Serves proxies: who may have a stream, what each is told, and what each has taken.

A stream lives thirty minutes at most (`MAX_AGE`, three minutes more or less): it is ended with UNAVAILABLE "time to
authenticate again". Envoy comes back, shows its token anew, and is sent nothing that it has.

A proxy has one stream, and for some seconds those before it, which are dead and not known to be. So the newest count,
and the oldest beyond MOST_STREAMS ends: who holds a token can open no more than that for each pod that it is good for.
"""

import asyncio
import logging
import secrets as randomness
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

import grpc
import msgspec
from envoy.config.core.v3.base_pb2 import Node

from federation.model import ProxyRole, ProxyScope, Trust
from federation.proxy_trust import ProxyTrust
from federation.snapshot import Snapshot
from federation.store import MeshStore
from federation.xds.resources import Resource, ResourceSet, TypeUrl
from federation.xds.server import (
    ADS_SERVICE,
    Exhausted,
    ServicerContext,
    Unavailable,
    delta_handler,
    read_first,
    serve_stream,
)
from federation.xds.session import (
    Offered,
    ProxyNode,
    ProxyStatus,
    RejectedResource,
    Session,
    TrustMark,
    TypeStatus,
)
from trust.bundle import is_revoked, revoked_digest
from trust.spiffe import Identity

__all__ = [
    "MAX_AGE",
    "MOST_STREAMS",
    "MOST_STREAMS_OF_GATEWAYS",
    "Admission",
    "Admitted",
    "AdsServer",
    "Compile",
    "Issued",
    "ProxyNode",
    "ProxyStatus",
    "RejectedResource",
    "SecretSource",
    "TrustMark",
    "TypeStatus",
    "bearer_token",
    "jittered",
    "proxy_node",
]

log = logging.getLogger(__name__)

_ADMIT_LIMIT = timedelta(seconds=5)  # a token is looked up in etcd
_APPEAR_LIMIT = timedelta(seconds=3)  # longer than a source needs to show a pod that has just started

MAX_AGE = timedelta(minutes=30)
"""Of a stream, until its proxy has to authenticate again."""
MOST_STREAMS = 4
"""Of one proxy: it comes back at most that often before keepalive has found out about a connection that died."""
MOST_STREAMS_OF_GATEWAYS = 200
"""Of all gateways together, for one more to come: the picture holds no gateways, so that a token of theirs is good for
any number of names."""
_AGE_JITTER = 0.1  # part of the age, either way: proxies that came together do not come back together

_NEVER = datetime.min.replace(tzinfo=UTC)
_NOTHING: ResourceSet = {}

Compile = Callable[[Snapshot, ProxyScope], ResourceSet]
"""Everything but secrets. Pure; called once for each (revision, scope)."""


class Admitted(msgspec.Struct, frozen=True):
    """Who somebody proved to be. `proof` says by what, for people: a reference, never the token."""

    identity: Identity
    proof: str = ""


class Admission(Protocol):
    """Decides who is who."""

    async def admit(self, node: ProxyNode, token: str) -> Admitted:
        """Returns whom `token` proves, "" for none; raises server.Unauthenticated, or server.Refused."""

    async def ended(self, node: ProxyNode, admitted: Admitted) -> None:
        """Waits while the proof is good; then raises server.Refused. Never returns."""

    def scope(self, snapshot: Snapshot, node: ProxyNode, identity: Identity) -> ProxyScope | None:
        """Returns what the picture knows of this proxy; None while it knows nothing (it may appear later).

        Asked again for every new picture. A connected proxy that vanished from it keeps what it has until it leaves,
        but gets no new certificate. Raises server.Refused when `identity` may never be this node.
        """


class Issued(msgspec.Struct, frozen=True):
    """The secrets of one proxy: SDS resources by name, and when to ask again (UTC).

    `authority` is the fingerprint of the authority that signed the certificate, `expires` its end, `bundle` the digest
    of the trust bundle beside it: those of `resources`, whatever is in force by now. All are empty where there is no
    certificate.
    """

    resources: Mapping[str, Resource]
    renew_at: datetime
    authority: str
    bundle: str
    expires: datetime | None


_NOTHING_ISSUED = Issued({}, _NEVER, authority="", bundle="", expires=None)


class SecretSource(Protocol):
    """Makes the secrets of one proxy."""

    def secrets(self, scope: ProxyScope, now: datetime, *, asked_by: str, proof: str) -> Issued:
        """Returns what the proxy should have now: asked at first, when it is due, and when the mesh's trust changed.

        `asked_by` is the node and the address that it asks from, `proof` what it proved itself by: for the audit trail.
        """


class AcknowledgedTrust(Protocol):
    """Remembers what proxies acknowledged of their trust: `federation.acknowledgements.Acknowledgements`."""

    def record(self, node: str) -> ProxyTrust | None:
        """Returns what is known of one proxy."""

    def note(self, record: ProxyTrust) -> None:
        """Takes what is known of one proxy now. Never waits."""


class _Seat(NamedTuple):
    """A proxy on a stream; `displaced` is set when newer streams of the same proxy take its place."""

    session: Session
    displaced: asyncio.Event


class AdsServer:
    """The ADS service of one control plane replica."""

    def __init__(
        self,
        store: MeshStore,
        compile: Compile,  # noqa: A002 - what it does; the builtin means nothing here
        *,
        admission: Admission,
        secrets: SecretSource,
        acknowledgements: AcknowledgedTrust,
        on_converged: Callable[[timedelta, bool], None],
        on_pushed: Callable[[TypeUrl], None],
        on_rejected: Callable[[TypeUrl], None],
        on_crowded: Callable[[ProxyRole], None],
        quiet: timedelta = timedelta(milliseconds=10),
        settle_limit: timedelta = timedelta(seconds=10),
        max_age: timedelta = MAX_AGE,
    ) -> None:
        """`on_converged` is told the time from a change to its last ACK by a proxy, and whether a peer made it.
        `on_crowded` is told of each stream that ends because its proxy, or the gateways together, have too many.

        `quiet` is how long a proxy's stream waits for further changes once there is one: a burst is one push.
        `settle_limit` bounds how long one unanswered response holds back the others. `max_age` of a stream is jittered
        by a tenth, either way.
        """
        self._store = store
        self._compile = compile
        self._admission = admission
        self._secrets = secrets
        self._acknowledgements = acknowledgements
        self._on_converged = on_converged
        self._on_pushed = on_pushed
        self._on_rejected = on_rejected
        self._on_crowded = on_crowded
        self._quiet = quiet.total_seconds()
        self._settle_limit = settle_limit
        self._max_age = max_age
        self._seats: dict[str, list[_Seat]] = {}  # by node, the newest last
        self._compiled: dict[ProxyScope, ResourceSet] = {}  # of the newest revision asked for
        self._compiled_revision = -1

    @property
    def handler(self) -> grpc.GenericRpcHandler:
        """The ADS method, for a grpc.aio server with server.SERVER_OPTIONS; open its port when the store is ready."""
        return delta_handler(ADS_SERVICE, "DeltaAggregatedResources", self._serve)

    def proxies(self) -> tuple[ProxyStatus, ...]:
        """The proxies on this replica's streams now, by node. Of one that reconnects, its newest stream."""
        return tuple(seats[-1].session.status() for _, seats in sorted(self._seats.items()))

    async def _serve(self, context: ServicerContext) -> None:
        first = await read_first(context)
        node = proxy_node(first.node, context.peer())
        token = bearer_token(context)
        try:
            async with asyncio.timeout(_ADMIT_LIMIT.total_seconds()):
                admitted = await self._admission.admit(node, token)
        except TimeoutError:
            raise Unavailable("nobody can say now whether this token is good") from None
        identity = admitted.identity
        scope = await self._first_scope(node, identity)
        session = Session(
            node,
            identity,
            scope,
            on_settled=self._measure,
            on_pushed=self._on_pushed,
            on_rejected=self._on_rejected,
            on_trust=self._acknowledgements.note,
            known=self._acknowledgements.record(node.id),
        )
        self._make_room(session)
        seat = _Seat(session, asyncio.Event())
        self._seats.setdefault(node.id, []).append(seat)
        log.info("proxy connected", extra={"node": node.id})
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch(node, admitted))
                displacing = group.create_task(_displacement(seat))
                await serve_stream(
                    context,
                    first,
                    stream=session.stream,
                    feed=self._feed(session, admitted),
                    observer=session,
                    settle_limit=self._settle_limit,
                )
                watching.cancel()
                displacing.cancel()
        finally:
            self._seats[node.id].remove(seat)
            if not self._seats[node.id]:
                del self._seats[node.id]
            session.end()
            log.info("proxy left", extra={"node": node.id})

    def _make_room(self, session: Session) -> None:
        """Ends what a proxy has too much with its new stream; raises Exhausted when that may not be had at all."""
        node, role = session.node.id, session.scope.audience.role
        own = [one for one in self._seats.get(node, ()) if not one.displaced.is_set()]
        if role is ProxyRole.GATEWAY and not own:
            gateways = [of for of in self._seats.values() if of[0].session.scope.audience.role is ProxyRole.GATEWAY]
            count = sum(map(len, gateways))
            if count >= MOST_STREAMS_OF_GATEWAYS:
                self._on_crowded(role)
                raise Exhausted(f"the gateways of this cluster have {count} streams here already")
        for oldest in own[: max(0, len(own) + 1 - MOST_STREAMS)]:
            log.warning("proxy has too many streams", extra={"node": node, "streams": len(own)})
            oldest.displaced.set()
            self._on_crowded(role)

    async def _watch(self, node: ProxyNode, admitted: Admitted) -> None:
        """Ends a stream, by raising Refused, when its proof is no longer good or has to be shown again."""
        try:
            async with asyncio.timeout(jittered(self._max_age).total_seconds()):
                await self._admission.ended(node, admitted)
        except TimeoutError:
            raise Unavailable("time to authenticate again") from None

    async def _first_scope(self, node: ProxyNode, identity: Identity) -> ProxyScope:
        """Returns the scope of a proxy that has just come; its pod may reach the picture a moment after it."""
        try:
            async with asyncio.timeout(_APPEAR_LIMIT.total_seconds()):
                snapshot = await self._store.wait_ready()
                while (scope := self._admission.scope(snapshot, node, identity)) is None:
                    snapshot = await self._store.wait_newer(snapshot.revision)
                return scope
        except TimeoutError:
            raise Unavailable(f"the picture of this cluster holds no proxy {node.id!r} for {identity}") from None

    async def _feed(self, session: Session, admitted: Admitted) -> AsyncIterator[ResourceSet]:
        asked_by = f"{session.node.id} ({session.node.peer})"
        issued = _NOTHING_ISSUED
        asked_for: Mapping[str, Trust] | None = None
        is_out = False
        while True:
            snapshot = self._store.snapshot
            scope = self._admission.scope(snapshot, session.node, session.identity)
            session.scope = scope or session.scope
            now = datetime.now(UTC)
            was_revoked, is_out = is_out, is_revoked(snapshot.revoked, session.identity)
            if is_out:
                # Its stream stays, so that Envoy is told to drop what it has.
                if not was_revoked:  # asked once: what it held is forgotten, and the audit trail hears of it
                    self._secrets.secrets(session.scope, now, asked_by=asked_by, proof=admitted.proof)
                issued, resources = _NOTHING_ISSUED, _NOTHING
            else:
                is_due = now >= issued.renew_at or snapshot.trust is not asked_for
                if is_due and (scope is not None or not issued.resources):
                    issued = self._secrets.secrets(session.scope, now, asked_by=asked_by, proof=admitted.proof)
                    asked_for = snapshot.trust
                resources = {**self._resources(snapshot, session.scope), TypeUrl.SECRET: issued.resources}
            session.offer(_offered(snapshot, issued))
            yield resources
            session.note_settled()  # when nothing of it concerned this proxy, no answer will come
            may_renew = scope is not None and issued.renew_at > _NEVER
            try:
                async with asyncio.timeout((issued.renew_at - now).total_seconds() if may_renew else None):
                    await self._store.wait_newer(snapshot.revision)
                await asyncio.sleep(self._quiet)
            except TimeoutError:
                pass  # it is time for new certificates

    def _resources(self, snapshot: Snapshot, scope: ProxyScope) -> ResourceSet:
        if self._compiled_revision != snapshot.revision:
            self._compiled_revision = snapshot.revision
            self._compiled.clear()
        resources = self._compiled.get(scope)
        if resources is None:
            resources = self._compiled[scope] = self._compile(snapshot, scope)
        return resources

    def _measure(self, acknowledged_before: int, now: datetime) -> None:
        changed = self._store.changed_since(acknowledged_before)
        if changed is not None:
            moment, is_remote = changed
            self._on_converged(max(now - moment, timedelta()), is_remote)  # a peer's clock may be ahead of ours


async def _displacement(seat: _Seat) -> None:
    """Ends a stream, by raising Exhausted, when newer ones of its proxy take its place."""
    await seat.displaced.wait()
    raise Exhausted(f"{seat.session.node.id} has {MOST_STREAMS} newer streams here")


def _offered(snapshot: Snapshot, issued: Issued) -> Offered:
    return Offered(
        revision=snapshot.revision,
        mark=TrustMark(issued.bundle, issued.authority, revoked_digest(snapshot.revoked)),
        expires=issued.expires,
        secrets={name: resource.version for name, resource in issued.resources.items()},
    )


def jittered(max_age: timedelta) -> timedelta:
    """Returns how old one stream may become: a tenth more or less."""
    return max_age * randomness.SystemRandom().uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER)


def proxy_node(node: Node, peer: str) -> ProxyNode:
    """Returns how a proxy introduces itself; `peer` is as gRPC says it."""
    texts = {key: value.string_value for key, value in node.metadata.fields.items() if value.HasField("string_value")}
    # gRPC says `ipv4:10.0.0.1:53422` and `ipv6:%5B::1%5D:53422`: the port is another at every connection
    host = peer.partition(":")[2].rpartition(":")[0].removeprefix("%5B").removesuffix("%5D")
    return ProxyNode(id=node.id, metadata=texts, peer=host)


def bearer_token(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Returns the token that was shown, "" for none: whoever admits refuses that, and tells it to the audit trail."""
    for key, value in context.invocation_metadata() or ():
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        if key == "authorization" and text.startswith("Bearer "):
            return text.removeprefix("Bearer ").strip()
    return ""
