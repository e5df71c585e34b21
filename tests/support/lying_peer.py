"""A control plane of west that says whatever it is told to say, over real TLS."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack

import grpc

from federation.model import FEDERATION_PORT, GatewayAddress, MemberCluster, NetworkName
from federation.peering import exports
from federation.peering.exports import Beat
from federation.peering.news import News
from federation.peering.offer import FEDERATION_METHOD, FEDERATION_SERVICE, REFUSAL
from federation.xds.protocol import DeltaStream, Order
from federation.xds.resources import Resource, ResourceSet, TypeUrl, make_resource
from federation.xds.server import ServicerContext, delta_handler, read_first, serve_stream
from tests.support.addresses import free_address
from tests.support.federation import serve
from tests.support.trust import WEST
from trust.issuance import Issuer, X509Svid


class LyingPeer:
    """A control plane of west that says whatever it is told to say."""

    def __init__(self) -> None:
        self.says: ResourceSet = {}
        self.news = News()
        self.streams: list[DeltaStream] = []
        self.told: set[str] = set()
        """Why listeners ended the stream before."""

    @property
    def handler(self) -> grpc.GenericRpcHandler:
        return delta_handler(FEDERATION_SERVICE, FEDERATION_METHOD, self._serve)

    def say(self, *, exported: Mapping[str, bytes], members: Mapping[str, bytes], beat: int = 1) -> None:
        self.says = {
            TypeUrl.EXPORT: resources(exported),
            TypeUrl.MEMBER: resources(members),
            TypeUrl.BEAT: resources({WEST: exports.encode(Beat(WEST, beat))}),
        }
        self.news.tell()

    def add(self, said: Mapping[TypeUrl, Mapping[str, Resource]]) -> None:
        """Says this too."""
        self.says = {**self.says, **said}
        self.news.tell()

    def refused(self) -> set[str]:
        return {name for stream in self.streams for _, name in stream.rejections}

    async def _serve(self, context: ServicerContext) -> None:
        stream = DeltaStream(Order.NONE)
        self.streams.append(stream)
        first = await read_first(context)
        if REFUSAL in first.node.metadata.fields:
            self.told.add(first.node.metadata.fields[REFUSAL].string_value)
        await serve_stream(context, first, stream=stream, feed=self._feed())

    async def _feed(self) -> AsyncIterator[ResourceSet]:
        while True:
            seen = self.news.count
            yield self.says
            await self.news.wait_newer(seen)


def resources(bodies: Mapping[str, bytes]) -> Mapping[str, Resource]:
    return {name: make_resource(name, body) for name, body in bodies.items()}


async def start_liar(stack: AsyncExitStack, issuer: Issuer, svid: X509Svid) -> tuple[LyingPeer, MemberCluster]:
    """Serves lies with the certificate `svid`, and returns what a newcomer would be told of west."""
    address = free_address()
    liar = LyingPeer()
    await stack.enter_async_context(serve((address, FEDERATION_PORT), liar.handler, svid, issuer=issuer))
    return liar, MemberCluster(WEST, NetworkName("west"), "us", (GatewayAddress(address, FEDERATION_PORT),))
