"""What a real Envoy acknowledges of its trust: the mark that rotations and revocations wait for."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from federation.names import TRUST_BUNDLE_SECRET, WORKLOAD_SECRET
from federation.snapshot import Change, Section
from federation.xds.resources import Resource, TypeUrl
from federation.xds.session import TrustMark
from tests.support.ads import (
    World,
    app,
    by_name,
    endpoints,
    listener,
    routes,
    tls_listener,
    tls_secret,
    trust_secret,
    upstream,
)
from tests.support.waiting import eventually
from trust.bundle import Revocation, make_revocation, revoked_digest

NODE = "east/shop/cart-1"


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.show({TypeUrl.LISTENER: by_name(tls_listener(made.address, checks_clients=True))})
    return made


def secrets(authority: trustme.CA, *roots: trustme.CA, name: str = "cart.test") -> dict[str, Resource]:
    """A certificate of `authority`, and the roots to believe."""
    bundle = b"".join(root.cert_pem.bytes() for root in roots or (authority,)).decode()
    return by_name(tls_secret(WORKLOAD_SECRET, authority.issue_cert(name)), trust_secret(TRUST_BUNDLE_SECRET, bundle))


def revoke(world: World, subject: str) -> Revocation:
    revocation = make_revocation(subject, at=datetime.now(UTC))
    world.store.apply([Change(Section.REVOCATIONS, subject, revocation)])
    return revocation


async def marked(world: World, bundle: str, authority: str, revoked: str = "") -> None:
    await eventually(
        lambda: [one.mark for one in world.ads.proxies()] == [TrustMark(bundle, authority, revoked)],
        f"the proxy has acknowledged {bundle}, {authority} and {revoked}",
    )


async def test_a_proxy_is_marked_with_what_it_has_taken(world: World) -> None:
    old, new = trustme.CA(), trustme.CA()
    world.entrust(secrets(old), authority="old", bundle="1")
    async with world.serve(), world.envoy() as envoy:
        await envoy.wait_live()
        await marked(world, "1", "old")
        assert world.proxy().certificate_expires is not None
        noted = world.noted[NODE]
        assert (noted.identity, noted.bundle, noted.authority, noted.problem) == ("shop/cart", "1", "old", "")
        world.entrust(secrets(old, old, new), authority="old", bundle="2")
        await marked(world, "2", "old")
        world.entrust(secrets(new, old, new), authority="new", bundle="2")
        await marked(world, "2", "new")
        revocation = revoke(world, "west")
        await marked(world, "2", "new", revoked_digest([revocation]))
        enforced = world.noted[NODE].revoked_at
        assert enforced is not None
        assert enforced >= revocation.at
        await envoy.kill()
        await eventually(lambda: not world.noted[NODE].is_connected)
        assert world.noted[NODE].authority == "new", "what it has is not forgotten with its stream"
        assert world.noted[NODE].revoked_at == enforced


async def test_a_proxy_that_refuses_keeps_its_mark_and_is_named_with_the_reason(world: World) -> None:
    first, other = trustme.CA(), trustme.CA()
    world.entrust(secrets(first), authority="first", bundle="1")
    async with world.serve(), world.envoy() as envoy:
        await envoy.wait_live()
        await marked(world, "1", "first")
        mismatch = tls_secret(WORKLOAD_SECRET, other.issue_cert("a.test"), key_of=first.issue_cert("b.test"))
        bad = {**secrets(other, first, other), WORKLOAD_SECRET: mismatch}
        world.entrust(bad, authority="other", bundle="2")
        await eventually(lambda: "rejected Secret workload" in world.noted[NODE].problem)
        assert world.noted[NODE].authority == "first"
        assert world.proxy().mark in (TrustMark("1", "first"), TrustMark("2", "first"))
        torn = {**secrets(first), TRUST_BUNDLE_SECRET: trust_secret(TRUST_BUNDLE_SECRET, "no certificate")}
        world.entrust(torn, authority="first", bundle="3")
        await eventually(lambda: "rejected Secret trust-bundle" in world.noted[NODE].problem)
        assert world.noted[NODE].bundle != "3"
        world.entrust(secrets(other, first, other), authority="other", bundle="2")
        await marked(world, "2", "other")
        assert world.noted[NODE].problem == ""


async def test_a_proxy_that_comes_back_with_all_of_it_is_marked_at_once(world: World) -> None:
    authority = trustme.CA()
    world.entrust(secrets(authority), authority="a", bundle="1")
    revocation = revoke(world, "west")
    async with world.envoy() as envoy:
        async with world.serve():
            await envoy.wait_live()
            await marked(world, "1", "a", revoked_digest([revocation]))
        world.noted.clear()
        world.pushed.clear()
        async with world.serve():
            await marked(world, "1", "a", revoked_digest([revocation]))
            assert not world.pushed[TypeUrl.SECRET]
        # It was away while something changed: until it has taken that, its old mark is shown.
        world.entrust(secrets(authority, name="new.test"), authority="b", bundle="1")
        async with world.serve():
            await marked(world, "1", "b", revoked_digest([revocation]))


async def test_a_proxy_that_does_not_answer_is_not_counted_on(world: World) -> None:
    ring = {"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": 2048, "maximum_ring_size": 1024}}
    async with app(world.address, 8080, "app") as place:
        good = {
            TypeUrl.CLUSTER: by_name(upstream("a")),
            TypeUrl.ENDPOINTS: by_name(endpoints("a", place)),
            TypeUrl.ROUTES: by_name(routes("a")),
            TypeUrl.LISTENER: by_name(listener(world.address)),
        }
        world.show(good)
        async with world.serve(timedelta(seconds=0.5)), world.envoy() as envoy:
            await envoy.wait_live()
            await marked(world, "", "")
            stuck = {
                TypeUrl.CLUSTER: by_name(upstream("a"), upstream("b"), upstream("stuck", **ring)),
                TypeUrl.ENDPOINTS: by_name(*(endpoints(name, place) for name in ("a", "b", "stuck"))),
                TypeUrl.ROUTES: by_name(routes("a", "b", "stuck")),
            }
            world.show({**good, **stuck})
            revocation = revoke(world, "west")
            await eventually(lambda: "has not answered about Cluster since" in world.noted[NODE].problem)
            assert world.noted[NODE].revoked == ""
            world.show(good)
            await marked(world, "", "", revoked_digest([revocation]))
            assert world.noted[NODE].problem == ""


async def test_a_revoked_workload_is_told_to_drop_all(world: World) -> None:
    world.entrust(secrets(trustme.CA()), authority="a", bundle="1")
    async with world.serve(), world.envoy() as envoy:
        await envoy.wait_live()
        await marked(world, "1", "a")
        revoke(world, "shop/pay")
        await world.settled()
        assert "t" in await envoy.get("/listeners")
        revoke(world, "shop/cart@east")
        await envoy.wait_for("/listeners", lambda text: not text.strip())
        assert world.proxy().node == NODE, "its stream stays"
        world.store.apply([Change(Section.REVOCATIONS, "shop/cart@east", None)])
        await envoy.wait_for("/listeners", lambda text: bool(text.strip()))


async def test_a_proxy_that_uses_no_secrets_has_nothing_to_take(world: World) -> None:
    world.show({})
    world.entrust(secrets(trustme.CA()), authority="a", bundle="1")
    async with world.serve(), world.envoy() as envoy:
        await envoy.wait_live()
        await marked(world, "1", "a")


@pytest.mark.parametrize(("node", "denies_by_routes"), [("east/gateway-1", True), (NODE, False)])
async def test_a_gateway_that_refuses_its_routes_does_not_count_as_enforcing(
    world: World, node: str, denies_by_routes: bool
) -> None:
    async with app(world.address, 8080, "app") as place:
        good = {
            TypeUrl.CLUSTER: by_name(upstream("a")),
            TypeUrl.ENDPOINTS: by_name(endpoints("a", place)),
            TypeUrl.ROUTES: by_name(routes("a")),
            TypeUrl.LISTENER: by_name(listener(world.address)),
        }
        world.show(good)
        async with world.serve(), world.envoy(node) as envoy:
            await envoy.wait_live()
            await marked(world, "", "")
            world.show({**good, TypeUrl.ROUTES: by_name(routes("a", "a"))})
            revocation = revoke(world, "west")
            await eventually(lambda: bool(world.proxy().types) and any(one.rejected for one in world.proxy().types))
            await world.settled()
            digest = revoked_digest([revocation])
            assert (world.noted[node].revoked == digest) is not denies_by_routes
            assert ("rejected RouteConfiguration" in world.noted[node].problem) is denies_by_routes
            world.show(good)
            await marked(world, "", "", digest)
