"""The demo story: a client keeps calling while the nearest service, then the next, then a whole cluster is lost.

It runs on the bundled example and proves, request by request, what the mesh promises: no GET fails; a POST fails only
when it was in flight on the very process that was killed, because nobody may repeat it; traffic comes back.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta

import aiohttp
import msgspec

from deploy.failures import CommandFailed
from deploy.lab.client import LabClient
from deploy.lab.links import LinkState
from deploy.lab.load import Attempt, Load, parse_upstream
from deploy.lab.reports import Action, LabReport
from deploy.lab.targets import Kind
from federation.model import PROXY_ADMIN_PORT, ServiceKey
from federation.names import clusterset_host, outbound_upstream
from trust.spiffe import Namespace

CLIENT = "east/shop/client"
SERVICE = ServiceKey(Namespace("shop"), "cart")
URL = f"http://{clusterset_host(SERVICE)}/"

HOLD = timedelta(seconds=3)
"""How long a step is watched after traffic has settled."""
LIMIT = timedelta(seconds=10)
"""How long traffic may take to settle where it should; also the promise for the way back."""

_SETTLED = 40  # consecutive answers from where they should come
_KNOWN = timedelta(seconds=30)  # how long the client's proxy may take to know all endpoints
_POLL = 0.05  # seconds


class Chapter(msgspec.Struct, frozen=True):
    """One step of the story: what is done to which targets, and who (cluster, zone) answers then."""

    title: str
    action: Action | None
    targets: tuple[str, ...]
    expected: tuple[str, str]
    sentence: str


STORY = (
    Chapter("all is well", None, (), ("east", "a"), "Everything runs"),
    Chapter(
        "kill app in zone a", Action.KILL, ("east/shop/cart-1/app",), ("east", "b"), "The program in east a was killed"
    ),
    Chapter(
        "kill sidecar in zone b",
        Action.KILL,
        ("east/shop/cart-2/sidecar",),
        ("west", "a"),
        "The sidecar in east b was killed too",
    ),
    Chapter("kill cluster west", Action.KILL, ("west",), ("south", "a"), "The whole cluster west was killed too"),
    Chapter(
        "start everything", Action.START, ("west", "east/shop/cart"), ("east", "a"), "Everything was started again"
    ),
)


class ChapterReport(msgspec.Struct, frozen=True, rename="camel"):
    """What a step of the story saw. `settled_after` in seconds, None when traffic never settled as expected.

    `posts_in_flight` failed and were in flight on a killed process; `posts_failed` were not, and must not be.
    """

    title: str
    sentence: str
    expected: str
    answered_by: dict[str, int]
    settled_after: float | None
    gets: int
    gets_failed: int
    posts: int
    posts_in_flight: int
    posts_failed: int
    failures: dict[str, int]

    @property
    def held(self) -> bool:
        """Whether the promise held."""
        return self.settled_after is not None and not self.gets_failed and not self.posts_failed


class DemoReport(msgspec.Struct, frozen=True, rename="camel"):
    """The whole story."""

    url: str
    rate: float
    held: bool
    chapters: tuple[ChapterReport, ...]


class Moment(msgspec.Struct, frozen=True):
    """When a step's action began and ended, in seconds of the event loop's clock."""

    began: float
    ended: float


async def run_demo(client: LabClient, *, rate: float, tell: Callable[[ChapterReport], None]) -> DemoReport:
    """Plays the story in a running lab; `tell` is called after each step. Raises CommandFailed when it cannot begin."""
    await _set_the_stage(client)
    proxy = (await client.environment(CLIENT)).variables["http_proxy"]
    load = Load(URL, proxy=proxy, rate=rate, methods=("GET", "POST"))
    moments: list[Moment] = []
    settled: list[float | None] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        for number, chapter in enumerate(STORY):
            moments.append(await _act(client, chapter))
            settled.append(await _settle(load, chapter, moments[-1]))
            await asyncio.sleep(HOLD.total_seconds())
            if number < len(STORY) - 1:
                tell(_report(chapter, load.attempts, moments, number=number, settled=settled[number]))
        load.stop()
    chapters = tuple(
        _report(chapter, load.attempts, moments, number=number, settled=settled[number])
        for number, chapter in enumerate(STORY)
    )
    tell(chapters[-1])
    return DemoReport(url=URL, rate=rate, held=all(chapter.held for chapter in chapters), chapters=chapters)


async def _set_the_stage(client: LabClient) -> None:
    """Starts what does not run, heals links, and waits until the client's proxy knows every endpoint."""
    report = await client.status()
    for target in (CLIENT, *(target for chapter in STORY for target in chapter.targets)):
        if not any((process.target + "/").startswith(target) for process in report.processes):
            raise CommandFailed(
                f"the demo story needs the bundled example: this lab has no {target}",
                "start it beside this one: isthmus lab up --name demo --detach; isthmus lab demo --name demo",
            )
    for link in report.links:
        await client.set_link(*link.between, LinkState.OPEN)
    for cluster in report.clusters:
        await client.act(Action.RESUME, cluster.name)
        await client.act(Action.START, cluster.name)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
        known = 0
        try:
            async with asyncio.timeout(_KNOWN.total_seconds()):
                while True:
                    known = await _healthy_endpoints(http, report)
                    if known >= _carts(report):
                        return
                    await asyncio.sleep(_POLL)
        except TimeoutError as error:
            raise CommandFailed(
                f"the client's sidecar sees {known} of {_carts(report)} healthy endpoints of {URL}",
                "see `isthmus lab status`, `isthmus clusters` and `isthmus proxies`",
            ) from error


def _carts(report: LabReport) -> int:
    return sum(
        process.kind is Kind.APP and process.target.split("/")[1:2] == [SERVICE.namespace] and _is_cart(process.target)
        for process in report.processes
    )


def _is_cart(target: str) -> bool:
    return target.split("/")[2].rpartition("-")[0] == SERVICE.name


async def _healthy_endpoints(http: aiohttp.ClientSession, report: LabReport) -> int:
    """Asks the client's Envoy how many healthy endpoints it has for the service."""
    sidecar = next(each for each in report.processes if each.target == f"{CLIENT}-1/sidecar")
    try:
        async with http.get(f"http://{sidecar.address}:{PROXY_ADMIN_PORT}/clusters?format=json") as response:
            body = msgspec.json.decode(await response.read(), type=_EnvoyClusters)
    except (aiohttp.ClientError, TimeoutError):
        return 0
    name = outbound_upstream(clusterset_host(SERVICE), 80)
    return sum(
        host.health_status in ({}, {"eds_health_status": "HEALTHY"})
        for cluster in body.cluster_statuses
        if cluster.name == name
        for host in cluster.host_statuses
    )


class _EnvoyHost(msgspec.Struct, frozen=True):
    """A part of Envoy's admin.v3.HostStatus."""

    health_status: dict[str, object] = {}


class _EnvoyCluster(msgspec.Struct, frozen=True):
    """A part of Envoy's admin.v3.ClusterStatus."""

    name: str = ""
    host_statuses: tuple[_EnvoyHost, ...] = ()


class _EnvoyClusters(msgspec.Struct, frozen=True):
    """A part of Envoy's admin.v3.Clusters."""

    cluster_statuses: tuple[_EnvoyCluster, ...] = ()


async def _act(client: LabClient, chapter: Chapter) -> Moment:
    now = asyncio.get_running_loop().time
    began = now()
    if chapter.action is not None:
        for target in chapter.targets:
            await client.act(chapter.action, target)
    return Moment(began, now())


async def _settle(load: Load, chapter: Chapter, moment: Moment) -> float | None:
    """Waits until answers come from where they should; returns after how many seconds they began to."""
    try:
        async with asyncio.timeout(LIMIT.total_seconds()):
            while True:
                since = settled_since(load.attempts, chapter.expected, moment.ended)
                if since is not None:
                    return max(0.0, since - moment.ended)
                await asyncio.sleep(_POLL)
    except TimeoutError:
        return None


def settled_since(attempts: Sequence[Attempt], expected: tuple[str, str], after: float) -> float | None:
    """Returns when the present run of answers from `expected` (cluster, zone) began to be sent; None when it is short.

    Only requests sent after `after` count. Pure.
    """
    since, run = None, 0
    for attempt in sorted((each for each in attempts if each.sent >= after), key=lambda each: each.sent):
        if not attempt.failure and parse_upstream(attempt.upstream)[:2] == expected:
            since = attempt.sent if run == 0 else since
            run += 1
        else:
            run = 0
    return since if run >= _SETTLED else None


def _report(
    chapter: Chapter, attempts: Sequence[Attempt], moments: Sequence[Moment], *, number: int, settled: float | None
) -> ChapterReport:
    """Counts the requests that ended between this step's action and the next one's: what it broke ended after it."""
    begin = moments[number].began if number else float("-inf")
    end = moments[number + 1].began if number + 1 < len(moments) else float("inf")
    kills = [moment for moment, each in zip(moments, STORY, strict=False) if each.action is Action.KILL]
    mine = [attempt for attempt in attempts if begin <= attempt.ended < end]
    gets = [attempt for attempt in mine if attempt.method == "GET"]
    posts = [attempt for attempt in mine if attempt.method == "POST"]
    lost = [attempt for attempt in posts if attempt.failure]
    in_flight = [attempt for attempt in lost if was_in_flight(attempt, kills)]
    places = Counter("/".join(parse_upstream(each.upstream)[:2]) for each in mine if not each.failure)
    return ChapterReport(
        title=chapter.title,
        sentence=_sentence(chapter, settled, len(lost)),
        expected="/".join(chapter.expected),
        answered_by=dict(places.most_common()),
        settled_after=settled,
        gets=len(gets),
        gets_failed=sum(bool(attempt.failure) for attempt in gets),
        posts=len(posts),
        posts_in_flight=len(in_flight),
        posts_failed=len(lost) - len(in_flight),
        failures=dict(Counter(f"{each.method}: {each.failure}" for each in mine if each.failure).most_common()),
    )


def was_in_flight(attempt: Attempt, kills: Sequence[Moment]) -> bool:
    """Says whether a request was under way while something was killed: sent before the process was gone. Pure."""
    return any(attempt.sent <= kill.ended and attempt.ended >= kill.began for kill in kills)


def _sentence(chapter: Chapter, settled: float | None, lost: int) -> str:
    place = f"{chapter.expected[0]}, zone {chapter.expected[1]},"
    if settled is None:
        return f"{chapter.sentence}: {place} did not take over within {LIMIT.total_seconds():.0f} s."
    if chapter.action is None:
        return f"{chapter.sentence}: {place} answers."
    price = f"{lost} POST in flight {'was' if lost == 1 else 'were'} lost" if lost else "nothing was lost"
    return f"{chapter.sentence}: {place} answers after {settled:.2f} s, {price}."
