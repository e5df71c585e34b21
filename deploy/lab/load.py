"""An open-loop load generator: requests leave on schedule, whatever happens to the earlier ones.

Latency counts from the moment a request was due, so that a stall is seen by all requests that it held up. Each request
is tried once: aiohttp's silent second try on a broken keep-alive connection counts as a failure.
"""

import asyncio
import contextlib
import math
import os
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace

import aiohttp
import msgspec

from federation.names import UPSTREAM_HEADER, parse_upstream_label

TIMEOUT = timedelta(seconds=10)
MAX_IN_FLIGHT = 5_000  # requests; beyond that we would measure ourselves, so they count as failed at once


class Attempt(msgspec.Struct, frozen=True):
    """One request. Times are of the event loop's clock, in seconds. `failure` is empty when the answer was below 400.

    `upstream` is who answered, `cluster/zone/namespace/pod`, empty when unknown.
    """

    method: str
    due: float
    sent: float
    ended: float
    upstream: str
    failure: str = ""


class Second(msgspec.Struct, frozen=True):
    """What became of the requests that were due in one second, counted from 0."""

    second: int
    ok: int
    failed: int


class AnsweredBy(msgspec.Struct, frozen=True):
    """How many requests a workload instance answered; names are empty when the answer did not say."""

    cluster: str
    zone: str
    namespace: str
    workload: str
    count: int


class LoadReport(msgspec.Struct, frozen=True, rename="camel"):
    """What a load run saw. Latencies in milliseconds of the answers below 400."""

    url: str
    rate: float
    sent: int
    ok: int
    failed: int
    failures: dict[str, int]
    failed_by_method: dict[str, int]
    answered_by: tuple[AnsweredBy, ...]
    seconds: tuple[Second, ...]
    p50: float
    p99: float
    slowest: float


class Load:
    """Sends requests to one URL at a rate per second, methods in turn. `attempts` grows as they end."""

    def __init__(self, url: str, *, proxy: str | None, rate: float, methods: Sequence[str] = ("GET",)) -> None:
        self.attempts: list[Attempt] = []
        self._url = url
        self._proxy = proxy
        self._rate = rate
        self._methods = tuple(methods)
        self._in_flight = 0
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Makes `run` send nothing more; it returns when the last answer came."""
        self._stopping.set()

    async def run(self, duration: timedelta | None = None) -> None:
        """Sends for `duration`, or until `stop`; returns when all requests have ended."""
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(_count_connection)
        trace.on_connection_create_end.append(_count_connection)
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=TIMEOUT.total_seconds()),
                trace_configs=[trace],
                auto_decompress=False,
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            await self._schedule(session, group, duration)

    async def _schedule(
        self, session: aiohttp.ClientSession, group: asyncio.TaskGroup, duration: timedelta | None
    ) -> None:
        loop = asyncio.get_running_loop()
        start, number = loop.time(), 0
        while not self._stopping.is_set():
            if duration is not None and number / self._rate >= duration.total_seconds():
                return
            due = start + number / self._rate
            wait = due - loop.time()
            if wait > 0 and await self._stops_within(wait):
                return
            method = self._methods[number % len(self._methods)]
            number += 1
            if self._in_flight >= MAX_IN_FLIGHT:
                now = loop.time()
                self.attempts.append(Attempt(method, due, now, now, "", "too many requests in flight"))
                continue
            self._in_flight += 1
            group.create_task(self._request(session, method, due))

    async def _stops_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()

    async def _request(self, session: aiohttp.ClientSession, method: str, due: float) -> None:
        now = asyncio.get_running_loop().time
        sent, upstream, failure = now(), "", ""
        connections = Counter[str]()
        try:
            async with session.request(
                method,
                self._url,
                proxy=self._proxy,
                data=b"isthmus" if method in ("POST", "PUT", "PATCH") else None,
                trace_request_ctx=connections,
                allow_redirects=False,
            ) as response:
                await response.read()
                upstream = response.headers.get(UPSTREAM_HEADER, "")
                if response.status >= 400:
                    failure = f"status {response.status}"
                elif connections["used"] > 1:
                    failure = "connection broken, then repeated by the client"
        except TimeoutError:
            failure = f"no answer within {TIMEOUT.total_seconds():.0f} s"
        except aiohttp.ClientConnectorError as error:
            code = error.os_error.errno
            failure = f"no connection: {os.strerror(code) if code else error.os_error}"
        except (aiohttp.ClientError, OSError) as error:
            failure = f"connection broken: {type(error).__name__}"
        finally:
            self._in_flight -= 1
        self.attempts.append(Attempt(method, due, sent, now(), upstream, failure))


async def _count_connection(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
    context.trace_request_ctx["used"] += 1


def summarise(attempts: Sequence[Attempt], url: str, rate: float) -> LoadReport:
    """Returns what a run of attempts amounts to. Pure."""
    good = [attempt for attempt in attempts if not attempt.failure]
    bad = [attempt for attempt in attempts if attempt.failure]
    start = min((attempt.due for attempt in attempts), default=0.0)
    ok, failed = (Counter(int(attempt.due - start) for attempt in some) for some in (good, bad))
    latencies = sorted((attempt.ended - attempt.due) * 1000 for attempt in good)
    return LoadReport(
        url=url,
        rate=rate,
        sent=len(attempts),
        ok=len(good),
        failed=len(bad),
        failures=dict(Counter(attempt.failure for attempt in bad).most_common()),
        failed_by_method=dict(sorted(Counter(attempt.method for attempt in bad).items())),
        answered_by=tuple(
            AnsweredBy(*parse_upstream(upstream), count=count)
            for upstream, count in sorted(Counter(attempt.upstream for attempt in good).items())
        ),
        seconds=tuple(Second(each, ok[each], failed[each]) for each in sorted(ok.keys() | failed.keys())),
        p50=percentile(latencies, 50),
        p99=percentile(latencies, 99),
        slowest=latencies[-1] if latencies else 0.0,
    )


def parse_upstream(text: str) -> tuple[str, str, str, str]:
    """Returns (cluster, zone, namespace, pod) of the upstream header; empty texts when it does not say."""
    return parse_upstream_label(text) or ("", "", "", "")


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Returns the nearest-rank percentile of sorted values; 0 when there are none."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
