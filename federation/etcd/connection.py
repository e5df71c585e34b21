"""The way to etcd: a gRPC channel to each of its members, which one is asked, and whose fault a failure is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import grpc
import msgspec
from grpc import aio

from federation.etcd.api import etcd_rpc_pb2 as rpc
from federation.etcd.health import Exchange, Health

REQUIRE_LEADER = (("hasleader", "true"),)
"""Metadata of streams: a member of etcd without a leader would keep them open and silent, unless asked to end them."""

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),  # a listing has no limit; gRPC's would be 4 MB
    ("grpc.max_send_message_length", -1),  # etcd has its own limit and says so
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 2000),  # the deadline of a connection attempt
    ("grpc.keepalive_time_ms", 10_000),  # etcd hangs up on clients that ask more often than each 5 s
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),  # no limit: a quiet watch sends little
    ("grpc.use_local_subchannel_pool", 1),  # one client's back-off is not another's
    ("grpc.enable_http_proxy", 0),  # an http_proxy in our environment is meant for workloads
)
_NO_SPACE = "database space exceeded"
"""Ends what etcd says when its quota is used up (NOSPACE)."""
_PASSING = frozenset(
    {
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
    }
)


class EtcdError(Exception):
    """etcd did not do what it was asked to."""


class EtcdUnavailable(EtcdError):
    """etcd cannot be reached or did not answer in time: try again later. A write may have been done or not."""


class EtcdFull(EtcdUnavailable):
    """etcd has used up its quota: it answers, and takes no writes until somebody makes room."""


class EtcdRefused(EtcdError):
    """etcd understood and will not do it, now or later: no permission, a value too large."""


class LeaseExpired(EtcdError):
    """The lease is not known to etcd (any more), and neither are the keys that hung on it."""


class EtcdTls(msgspec.Struct, frozen=True):
    """PEM files for TLS to etcd: who signed its certificate, and who we are where etcd asks for that."""

    authority: Path
    certificate: Path | None = None
    key: Path | None = None


class Server:
    """One member of etcd: what can be called on it, by the paths of its API."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.target = target
        self.channel = (
            aio.secure_channel(target, credentials, options=_CHANNEL_OPTIONS)
            if credentials
            else aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
        )
        self.range = self.channel.unary_unary(
            "/etcdserverpb.KV/Range", rpc.RangeRequest.SerializeToString, rpc.RangeResponse.FromString
        )
        self.txn = self.channel.unary_unary(
            "/etcdserverpb.KV/Txn", rpc.TxnRequest.SerializeToString, rpc.TxnResponse.FromString
        )
        self.watch: aio.StreamStreamMultiCallable[rpc.WatchRequest, rpc.WatchResponse] = self.channel.stream_stream(
            "/etcdserverpb.Watch/Watch", rpc.WatchRequest.SerializeToString, rpc.WatchResponse.FromString
        )
        self.lease_grant = self.channel.unary_unary(
            "/etcdserverpb.Lease/LeaseGrant", rpc.LeaseGrantRequest.SerializeToString, rpc.LeaseGrantResponse.FromString
        )
        self.lease_revoke = self.channel.unary_unary(
            "/etcdserverpb.Lease/LeaseRevoke",
            rpc.LeaseRevokeRequest.SerializeToString,
            rpc.LeaseRevokeResponse.FromString,
        )
        self.lease_keep_alive = self.channel.stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            rpc.LeaseKeepAliveRequest.SerializeToString,
            rpc.LeaseKeepAliveResponse.FromString,
        )


class Connection:
    """Channels to all members of one etcd; the favourite is asked until it fails. An async context manager."""

    def __init__(self, endpoints: tuple[str, ...], *, tls: EtcdTls | None) -> None:
        if not endpoints:
            raise ValueError("etcd needs at least one endpoint, such as http://127.0.0.1:2379")
        self._targets = tuple(_target(endpoint, tls) for endpoint in endpoints)
        self._tls = tls
        self._servers: tuple[Server, ...] = ()
        self._favourite = 0
        self.health = Health()
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        credentials = await asyncio.to_thread(_credentials, self._tls) if self._tls else None
        self._servers = tuple(Server(target, credentials) for target in self._targets)
        for server in self._servers:
            self._open.push_async_callback(server.channel.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def server(self) -> Server:
        """The member to ask now."""
        return self._servers[self._favourite]

    @asynccontextmanager
    async def exchange(self, server: Server, limit: timedelta, kind: Exchange) -> AsyncIterator[None]:
        """Bounds one exchange with a server, raises its failure as an EtcdError, and notes for `health` how it went.

        After EtcdUnavailable another member is the one to ask; not after EtcdFull: they are all full.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async with _translated(server, limit):
                yield
        except EtcdFull as error:
            self.health.refused_for_space(str(error), now=datetime.now(UTC))
            raise
        except EtcdUnavailable as error:
            self.health.failed(kind, str(error), timedelta(seconds=clock() - began), now=datetime.now(UTC))
            if server is self.server:  # of several exchanges that fail on it only the first one turns us away
                self._favourite = (self._favourite + 1) % len(self._servers)
            raise
        # What comes on a watch comes when it happens: how long that was waited for says nothing.
        took = None if kind is Exchange.WATCH else timedelta(seconds=clock() - began)
        self.health.answered(kind, took, now=datetime.now(UTC))


@asynccontextmanager
async def _translated(server: Server, limit: timedelta) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(limit.total_seconds()):
            yield
    except TimeoutError as error:
        raise EtcdUnavailable(f"etcd at {server.target} did not answer within {limit.total_seconds():g} s") from error
    except aio.AioRpcError as error:
        details = error.details() or error.code().name
        if error.code() is grpc.StatusCode.NOT_FOUND:  # of all that we ask for, only a lease is ever not found
            raise LeaseExpired(details) from error
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and details.endswith(_NO_SPACE):
            raise EtcdFull(details) from error
        # "grpc: received message larger than max" shares its code with what passes.
        if error.code() not in _PASSING or details.startswith("grpc:"):
            raise EtcdRefused(details) from error
        raise EtcdUnavailable(f"etcd at {server.target}: {details}") from error


def _target(endpoint: str, tls: EtcdTls | None) -> str:
    """Returns host and port of an endpoint's URL; raises ValueError."""
    url = urlsplit(endpoint)
    try:
        is_complete = url.hostname is not None and url.port is not None and url.path in ("", "/")
    except ValueError:  # the port is no number
        is_complete = False
    if url.scheme not in ("http", "https") or not is_complete:
        raise ValueError(f"{endpoint!r} is not an endpoint of etcd: http://HOST:PORT or https://HOST:PORT")
    if (url.scheme == "https") != (tls is not None):
        raise ValueError(f"{endpoint!r} does not fit: https goes with files for TLS, http without")
    return url.netloc


def _credentials(tls: EtcdTls) -> grpc.ChannelCredentials:
    certificate, key = (path.read_bytes() if path else None for path in (tls.certificate, tls.key))
    return grpc.ssl_channel_credentials(tls.authority.read_bytes(), key, certificate)
