"""The load generator and how the demo story judges what it saw."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from aiohttp import web
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from deploy.cli.lab import lab
from deploy.lab.demo import Moment, settled_since, was_in_flight
from deploy.lab.load import Attempt, Load, parse_upstream, percentile, summarise
from federation.names import UPSTREAM_HEADER

PROXY = ("127.106.4.60", 15001)
URL = "http://cart.shop.svc.clusterset.local/some/path"


@asynccontextmanager
async def proxying(handler: object) -> AsyncIterator[str]:
    """An HTTP proxy that answers by itself: what a sidecar is to the program beside it."""
    server = web.Server(handler)  # type: ignore[arg-type]
    runner = web.ServerRunner(server)
    await runner.setup()
    try:
        await web.TCPSite(runner, *PROXY).start()
        yield f"http://{PROXY[0]}:{PROXY[1]}"
    finally:
        await runner.cleanup()


async def test_requests_go_through_the_proxy_and_are_counted_by_who_answered() -> None:
    seen: list[tuple[str, str, bytes]] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        seen.append((request.method, str(request.url), await request.read()))
        place = "west/a/shop/cart-2" if len(seen) % 4 == 0 else "east/b/shop/cart-1"
        return web.Response(headers={UPSTREAM_HEADER: place})

    async with proxying(answer) as proxy:
        load = Load(URL, proxy=proxy, rate=200, methods=("GET", "POST"))
        await load.run(timedelta(seconds=0.5))
    report = summarise(load.attempts, URL, 200)
    assert (report.sent, report.ok, report.failed) == (100, 100, 0)
    assert min(seen) == ("GET", URL, b"")
    assert max(seen) == ("POST", URL, b"isthmus")
    assert [(each.cluster, each.zone, each.workload, each.count) for each in report.answered_by] == [
        ("east", "b", "cart-1", 75),
        ("west", "a", "cart-2", 25),
    ]
    assert 0 < report.p50 <= report.p99 <= report.slowest


async def test_failures_are_told_apart() -> None:
    answered = 0

    async def answer(request: web.BaseRequest) -> web.Response:
        nonlocal answered
        answered += 1
        if answered % 2:
            return web.Response(status=503)
        request.transport.abort()  # type: ignore[union-attr]
        return web.Response()

    async with proxying(answer) as proxy:
        load = Load(URL, proxy=proxy, rate=50, methods=("POST",))
        await load.run(timedelta(seconds=0.2))
    report = summarise(load.attempts, URL, 50)
    assert (report.ok, report.failed) == (0, 10)
    assert report.failures["status 503"] == 5
    assert sum(count for text, count in report.failures.items() if text.startswith("connection broken")) == 5
    assert report.failed_by_method == {"POST": 10}


async def test_a_second_try_of_the_http_library_counts_as_a_failure() -> None:
    calls = 0

    async def answer(request: web.BaseRequest) -> web.Response:
        nonlocal calls
        calls += 1
        if calls == 2:  # the keep-alive connection breaks under the second request, which aiohttp repeats
            request.transport.abort()  # type: ignore[union-attr]
        return web.Response()

    async with proxying(answer) as proxy:
        load = Load(URL, proxy=proxy, rate=10)
        await load.run(timedelta(seconds=0.4))
    assert calls == 5
    assert [attempt.failure for attempt in load.attempts] == [
        "",
        "connection broken, then repeated by the client",
        "",
        "",
    ]


async def test_nobody_there_is_a_failure_too() -> None:
    load = Load(URL, proxy=f"http://{PROXY[0]}:{PROXY[1]}", rate=50)
    await load.run(timedelta(seconds=0.1))
    assert {attempt.failure for attempt in load.attempts} == {"no connection: Connection refused"}


async def test_the_schedule_does_not_wait_for_answers() -> None:
    waiting, go = 0, asyncio.Event()

    async def answer(_: web.BaseRequest) -> web.Response:
        nonlocal waiting
        waiting += 1
        if waiting == 20:
            go.set()
        await go.wait()
        return web.Response()

    async with proxying(answer) as proxy, asyncio.timeout(60):
        load = Load(URL, proxy=proxy, rate=100)
        await load.run(timedelta(seconds=0.2))  # would hang if a request waited for the one before
    assert summarise(load.attempts, URL, 100).ok == 20


def attempt(sent: float, ended: float, upstream: str = "east/a/shop/cart-1", failure: str = "") -> Attempt:
    return Attempt(method="POST", due=sent, sent=sent, ended=ended, upstream=upstream, failure=failure)


def test_a_lost_request_is_excused_only_if_it_was_under_way_while_something_was_killed() -> None:
    kill = Moment(began=10.0, ended=10.2)
    assert was_in_flight(attempt(9.9, 10.1), [kill])
    assert was_in_flight(attempt(10.1, 11.0), [kill])
    assert not was_in_flight(attempt(9.0, 9.9), [kill])
    assert not was_in_flight(attempt(10.3, 10.4), [kill])


def test_traffic_has_settled_when_enough_answers_in_a_row_come_from_the_right_place() -> None:
    early = [attempt(number / 10, number / 10 + 0.01, "east/b/shop/cart-2") for number in range(10)]
    late = [attempt(1 + number / 10, 1 + number / 10 + 0.01) for number in range(40)]
    assert settled_since(early + late, ("east", "a"), 0.0) == 1.0
    assert settled_since(early + late[:-1], ("east", "a"), 0.0) is None
    assert settled_since([*early, *late, attempt(9.0, 9.1, failure="status 503")], ("east", "a"), 0.0) is None
    assert settled_since(early + late, ("east", "a"), 1.05) is None


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
def test_a_percentile_has_that_share_of_values_at_or_below_it(values: list[float], percent: int) -> None:
    found = percentile(sorted(values), percent)
    assert sum(value <= found for value in values) >= len(values) * percent / 100
    assert sum(value < found for value in values) < len(values) * percent / 100 + 1e-9


def test_an_empty_run_is_summarised_too() -> None:
    report = summarise([], URL, 1)
    assert (report.sent, report.p99, report.answered_by) == (0, 0.0, ())
    assert parse_upstream("nonsense") == ("", "", "", "")


@pytest.mark.parametrize("url", ["cart", "https://cart.shop/", "http://", "http://[", "http://cart:99999/"])
def test_a_url_that_cannot_be_called_is_wrong_usage(url: str) -> None:
    result = CliRunner().invoke(lab, ["load", "east/shop/client", url])
    assert result.exit_code == 2
    assert "is not http://HOST" in result.output
