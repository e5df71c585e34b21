"""Delivery to the real Envoy: start, reconnect, refusals, coming and going of services, certificates."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
import trustme

from federation.names import TRUST_BUNDLE_SECRET
from federation.xds.resources import ResourceSet, TypeUrl
from tests.support.ads import (
    Load,
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


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
async def port(world: World) -> AsyncIterator[tuple[str, int]]:
    async with app(world.address, 8080, "app") as place:
        yield place


def simple(world: World, *names: str, place: tuple[str, int]) -> ResourceSet:
    """Services NAME on host NAME.test, all answered by one app."""
    return {
        TypeUrl.CLUSTER: by_name(*(upstream(name) for name in names)),
        TypeUrl.ENDPOINTS: by_name(*(endpoints(name, place) for name in names)),
        TypeUrl.ROUTES: by_name(routes(*names)),
        TypeUrl.LISTENER: by_name(listener(world.address)),
    }


async def fetch(world: World, name: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session:
        url = f"http://{world.address}:15001/"
        async with session.get(url, headers={"host": f"{name}.test"}, timeout=aiohttp.ClientTimeout(5)) as response:
            return response.status, await response.text()


async def test_a_proxy_starts_with_everything(world: World, port: tuple[str, int]) -> None:
    world.show(simple(world, "a", "b", place=port))
    async with world.serve(), world.envoy() as envoy:
        await envoy.wait_live()
        status = await world.settled()
        assert await fetch(world, "a") == (200, "app")
    counts = {one.type_url: (one.acknowledged, one.pushes) for one in status.types}
    assert counts == {
        TypeUrl.CLUSTER: (2, 1),
        TypeUrl.ENDPOINTS: (2, 1),
        TypeUrl.LISTENER: (1, 1),
        TypeUrl.ROUTES: (1, 1),
    }
    assert not world.converged  # the first picture of a stream is no change


async def test_a_proxy_without_any_service_becomes_live(world: World) -> None:
    world.show({})
    async with world.serve(), world.envoy() as envoy:
        await envoy.wait_live()
        await world.settled()


async def test_a_change_of_one_endpoint_is_one_push(world: World, port: tuple[str, int]) -> None:
    world.show(simple(world, "a", "b", place=port))
    async with world.serve(), world.envoy() as envoy, app(world.address, 8081, "other") as other:
        await envoy.wait_live()
        await world.settled()
        world.pushed.clear()
        before = world.resources
        world.show({**before, TypeUrl.ENDPOINTS: {**before[TypeUrl.ENDPOINTS], "a": endpoints("a", other)}})
        await world.settled()
        assert world.pushed == {TypeUrl.ENDPOINTS: 1}
        assert await fetch(world, "a") == (200, "other")
        assert len(world.converged) == 1


async def test_a_frozen_proxy_is_noticed(world: World) -> None:
    world.show({})
    async with world.serve(), world.envoy() as envoy:
        await envoy.wait_live()
        await world.settled()
        envoy.pause()
        try:
            await eventually(lambda: not world.ads.proxies(), "its stream is given up")
        finally:
            envoy.resume()


async def test_a_reconnecting_proxy_gets_the_differences_only(world: World, port: tuple[str, int]) -> None:
    world.show(simple(world, "a", "b", "gone", place=port))
    load = Load(f"http://{world.address}:15001/", "a.test")
    async with world.envoy() as envoy:
        async with world.serve():
            await envoy.wait_live()
            await world.settled()
        async with load.running():
            world.show(simple(world, "a", "b", "new", place=port))  # while nobody serves
            world.pushed.clear()
            async with world.serve():
                status = await world.settled()
                assert await fetch(world, "new") == (200, "app")
                await envoy.wait_for("/clusters", lambda text: "gone::" not in text)
                assert {one.type_url: one.acknowledged for one in status.types}[TypeUrl.CLUSTER] == 3
                # one upstream came, then the routes changed, then one upstream went
                assert world.pushed[TypeUrl.CLUSTER] == 2
                assert world.pushed[TypeUrl.ENDPOINTS] == 1
                assert world.pushed[TypeUrl.ROUTES] == 1
                await eventually(lambda: load.total > 20, "requests were sent")
                # Once more with nothing new: nothing but the answers that the protocol asks for is sent.
        world.pushed.clear()
        async with world.serve():
            await world.settled()
            assert set(world.pushed) <= {TypeUrl.CLUSTER, TypeUrl.LISTENER}
        assert await envoy.stat("cluster_manager.cluster_added") == 5  # xds, a, b, gone, new: none twice
    assert set(load.seen) == {(200, "app")}


async def test_an_upstream_that_changed_while_away_is_warm_at_once(world: World, port: tuple[str, int]) -> None:
    """Envoy holds its endpoints and does not ask again: without them it would warm for 15 seconds."""
    world.show(simple(world, "a", place=port))
    async with world.envoy() as envoy:
        async with world.serve():
            await envoy.wait_live()
            await world.settled()
        changed = simple(world, "a", place=port)
        world.show({**changed, TypeUrl.CLUSTER: by_name(upstream("a", connect_timeout="3s"))})
        async with world.serve(timedelta(seconds=60)):
            await envoy.wait_stat("cluster_manager.cluster_modified", lambda value: value == 1)
            await envoy.wait_stat("cluster_manager.warming_clusters", lambda value: value == 0)
            await world.settled()
            assert await fetch(world, "a") == (200, "app")


async def test_services_come_and_go_without_a_failed_request(world: World, port: tuple[str, int]) -> None:
    """The same host moves between upstreams that are new each time; the old one is taken away."""
    host = routes_to = "a"
    world.show(simple(world, "a", place=port))
    load = Load(f"http://{world.address}:15001/", f"{host}.test")
    async with world.serve(), world.envoy() as envoy:
        await envoy.wait_live()
        await world.settled()
        async with load.running():
            for turn in range(12):
                routes_to = "b" if routes_to == "a" else "a"
                before = load.total
                following = simple(world, routes_to, place=port)
                config = {"virtual_hosts": [_host(host, routes_to)]}
                world.show({**following, TypeUrl.ROUTES: by_name(routes(**config))})
                await world.settled()
                await eventually(lambda before=before: load.total > before + 10, f"requests in turn {turn}")
        assert await envoy.stat("cluster_manager.cluster_removed") == 12
    assert set(load.seen) == {(200, "app")}


async def test_a_changed_upstream_fails_no_request(world: World, port: tuple[str, int]) -> None:
    world.show(simple(world, "a", place=port))
    load = Load(f"http://{world.address}:15001/", "a.test")
    async with world.serve(timedelta(seconds=60)), world.envoy() as envoy:
        await envoy.wait_live()
        async with load.running():
            for turn in range(8):
                before = load.total
                following = simple(world, "a", place=port)
                changed = upstream("a", connect_timeout=f"{turn + 1}s")
                world.show({**following, TypeUrl.CLUSTER: by_name(changed)})
                await world.settled()
                await eventually(lambda before=before: load.total > before + 10, f"requests in turn {turn}")
        assert await envoy.stat("cluster_manager.cluster_modified") == 8
    assert set(load.seen) == {(200, "app")}


@pytest.mark.parametrize(
    ("flaw", "is_named"),
    [
        pytest.param({"lb_subset_config": {"fallback_policy": 1}, "lb_policy": "CLUSTER_PROVIDED"}, True, id="named"),
        pytest.param({"outlier_detection": {"enforcing_consecutive_5xx": 200}}, False, id="out of range"),
    ],
)
async def test_a_bad_upstream_is_parked_and_the_good_ones_arrive(
    world: World, port: tuple[str, int], flaw: dict[str, object], is_named: bool
) -> None:
    good = simple(world, "a", "b", "c", "d", place=port)
    bad = {**good[TypeUrl.CLUSTER], "c": upstream("c", **flaw)}
    world.show({**good, TypeUrl.CLUSTER: bad})
    async with world.serve(), world.envoy() as envoy:
        await envoy.wait_live()
        status = await world.settled()
        (rejected,) = [one for kind in status.types for one in kind.rejected]
        assert rejected.name == "c"
        assert rejected.message
        assert (world.rejected[TypeUrl.CLUSTER] == 1) is is_named
        for name in ("a", "b", "d"):
            assert await fetch(world, name) == (200, "app")
        assert (await fetch(world, "c"))[0] == 503

        refusals = await envoy.stat("cluster_manager.cds.update_rejected")
        world.show({**world.resources, TypeUrl.ROUTES: by_name(routes("a", "b", "c", "d", "e"))})
        await world.settled()
        assert await envoy.stat("cluster_manager.cds.update_rejected") == refusals  # it is not tried again
        assert world.proxy().types[0].rejected

        world.show(good)  # until it is repaired
        status = await world.settled()
        assert not [one for kind in status.types for one in kind.rejected]
        assert await fetch(world, "c") == (200, "app")


async def test_bad_endpoints_are_isolated(world: World, port: tuple[str, int]) -> None:
    names = [f"s{number}" for number in range(9)]
    good = simple(world, *names, place=port)
    bad = {
        **good[TypeUrl.ENDPOINTS],
        "s4": endpoints("s4", port, priority=200),
        "s7": endpoints("s7", ("not-an-address", 80)),
    }
    world.show({**good, TypeUrl.ENDPOINTS: bad})
    async with world.serve(), world.envoy() as envoy:
        await envoy.wait_live()
        status = await world.settled()
        rejected = [one.name for kind in status.types for one in kind.rejected]
        assert rejected == ["s4", "s7"]
        for name in names:
            assert (await fetch(world, name))[0] == (503 if name in rejected else 200)
        world.show(good)
        await world.settled()
        assert not world.proxy().types[1].rejected
        assert await fetch(world, "s4") == (200, "app")


async def test_bad_routes_keep_what_they_used(world: World, port: tuple[str, int]) -> None:
    """The refused routes' predecessors are in force: the upstreams that they name stay until the repair."""
    world.show(simple(world, "a", "b", place=port))
    load = Load(f"http://{world.address}:15001/", "a.test")
    async with world.serve(), world.envoy() as envoy:
        await envoy.wait_live()
        await world.settled()
        async with load.running():
            twice = {"virtual_hosts": [_host("b", "b"), _host("b", "b")]}
            following = simple(world, "b", place=port)
            world.show({**following, TypeUrl.ROUTES: by_name(routes(**twice))})
            await eventually(lambda: bool(world.rejected[TypeUrl.ROUTES]), "the routes are refused")
            await world.settled()
            before = load.total
            await eventually(lambda: load.total > before + 20, "requests after the refusal")
        assert set(load.seen) == {(200, "app")}
        world.show(following)
        await world.settled()
        await envoy.wait_for("/clusters", lambda text: "a::" not in text)


async def test_an_upstream_that_never_warms_does_not_hold_back_the_rest(world: World, port: tuple[str, int]) -> None:
    world.show(simple(world, "a", place=port))
    ring = {"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": 2048, "maximum_ring_size": 1024}}
    async with world.serve(timedelta(seconds=1)), world.envoy() as envoy:
        await envoy.wait_live()
        await world.settled()
        following = simple(world, "a", "b", "stuck", place=port)
        stuck = {**following[TypeUrl.CLUSTER], "stuck": upstream("stuck", **ring)}
        world.show({**following, TypeUrl.CLUSTER: stuck})
        status = await world.settled()
        assert await fetch(world, "b") == (200, "app")
        assert [one.type_url for one in status.types if one.stalled_since] == [TypeUrl.CLUSTER]
        world.show(simple(world, "a", "b", place=port))
        status = await world.settled()
        assert not [one for one in status.types if one.stalled_since]


async def test_certificates_are_renewed_on_the_same_stream(world: World) -> None:
    world.show({TypeUrl.LISTENER: by_name(tls_listener(world.address, checks_clients=False))})
    authority = trustme.CA()
    world.secrets_of_proxy = by_name(tls_secret("workload", authority.issue_cert("first.test")))
    world.secret_lifetime = timedelta(seconds=0.2)
    async with world.serve(), world.envoy() as envoy:
        await envoy.wait_live()
        await envoy.wait_for("/certs", lambda text: "first.test" in text)
        world.secrets_of_proxy = by_name(tls_secret("workload", authority.issue_cert("second.test")))
        await envoy.wait_for("/certs", lambda text: "second.test" in text and "first.test" not in text)
        assert len(world.ads.proxies()) == 1
        assert not world.converged  # nobody changed anything


async def test_a_bad_certificate_leaves_the_old_one_in_force_until_the_repair(world: World) -> None:
    world.show({TypeUrl.LISTENER: by_name(tls_listener(world.address, checks_clients=True))})
    authority = trustme.CA()
    first, second, third = (authority.issue_cert(f"{name}.test") for name in ("first", "second", "third"))
    bundle = authority.cert_pem.bytes().decode()
    world.secrets_of_proxy = by_name(tls_secret("workload", first), trust_secret(TRUST_BUNDLE_SECRET, bundle))
    world.secret_lifetime = timedelta(seconds=0.2)
    async with world.serve(), world.envoy() as envoy:
        await envoy.wait_live()
        mismatch = tls_secret("workload", second, key_of=first)
        other_bundle = bundle + trustme.CA().cert_pem.bytes().decode()
        world.secrets_of_proxy = by_name(mismatch, trust_secret(TRUST_BUNDLE_SECRET, other_bundle))
        await eventually(lambda: bool(world.rejected[TypeUrl.SECRET]), "the certificate is refused")
        (rejected,) = [one for kind in world.proxy().types for one in kind.rejected if one.name == "workload"]
        assert "key" in rejected.message.lower()
        assert "first.test" in await envoy.get("/certs")
        world.secrets_of_proxy = by_name(tls_secret("workload", third), trust_secret(TRUST_BUNDLE_SECRET, other_bundle))
        await envoy.wait_for("/certs", lambda text: "third.test" in text)
        await eventually(lambda: not [one for kind in world.proxy().types for one in kind.rejected], "all is repaired")


async def test_a_killed_proxy_is_forgotten_and_served_again(world: World, port: tuple[str, int]) -> None:
    world.show(simple(world, "a", place=port))
    async with world.serve(), world.envoy() as envoy:
        await envoy.wait_live()
        await world.settled()
        await envoy.kill()
        await eventually(lambda: not world.ads.proxies(), "the stream of the killed proxy has ended")
        await envoy.start()
        await envoy.wait_live()
        await world.settled()


async def test_strangers_are_refused_with_a_reason(world: World) -> None:
    world.show({})
    async with world.serve(), world.envoy(token="wrong") as envoy:
        await eventually(lambda: "this token is not known" in envoy.log_tail(), "the reason is in Envoy's log")
        assert not world.ads.proxies()


def _host(host: str, to: str) -> dict[str, object]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": to}}
    return {"name": host, "domains": [f"{host}.test"], "routes": [route]}
