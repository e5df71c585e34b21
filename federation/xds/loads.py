"""What proxies carry, by their own counters: Envoy's load reporting service, summed up per service and member.

Envoy opens a stream of its own for it, next to ADS, to whichever replica its balancing picks, and shows the same token.
The localities of its endpoints have the member as `sub_zone`. What Envoy 1.40 counts (measured): HTTP requests, streams
and TCP connections alike as requests that are issued and in progress; an open one in every report, also when nothing
moves on it; only at hosts of its current load assignments.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta

import grpc
from envoy.service.load_stats.v3 import lrs_pb2
from google.protobuf.message import DecodeError

from federation.loads import Load, Tally, Target, known_targets, patience, report_interval
from federation.reports import LoadReport
from federation.store import MeshStore
from federation.xds.ads import MAX_AGE, Admission, Admitted, bearer_token, jittered, proxy_node
from federation.xds.server import Refused, Unavailable, stream_handler
from federation.xds.session import ProxyNode
from trust.spiffe import ClusterName

log = logging.getLogger(__name__)

LRS_SERVICE = "envoy.service.load_stats.v3.LoadReportingService"

ReportContext = grpc.aio.ServicerContext[bytes, bytes]

_FIRST_LIMIT = timedelta(seconds=10)
_ADMIT_LIMIT = timedelta(seconds=5)  # a token is looked up in etcd
_WRITE_LIMIT = timedelta(seconds=10)
_LONGEST_REPORT = 8 << 20  # bytes: 60 KB for the node, and 60 for each service port, more for one in use
_LARGEST_COUNT = 1 << 40  # of one report: more is nonsense, and sums must stay numbers that JSON readers can hold
_PACE = timedelta(milliseconds=500)
"""Between two reports of a stream, at least: Envoy sends one a second or less, and reading the longest takes 50 ms."""
_MOST_STREAMS = 3
"""Of one proxy, which needs one: those that broke unnoticed are given up after a while."""
_QUIET = 0.1  # seconds between a change of the picture and what follows from it here


class MalformedReport(Refused):
    """A report that Envoy would not send."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class LoadServer:
    """Takes the load reports of the proxies that come to this replica. `run` keeps it in step with the picture."""

    def __init__(
        self,
        store: MeshStore,
        *,
        cluster: ClusterName,
        replica: str,
        admission: Admission,
        connected: Callable[[], Collection[str]],
        max_age: timedelta = MAX_AGE,
    ) -> None:
        """`connected` returns the nodes of the sidecars on ADS streams of this replica; `max_age` is as for those."""
        self._store = store
        self._cluster = cluster
        self._replica = replica
        self._admission = admission
        self._connected = connected
        self._max_age = max_age
        self._started = datetime.now(UTC)
        self._tally = Tally()
        self._targets: Mapping[str, Mapping[ClusterName, Target]] = {}
        self._streams: dict[asyncio.Event, str] = {}  # set when the interval changed -> the node of that stream
        self._interval = report_interval(store.snapshot, 0)

    @property
    def handler(self) -> grpc.GenericRpcHandler:
        """The load reporting service, for the server of the ADS port."""
        return stream_handler(LRS_SERVICE, "StreamLoadStats", self._serve)

    def report(self) -> LoadReport:
        """Returns the sums since this replica started, and what is open now."""
        now = datetime.now(UTC)
        connected = set(self._connected())
        self._tidy(now, connected)
        reporters = self._tally.reporters()
        lately = {node for node, at in reporters.items() if at >= now - patience(self._interval)}
        return LoadReport(
            cluster=self._cluster,
            replica=self._replica,
            interval=self._interval.total_seconds(),
            reporting=len(reporters),
            silent=tuple(sorted(connected - lately)),
            visitors=tuple(sorted(lately - connected)),
            at=min(reporters.values(), default=None),
            started=self._started,
            loads=self._tally.loads(),
        )

    async def run(self) -> None:
        """Follows the picture: what may be reported, and how often. For ever."""
        seen = None
        snapshot = await self._store.wait_ready()
        while True:
            now = (snapshot.services, snapshot.imports)
            if seen is None or any(one is not other for one, other in zip(seen, now, strict=True)):
                seen = now
                self._targets = known_targets(snapshot, self._cluster)
                self._tally.forget({target for targets in self._targets.values() for target in targets.values()})
            self._pace()
            await asyncio.sleep(_QUIET)
            snapshot = await self._store.wait_newer(snapshot.revision)

    def _pace(self) -> None:
        """Asks every proxy anew when the interval has changed."""
        interval = report_interval(self._store.snapshot, len(set(self._streams.values())))
        if interval != self._interval:
            self._interval = interval
            log.info("load reports are asked for", extra={"interval": interval.total_seconds()})
            for changed in self._streams:
                changed.set()

    def _tidy(self, now: datetime, connected: Collection[str]) -> None:
        self._tally.tidy({*connected, *self._streams.values()}, now, interval=self._interval)

    async def _serve(self, context: ReportContext) -> None:
        first = await self._first(context)
        node = proxy_node(first.node, context.peer())
        try:
            async with asyncio.timeout(_ADMIT_LIMIT.total_seconds()):
                admitted = await self._admission.admit(node, bearer_token(context))
        except TimeoutError:
            raise Unavailable("nobody can say now whether this token is good") from None
        if self._admission.scope(self._store.snapshot, node, admitted.identity) is None:
            raise Unavailable(f"the picture of this cluster holds no proxy {node.id!r} for {admitted.identity}")
        if sum(one == node.id for one in self._streams.values()) >= _MOST_STREAMS:
            raise Unavailable(f"{node.id} has {_MOST_STREAMS} streams of reports already")
        stream = asyncio.Event()
        stream.set()
        self._tidy(datetime.now(UTC), self._connected())
        self._streams[stream] = node.id
        self._pace()
        try:
            async with asyncio.TaskGroup() as tasks:
                asking = tasks.create_task(self._ask(context, stream))
                watching = tasks.create_task(self._watch(node, admitted))
                await self._read(context, node)
                asking.cancel()
                watching.cancel()
        finally:
            del self._streams[stream]
            self._pace()

    async def _first(self, context: ReportContext) -> lrs_pb2.LoadStatsRequest:
        try:
            async with asyncio.timeout(_FIRST_LIMIT.total_seconds()):
                body = await context.read()
        except TimeoutError:
            raise Refused("no report came") from None
        if not isinstance(body, bytes):
            raise Refused("the stream ended before its first report")
        return _parsed(body)

    async def _ask(self, context: ReportContext, stream: asyncio.Event) -> None:
        """Asks for reports, and again whenever they are to come at another pace."""
        while True:
            await stream.wait()
            stream.clear()
            response = lrs_pb2.LoadStatsResponse(send_all_clusters=True)
            response.load_reporting_interval.FromTimedelta(self._interval)
            try:
                async with asyncio.timeout(_WRITE_LIMIT.total_seconds()):
                    await context.write(response.SerializeToString())
            except TimeoutError:
                raise Unavailable("nobody reads what is asked") from None
            except grpc.aio.InternalError:
                return  # the stream ended under a write

    async def _watch(self, node: ProxyNode, admitted: Admitted) -> None:
        """Ends a stream, by raising Refused, when its proof is no longer good or has to be shown again."""
        try:
            async with asyncio.timeout(jittered(self._max_age).total_seconds()):
                await self._admission.ended(node, admitted)
        except TimeoutError:
            raise Unavailable("time to authenticate again") from None

    async def _read(self, context: ReportContext, node: ProxyNode) -> None:
        # No deadline: whether the proxy still lives is seen by HTTP/2 keepalive, and who is silent is named.
        while isinstance(body := await context.read(), bytes):
            self._tally.take(node.id, self._loads(_parsed(body)), datetime.now(UTC))
            await asyncio.sleep(_PACE.total_seconds())  # what comes sooner waits with its sender

    def _loads(self, request: lrs_pb2.LoadStatsRequest) -> Mapping[Target, Load]:
        """Returns what a report says about what is known; raises MalformedReport."""
        found: dict[Target, tuple[int, int, int]] = {}
        for cluster in request.cluster_stats:
            # Nothing happened: that is what most of a report says.
            if not (localities := cluster.upstream_locality_stats) or cluster.cluster_name not in self._targets:
                continue
            targets = self._targets[cluster.cluster_name]
            for stats in localities:
                opened, issued = stats.total_requests_in_progress, stats.total_issued_requests
                failed = stats.total_error_requests
                target = targets.get(ClusterName(stats.locality.sub_zone))
                if target is not None:  # one member may have several localities, and each several priorities
                    before = found.get(target, (0, 0, 0))
                    counts = before[0] + opened, before[1] + issued, before[2] + failed
                    if max(counts) > _LARGEST_COUNT:
                        raise MalformedReport(f"{max(counts)} calls to {cluster.cluster_name} at once")
                    found[target] = counts
        return {target: Load(*counts) for target, counts in found.items()}


def _parsed(body: bytes) -> lrs_pb2.LoadStatsRequest:
    if len(body) > _LONGEST_REPORT:
        raise MalformedReport(f"{len(body)} bytes are more than the {_LONGEST_REPORT} that a report may have")
    try:
        request = lrs_pb2.LoadStatsRequest.FromString(body)
    except DecodeError as error:
        raise MalformedReport(f"the report cannot be read: {error}") from error
    return request
