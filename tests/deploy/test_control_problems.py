"""What `isthmus status` says of what does not work: kept by when it began, and said of a real control plane."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp

from deploy.control import problems
from deploy.control.problems import LINGER, Found, continued, counts, reports
from federation.etcd.health import Ailment, EtcdProblem
from federation.model import (
    Audience,
    Finding,
    Freshness,
    Liveness,
    Locality,
    MemberCluster,
    NetworkName,
    ProxyRole,
    ProxyScope,
    ServiceKey,
)
from federation.snapshot import EMPTY, Change, Section, apply
from federation.xds.resources import TypeUrl
from federation.xds.session import ProxyStatus, TypeStatus
from tests.support.control import DOMAIN, Control, join, until
from tests.support.etcd import Etcd, start_etcd
from tests.support.trust import EAST, WEST, init_root
from trust.spiffe import Identity, MeshDomain, Namespace, ServiceAccount

START = datetime(2026, 1, 1, tzinfo=UTC)
CART = ServiceKey(Namespace("shop"), "cart")


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_a_problem_keeps_its_beginning_while_its_message_changes() -> None:
    known = continued((), [Found("records", "own records", "not written: a")], at(0))
    known = continued(known, [Found("records", "own records", "not written: b")], at(5))
    (report,) = reports(known)
    assert (report.message, report.since) == ("not written: b", at(0))


def test_one_that_comes_and_goes_lasts_and_one_that_is_over_is_forgotten() -> None:
    known = continued((), [Found("imports", "peer west", "a")], at(0))
    known = continued(known, [], at(2))
    known = continued(known, [Found("imports", "peer west", "a")], at(4))
    assert [report.since for report in reports(known)] == [at(0)]
    assert continued(known, [], at(4) + LINGER) == ()


def test_the_earliest_moment_that_anybody_knows_counts() -> None:
    known = continued((), [Found("etcd", "etcd", "slow: a", at(3))], at(9))
    known = continued(known, [Found("etcd", "etcd", "slow: b", at(5))], at(10))
    assert [report.since for report in reports(known)] == [at(3)]


def test_ailments_of_etcd_are_problems_of_their_own() -> None:
    found = problems.of_etcd(EtcdProblem(one, "a", at(0)) for one in (Ailment.SLOW, Ailment.READ_ONLY))
    known = continued((), found, at(1))
    assert [report.message for report in reports(known)] == ["read-only: a", "slow: a"]
    assert counts(known) == dict.fromkeys(problems.KINDS, 0) | {"etcd": 2}


def test_that_nobody_leads_is_a_problem_when_it_lasts() -> None:
    assert problems.of_leader("", at(0), at(9), campaign="") == []
    assert problems.of_leader("control-1", None, at(60), campaign="") == []
    (found,) = problems.of_leader("", at(0), at(11), campaign="no answer")
    assert found.since == at(0)
    assert found.message.endswith("(no answer)")


def test_a_proxy_that_does_not_answer_is_a_problem_when_it_lasts() -> None:
    audience = Audience(ProxyRole.SIDECAR, EAST, NetworkName("n"), Locality("eu"), CART.namespace)
    scope = ProxyScope(audience, Identity(EAST, CART.namespace, ServiceAccount("cart")), "10.1.0.1")
    types = (TypeStatus(TypeUrl.ENDPOINTS, 1, 2, stalled_since=at(10)), TypeStatus(TypeUrl.CLUSTER, 1, 1))
    proxy = ProxyStatus("east/shop/cart-1", scope, at(0), 2, 1, at(0), types)
    assert problems.of_proxies([proxy], at(14)) == []
    (found,) = problems.of_proxies([proxy], at(15))
    assert (found.subject, found.since) == ("proxy east/shop/cart-1", at(10))
    assert found.message == "does not answer about ClusterLoadAssignment"
    assert len(problems.of_proxies([proxy] * 30, at(15))) == 21


def test_silent_peers_are_said_with_the_reason() -> None:
    members = [MemberCluster(name, NetworkName("n"), "eu", ()) for name in (EAST, WEST)]
    known = apply(EMPTY, [Change(Section.MEMBERS, member.name, member) for member in members])

    def said(state: Liveness | None, why: str = "") -> list[tuple[str, str, datetime | None]]:
        heard = Freshness(state, at(5), at(1)) if state else None
        picture = apply(known, [Change(Section.FRESHNESS, WEST, heard)])
        found = problems.of_peers(picture, EAST, {WEST: why}, started=START)
        return [(one.kind, one.message, one.since) for one in found]

    assert said(Liveness.LIVE) == []
    assert said(Liveness.LIVE, "etcd is full") == [("imports", "not all that it says is kept: etcd is full", None)]
    assert said(Liveness.STALE, "timed out") == [("peer", "silent, its endpoints stay: timed out", at(5))]
    assert said(Liveness.GONE) == [("peer", "silent for too long, its endpoints are not used", at(5))]
    assert said(None, "refused") == [("peer", "never heard: refused", START)]


def test_what_is_refused_and_cannot_be_offered_or_read_is_said_and_bounded() -> None:
    (export,) = problems.of_exports([(CART, "too many ports", at(1))])
    assert (export.subject, export.since) == ("export shop/cart", at(1))
    refused = problems.of_refusals([(WEST, f"Export shop/{number}", "malformed") for number in range(100)])
    assert len(refused) == 21
    assert refused[-1].message == "80 more"
    finding = Finding("shop.yaml", 3, "", "", "is no YAML", "")
    picture = apply(EMPTY, [Change(Section.FINDINGS, "shop.yaml", (finding,))])
    assert [(one.subject, one.message) for one in problems.of_files(picture)] == [("shop.yaml", "is no YAML")]


@asynccontextmanager
async def start(folder: Path) -> AsyncIterator[tuple[Etcd, Control]]:
    """Runs a control plane whose etcd can be disturbed."""
    await asyncio.to_thread((folder / "etcd").mkdir)
    async with start_etcd(folder / "etcd") as etcd:
        control = Control(folder / "east", "east", etcd=etcd.url, arguments=("--region", "eu"))
        try:
            await control.start()
            yield etcd, control
        finally:
            await control.stop()


async def metrics(control: Control) -> str:
    token = await asyncio.to_thread((control.data / "admin-token").read_text)
    headers = {"Authorization": f"Bearer {token.strip()}"}
    url = f"http://{control.address}:15014/metrics"
    async with aiohttp.ClientSession(headers=headers) as session, session.get(url) as response:
        return await response.text()


async def test_a_control_plane_says_that_its_etcd_is_away_and_that_a_file_cannot_be_read(tmp_path: Path) -> None:
    root = init_root(tmp_path / "root", MeshDomain(DOMAIN), now=datetime.now(UTC))
    async with start(tmp_path) as (etcd, control), control.client() as client:
        await join(root, control)
        assert (await client.status()).problems == ()
        (control.manifests / "bad.yaml").write_text("{")
        status = await until(client.status, lambda status: len(status.problems) == 1)
        assert "bad.yaml" in status.problems[0].subject
        etcd.pause()
        try:
            status = await until(client.status, lambda status: any(one.subject == "etcd" for one in status.problems))
            first = next(one for one in status.problems if one.subject == "etcd")
            assert first.message.startswith("unreachable: ")
            assert 'isthmus_problems{kind="etcd"} 1.0' in await metrics(control)
        finally:
            etcd.resume()
        await until(client.status, lambda status: [one for one in status.problems if one.subject == "etcd"] == [])
        assert "problem over" in control.log
