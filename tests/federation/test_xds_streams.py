"""How many ADS streams a proxy may have, by a client that opens more: the newest are served, and all others end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from federation.model import ProxyRole
from federation.xds.ads import MOST_STREAMS, MOST_STREAMS_OF_GATEWAYS
from federation.xds.resources import TypeUrl
from federation.xds.server import ADS_SERVICE
from tests.support.ads import ADS_PORT, TOKEN, World, by_name, upstream
from tests.support.waiting import PATIENCE

Call = grpc.aio.StreamStreamCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]
Begin = Callable[[], Call]
CART = "east/shop/cart-1"


@asynccontextmanager
async def calling(world: World) -> AsyncIterator[Begin]:
    """Gives what begins a stream to the ADS server of a world; all of them end with it."""
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"{world.address}:{ADS_PORT}"))
        method = channel.stream_stream(
            f"/{ADS_SERVICE}/DeltaAggregatedResources",
            request_serializer=DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=DeltaDiscoveryResponse.FromString,
        )

        def begin() -> Call:
            call: Call = method(metadata=(("authorization", f"Bearer {TOKEN}"),))
            stack.callback(call.cancel)
            return call

        yield begin


async def served(begin: Begin, node: str) -> Call:
    """Begins a stream as a proxy does, and returns it when it has been told something."""
    call = begin()
    await call.write(DeltaDiscoveryRequest(node=Node(id=node), type_url=TypeUrl.CLUSTER))
    assert [one.name for one in (await told(call)).resources] == ["a"]
    return call


async def told(call: Call) -> DeltaDiscoveryResponse:
    async with asyncio.timeout(PATIENCE):
        response = await call.read()
    assert isinstance(response, DeltaDiscoveryResponse)
    return response


async def why_ended(call: Call) -> tuple[grpc.StatusCode, str]:
    async with asyncio.timeout(PATIENCE):
        with suppress(grpc.aio.AioRpcError):
            while isinstance(await call.read(), DeltaDiscoveryResponse):
                pass
        return await call.code(), await call.details() or ""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    made.show({TypeUrl.CLUSTER: by_name(upstream("a"))})
    async with made.serve():
        yield made


async def test_of_many_streams_of_one_proxy_the_newest_are_served_and_the_others_end(world: World) -> None:
    async with calling(world) as begin:
        other = await served(begin, "east/shop/cart-2")
        calls = [await served(begin, CART) for _ in range(MOST_STREAMS + 3)]
        for displaced in calls[:3]:
            code, details = await why_ended(displaced)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert details == f"{CART} has {MOST_STREAMS} newer streams here"
        assert world.crowded == {ProxyRole.SIDECAR: 3}
        world.show({TypeUrl.CLUSTER: by_name(upstream("a"), upstream("b"))})
        for call in (other, *calls[3:]):
            await call.write(DeltaDiscoveryRequest(type_url=TypeUrl.CLUSTER, response_nonce="1"))
            assert [one.name for one in (await told(call)).resources] == ["b"]
        assert [one.node for one in world.ads.proxies()] == [CART, "east/shop/cart-2"]


async def test_gateways_have_so_many_streams_together_whatever_they_call_themselves(world: World) -> None:
    async with calling(world) as begin:
        calls = [await served(begin, f"east/g-{number}") for number in range(MOST_STREAMS_OF_GATEWAYS)]
        refused = begin()
        await refused.write(DeltaDiscoveryRequest(node=Node(id="east/one-more"), type_url=TypeUrl.CLUSTER))
        code, details = await why_ended(refused)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details == f"the gateways of this cluster have {MOST_STREAMS_OF_GATEWAYS} streams here already"
        assert world.crowded == {ProxyRole.GATEWAY: 1}
        await served(begin, "east/g-1")  # one that comes back
        await served(begin, CART)  # and a sidecar
        calls[0].cancel()


async def test_a_stream_that_asks_for_nothing_ends(world: World) -> None:
    async with calling(world) as begin:
        assert await why_ended(begin()) == (grpc.StatusCode.PERMISSION_DENIED, "no request came")
