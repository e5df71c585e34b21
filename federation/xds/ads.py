"""Serves proxies: who may have a stream, what each is told, and what each has taken."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Protocol

import grpc
import msgspec

from federation.model import ProxyScope
from federation.snapshot import Snapshot
from federation.store import MeshStore
from federation.xds.resources import Resource, ResourceSet, TypeUrl
from trust.spiffe import Identity

Compile = Callable[[Snapshot, ProxyScope], ResourceSet]
"""Everything but secrets. Pure; called once for each (revision, scope)."""


class ProxyNode(msgspec.Struct, frozen=True):
    """How a proxy introduces itself: Envoy's node. `metadata` holds the entries whose value is text."""

    id: str
    metadata: Mapping[str, str]


class Admission(Protocol):
    """Decides who is who."""

    async def admit(self, node: ProxyNode, token: str) -> Identity:
        """Returns the identity that `token` proves; raises server.Unauthenticated, or server.Refused."""

    def scope(self, snapshot: Snapshot, node: ProxyNode, identity: Identity) -> ProxyScope | None:
        """Returns what the picture knows of this proxy; None while it knows nothing (it may appear later).

        Asked again for every new picture. A connected proxy that vanished from it keeps what it has until it leaves,
        but gets no new certificate. Raises server.Refused when `identity` may never be this node.
        """


class SecretSource(Protocol):
    """Makes the secrets of one proxy."""

    def secrets(self, scope: ProxyScope, now: datetime) -> tuple[Mapping[str, Resource], datetime]:
        """Returns new SDS resources by name, and when to ask again (UTC)."""


class RejectedResource(msgspec.Struct, frozen=True):
    """A resource that a proxy refused, since when and why."""

    name: str
    version: str
    message: str
    since: datetime


class TypeStatus(msgspec.Struct, frozen=True):
    """One resource type at one proxy. `acknowledged` counts resources, `pushes` responses on this stream."""

    type_url: TypeUrl
    acknowledged: int
    pushes: int
    rejected: tuple[RejectedResource, ...] = ()
    stalled_since: datetime | None = None


class ProxyStatus(msgspec.Struct, frozen=True):
    """A proxy on a stream now. `acknowledged_revision` is 0 until it has taken (or refused) a whole picture."""

    node: str
    scope: ProxyScope
    connected_since: datetime
    offered_revision: int
    acknowledged_revision: int
    acknowledged_at: datetime | None
    types: tuple[TypeStatus, ...]


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
        """`on_converged` is told the time from a change to its last ACK by a proxy, and whether a peer made it."""
        raise NotImplementedError

    @property
    def handler(self) -> grpc.GenericRpcHandler:
        """The ADS method, for a grpc.aio server with server.SERVER_OPTIONS; open its port when the store is ready."""
        raise NotImplementedError

    def proxies(self) -> tuple[ProxyStatus, ...]:
        """The proxies on this replica's streams now, by node."""
        raise NotImplementedError
