"""The load reporting service, spoken to by clients that report what no Envoy would."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from envoy.service.load_stats.v3 import lrs_pb2

from federation.model import (
    EPOCH,
    Audience,
    Drain,
    ExportedService,
    Locality,
    MemberCluster,
    NetworkName,
    Protocol,
    ProxyRole,
    ProxyScope,
    ServiceKey,
    ServicePort,
)
from federation.reports import ServiceLoad
from federation.snapshot import Change, Replace, Section, Snapshot
from federation.store import MeshStore
from federation.xds.ads import Admitted, ProxyNode
from federation.xds.loads import LRS_SERVICE, LoadServer
from federation.xds.server import SERVER_OPTIONS, Unauthenticated
from tests.support.addresses import free_address
from tests.support.waiting import eventually
from trust.spiffe import ClusterName, Identity, Namespace, ServiceAccount

WEST = ClusterName("west")
CART = ServiceKey(Namespace("shop"), "cart")
CART_80 = "outbound|80|cart.shop.svc.clusterset.local"
PATIENCE = 60.0  # seconds


class Proxy:
    """One stream of a client that reports."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def asked(self) -> float:
        """Returns the interval that it is asked for next, in seconds."""
        async with asyncio.timeout(PATIENCE):
            response = lrs_pb2.LoadStatsResponse.FromString(await self._call.read())
        assert response.send_all_clusters
        return float(response.load_reporting_interval.ToTimedelta().total_seconds())

    async def say(self, *found: tuple[str, str, int, int, int]) -> None:
        """Reports (upstream, member, in progress, issued, failed) each."""
        request = lrs_pb2.LoadStatsRequest()
        for upstream, member, active, issued, failed in found:
            stats = request.cluster_stats.add(cluster_name=upstream).upstream_locality_stats.add(
                total_requests_in_progress=active, total_issued_requests=issued, total_error_requests=failed
            )
            stats.locality.sub_zone = member
        await self._call.write(request.SerializeToString())

    async def write(self, body: bytes) -> None:
        await self._call.write(body)

    async def refused(self) -> tuple[grpc.StatusCode, str]:
        """Waits for the end of the stream; returns how it ended."""
        async with asyncio.timeout(PATIENCE):
            return await self._call.code(), await self._call.details()

    def leave(self) -> None:
        self._call.cancel()


class Mesh:
    """A load server, and who is connected by ADS."""

    def __init__(self) -> None:
        self.store = MeshStore(frozenset())
        exported = ExportedService(WEST, CART, (ServicePort(80, Protocol.HTTP),), (), EPOCH)
        self.store.apply([Replace(Section.IMPORTS, {(WEST, CART): exported})])
        self.connected: set[str] = set()
        self.address = free_address()
        self.server = LoadServer(
            self.store,
            cluster=ClusterName("east"),
            replica="control-1",
            admission=self,
            connected=lambda: self.connected,
        )

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((self.server.handler,))
        server.add_insecure_port(f"{self.address}:15012")
        await server.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(self.server.run())
                yield
                running.cancel()
        finally:
            await server.stop(None)

    @asynccontextmanager
    async def proxy(self, node: str, token: str = "right") -> AsyncIterator[Proxy]:
        async with grpc.aio.insecure_channel(f"{self.address}:15012") as channel:
            call = channel.stream_stream(f"/{LRS_SERVICE}/StreamLoadStats")(
                metadata=[("authorization", f"Bearer {token}")]
            )
            first = lrs_pb2.LoadStatsRequest()
            first.node.id = node
            await call.write(first.SerializeToString())
            proxy = Proxy(call)
            try:
                yield proxy
            finally:
                proxy.leave()

    def loads(self) -> list[ServiceLoad]:
        return list(self.server.report().loads)

    # Admission

    async def admit(self, node: ProxyNode, token: str) -> Admitted:
        if token != "right":
            raise Unauthenticated("this token is not known")
        return Admitted(Identity(ClusterName("east"), Namespace("shop"), ServiceAccount("cart")))

    async def ended(self, node: ProxyNode, admitted: Admitted) -> None:
        await asyncio.get_running_loop().create_future()

    def scope(self, snapshot: Snapshot, node: ProxyNode, identity: Identity) -> ProxyScope | None:
        if node.id.endswith("unknown"):
            return None
        audience = Audience(ProxyRole.SIDECAR, identity.cluster, NetworkName("n"), Locality(), identity.namespace)
        return ProxyScope(audience, identity, self.address)


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    mesh = Mesh()
    async with mesh.serve():
        yield mesh


def carried(open: int, issued: int, failed: int) -> list[ServiceLoad]:  # noqa: A002 - as the report calls it
    return [ServiceLoad("shop/cart", 80, "west", open, issued, failed)]


async def test_what_proxies_report_is_summed_up(mesh: Mesh) -> None:
    mesh.connected = {"east/shop/a", "east/shop/b", "east/shop/c"}
    async with mesh.proxy("east/shop/a") as one, mesh.proxy("east/shop/b") as other, mesh.proxy("east/shop/d") as guest:
        assert [await proxy.asked() for proxy in (one, other, guest)] == [10.0] * 3
        assert mesh.server.report().silent == ("east/shop/a", "east/shop/b", "east/shop/c")
        await one.say((CART_80, "west", 2, 5, 1), (CART_80, "west", 1, 0, 0))  # two localities of one member
        await other.say((CART_80, "west", 4, 4, 0))
        await guest.say()
        await eventually(lambda: mesh.server.report().reporting == 3, "all have reported")
        assert mesh.loads() == carried(7, 9, 1)
        report = mesh.server.report()
        assert (report.silent, report.visitors) == (("east/shop/c",), ("east/shop/d",))
        await one.say()
        await eventually(lambda: mesh.loads() == carried(4, 9, 1), "what is not mentioned is open no more")
        other.leave()
        await one.say((CART_80, "west", 0, 1, 0))
        await eventually(lambda: mesh.loads() == carried(4, 10, 1), "what was open counts though its proxy left")


async def test_a_drain_changes_the_pace_of_streams_that_are_open(mesh: Mesh) -> None:
    async with mesh.proxy("east/shop/a") as proxy:
        assert await proxy.asked() == 10.0
        drain = Drain(WEST, 50, datetime.now(UTC))
        mesh.store.apply([Change(Section.DRAINS, (WEST, None), drain)])
        assert await proxy.asked() == 1.0
        mesh.store.apply([Change(Section.DRAINS, (WEST, None), None)])
        assert await proxy.asked() == 10.0
        member = MemberCluster(WEST, NetworkName("w"), "us", (), drains=(drain,))
        mesh.store.apply([Change(Section.MEMBERS, WEST, member)])
        assert await proxy.asked() == 1.0
        assert mesh.server.report().interval == 1.0


async def test_nobody_can_invent_what_is_counted(mesh: Mesh) -> None:
    async with mesh.proxy("east/shop/a") as proxy:
        await proxy.say(
            (CART_80, "west", 1, 1, 0),
            (CART_80, "", 1, 1, 0),
            (CART_80, "north", 1, 1, 0),
            ("outbound|81|cart.shop.svc.clusterset.local", "west", 1, 1, 0),
            ("outbound|80|till.shop.svc.clusterset.local", "west", 1, 1, 0),
            ("outbound|80|cart.example.org", "west", 1, 1, 0),
            ("outbound|x|cart.shop.svc.clusterset.local", "west", 1, 1, 0),
            ("inbound|80", "west", 1, 1, 0),
            ("xds", "", 1, 1, 0),
        )
        await eventually(lambda: mesh.server.report().reporting == 1, "it has reported")
        assert mesh.loads() == carried(1, 1, 0)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"\xff\xff\xff", "cannot be read"),
        (
            lrs_pb2.LoadStatsRequest(
                cluster_stats=[
                    {
                        "cluster_name": CART_80,
                        "upstream_locality_stats": [
                            {"locality": {"sub_zone": "west"}, "total_issued_requests": 1 << 63}
                        ],
                    }
                ]
            ).SerializeToString(),
            f"calls to {CART_80} at once",
        ),
        (
            lrs_pb2.LoadStatsRequest(
                cluster_stats=[
                    {
                        "cluster_name": CART_80,
                        "upstream_locality_stats": [
                            {"locality": {"sub_zone": "west"}, "total_requests_in_progress": 1 << 40}
                        ]
                        * 2,
                    }
                ]
            ).SerializeToString(),
            f"calls to {CART_80} at once",
        ),
        (b"\x0a\xff\xff\xff\x04" + bytes(9 << 20), "bytes are more than"),
    ],
)
async def test_a_report_that_envoy_would_not_send_ends_its_stream(mesh: Mesh, body: bytes, why: str) -> None:
    async with mesh.proxy("east/shop/a") as proxy, mesh.proxy("east/shop/b") as other:
        await proxy.asked()
        await proxy.write(body)
        code, details = await proxy.refused()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert why in details
        await other.say((CART_80, "west", 1, 1, 0))
        await eventually(lambda: mesh.loads() == carried(1, 1, 0), "others are heard")


async def test_one_proxy_has_few_streams_and_counts_once(mesh: Mesh) -> None:
    mesh.store.apply([Change(Section.DRAINS, (WEST, None), Drain(WEST, 50, datetime.now(UTC)))])
    async with AsyncExitStack() as stack:
        for _ in range(3):
            assert await (await stack.enter_async_context(mesh.proxy("east/shop/a"))).asked() == 1.0
        one_too_many = await stack.enter_async_context(mesh.proxy("east/shop/a"))
        code, details = await one_too_many.refused()
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "has 3 streams" in details
        assert await (await stack.enter_async_context(mesh.proxy("east/shop/b"))).asked() == 1.0


async def test_who_reports_without_pause_is_read_at_a_pace_of_ours(mesh: Mesh) -> None:
    async with mesh.proxy("east/shop/a") as flood, mesh.proxy("east/shop/b") as other:
        await flood.asked()
        for _ in range(200):
            await flood.say((CART_80, "west", 0, 1, 0))
        await other.say((CART_80, "west", 7, 0, 0))
        await eventually(lambda: any(load.open == 7 for load in mesh.loads()), "the other is heard")
        assert sum(load.issued for load in mesh.loads()) < 100


@pytest.mark.parametrize(
    ("node", "token", "code"),
    [
        ("east/shop/a", "wrong", grpc.StatusCode.UNAUTHENTICATED),
        ("east/shop/unknown", "right", grpc.StatusCode.UNAVAILABLE),
    ],
)
async def test_who_may_have_no_configuration_may_not_report(
    mesh: Mesh, node: str, token: str, code: grpc.StatusCode
) -> None:
    async with mesh.proxy(node, token) as proxy:
        assert (await proxy.refused())[0] is code
