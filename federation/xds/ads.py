"""Serves proxies: who may have a stream, what each is told, and what each has taken."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Protocol

import grpc
import msgspec
from envoy.config.core.v3.base_pb2 import Node

from federation.model import ProxyScope
from federation.snapshot import Snapshot
from federation.store import MeshStore
from federation.xds.resources import Resource, ResourceSet, TypeUrl
from federation.xds.server import (
    ADS_SERVICE,
    ServicerContext,
    Unauthenticated,
    Unavailable,
    delta_handler,
    read_first,
    serve_stream,
)
from federation.xds.session import ProxyNode, ProxyStatus, RejectedResource, Session, TrustMark, TypeStatus
from trust.spiffe import Identity

__all__ = [
    "Admission",
    "AdsServer",
    "Compile",
    "Issued",
    "ProxyNode",
    "ProxyStatus",
    "RejectedResource",
    "SecretSource",
    "TrustMark",
    "TypeStatus",
]

log = logging.getLogger(__name__)

_ADMIT_LIMIT = timedelta(seconds=5)  # a token is looked up in etcd
_APPEAR_LIMIT = timedelta(seconds=3)  # longer than a source needs to show a pod that has just started

Compile = Callable[[Snapshot, ProxyScope], ResourceSet]
"""Everything but secrets. Pure; called once for each (revision, scope)."""


class Admission(Protocol):
    """Decides who is who."""

    async def admit(self, node: ProxyNode, token: str) -> Identity:
        """Returns the identity that `token` proves; raises server.Unauthenticated, or server.Refused."""

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


class SecretSource(Protocol):
    """Makes the secrets of one proxy."""

    def secrets(self, scope: ProxyScope, now: datetime) -> Issued:
        """Returns what the proxy should have now: asked at first, when it is due, and when the mesh's trust changed."""


class AdsServer:
    """The ADS service of one control plane replica."""

    def __init__(
        self,
        store: MeshStore,
        compile: Compile,  # noqa: A002 - what it does; the builtin means nothing here
        *,
        admission: Admission,
        secrets: SecretSource,
        on_converged: Callable[[timedelta, bool], None],
        on_pushed: Callable[[TypeUrl], None],
        on_rejected: Callable[[TypeUrl], None],
        quiet: timedelta = timedelta(milliseconds=10),
        settle_limit: timedelta = timedelta(seconds=10),
    ) -> None:
        """`on_converged` is told the time from a change to its last ACK by a proxy, and whether a peer made it.

        `quiet` is how long a proxy's stream waits for further changes once there is one: a burst is one push.
        `settle_limit` bounds how long one unanswered response holds back the others.
        """
        self._store = store
        self._compile = compile
        self._admission = admission
        self._secrets = secrets
        self._on_converged = on_converged
        self._on_pushed = on_pushed
        self._on_rejected = on_rejected
        self._quiet = quiet.total_seconds()
        self._settle_limit = settle_limit
        self._sessions: set[Session] = set()
        self._compiled: dict[ProxyScope, ResourceSet] = {}  # of the newest revision asked for
        self._compiled_revision = -1

    @property
    def handler(self) -> grpc.GenericRpcHandler:
        """The ADS method, for a grpc.aio server with server.SERVER_OPTIONS; open its port when the store is ready."""
        return delta_handler(ADS_SERVICE, "DeltaAggregatedResources", self._serve)

    def proxies(self) -> tuple[ProxyStatus, ...]:
        """The proxies on this replica's streams now, by node. Of one that reconnects, its newest stream."""
        newest = {session.node.id: session for session in sorted(self._sessions, key=lambda one: one.connected_since)}
        return tuple(newest[node].status() for node in sorted(newest))

    async def _serve(self, context: ServicerContext) -> None:
        first = await read_first(context)
        node = _node(first.node)
        token = _bearer_token(context)
        try:
            async with asyncio.timeout(_ADMIT_LIMIT.total_seconds()):
                identity = await self._admission.admit(node, token)
        except TimeoutError:
            raise Unavailable("nobody can say now whether this token is good") from None
        scope = await self._first_scope(node, identity)
        session = Session(
            node, identity, scope, on_settled=self._measure, on_pushed=self._on_pushed, on_rejected=self._on_rejected
        )
        self._sessions.add(session)
        log.info("proxy connected", extra={"node": node.id})
        try:
            await serve_stream(
                context,
                first,
                stream=session.stream,
                feed=self._feed(session),
                observer=session,
                settle_limit=self._settle_limit,
            )
        finally:
            self._sessions.discard(session)
            log.info("proxy left", extra={"node": node.id})

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

    async def _feed(self, session: Session) -> AsyncIterator[ResourceSet]:
        secrets: Mapping[str, Resource] = {}
        renew_at = datetime.min.replace(tzinfo=UTC)
        while True:
            snapshot = self._store.snapshot
            scope = self._admission.scope(snapshot, session.node, session.identity)
            session.scope = scope or session.scope
            now = datetime.now(UTC)
            if now >= renew_at and (scope is not None or not secrets):
                secrets, renew_at = self._secrets.secrets(session.scope, now)
            session.offer(snapshot.revision)
            yield {**self._resources(snapshot, session.scope), TypeUrl.SECRET: secrets}
            session.note_settled()  # when nothing of it concerned this proxy, no answer will come
            try:
                async with asyncio.timeout((renew_at - now).total_seconds() if scope is not None else None):
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


def _node(node: Node) -> ProxyNode:
    texts = {key: value.string_value for key, value in node.metadata.fields.items() if value.HasField("string_value")}
    return ProxyNode(id=node.id, metadata=texts)


def _bearer_token(context: ServicerContext) -> str:
    for key, value in context.invocation_metadata() or ():
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        if key == "authorization" and text.startswith("Bearer "):
            return text.removeprefix("Bearer ").strip()
    raise Unauthenticated("there is no token: the authorization header must be 'Bearer ...'")
