"""An ADS server for tests that tells each Envoy just what the test says, and the bootstrap of such an Envoy."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc

from federation.model import PROXY_ADMIN_PORT
from federation.xds.protocol import DeltaStream, Order
from federation.xds.resources import ResourceSet
from federation.xds.server import ADS_SERVICE, SERVER_OPTIONS, ServicerContext, delta_handler, read_first, serve_stream
from tests.support.waiting import eventually

ADS_PORT = 15012
_TYPE = "type.googleapis.com/envoy."


class Pushing:
    """An ADS server that tells each node what the test wants it to know."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._offers: dict[str, ResourceSet] = {}
        self._streams: dict[str, tuple[DeltaStream, int]] = {}
        self._connected: list[str] = []
        self._revision = 0
        self._news = asyncio.Event()

    def show(self, offers: Mapping[str, ResourceSet]) -> None:
        """Tells nodes what to have from now on."""
        self._offers.update(offers)
        self._revision += 1
        past, self._news = self._news, asyncio.Event()
        past.set()

    async def settled(self, *nodes: str) -> None:
        """Waits until these nodes, or all, have taken what they were told."""

        def is_settled(node: str) -> bool:
            stream, revision = self._streams.get(node, (DeltaStream(Order.ENVOY), -1))
            assert not stream.rejections, dict(stream.rejections)
            return revision == self._revision and stream.is_settled

        await eventually(lambda: all(is_settled(node) for node in nodes or self._offers), "all proxies are told")

    @property
    def connected(self) -> frozenset[str]:
        """The nodes that have a stream now."""
        return frozenset(self._connected)

    @asynccontextmanager
    async def serve(self, certificate: tuple[bytes, bytes] | None = None) -> AsyncIterator[None]:
        """Runs the server, in clear text or with this chain and key (PEM)."""
        grpc_server = grpc.aio.server(options=SERVER_OPTIONS)
        grpc_server.add_generic_rpc_handlers((delta_handler(ADS_SERVICE, "DeltaAggregatedResources", self._serve),))
        place = f"{self.address}:{ADS_PORT}"
        if certificate is None:
            port = grpc_server.add_insecure_port(place)
        else:
            chain, key = certificate
            port = grpc_server.add_secure_port(place, grpc.ssl_server_credentials([(key, chain)]))
        assert port == ADS_PORT
        await grpc_server.start()
        try:
            yield
        finally:
            await grpc_server.stop(grace=None)

    def bootstrap(self, node: str, address: str) -> dict[str, Any]:
        """Returns what an Envoy starts with that is told everything here."""
        source = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
        place = {"endpoint": {"address": _socket(self.address, ADS_PORT)}}
        options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        http2 = {"@type": f"type.googleapis.com/{options}", "explicit_http_config": {"http2_protocol_options": {}}}
        internal = f"{_TYPE}extensions.bootstrap.internal_listener.v3.InternalListener"
        return {
            "node": {"id": node, "cluster": node.split("/")[0]},
            "admin": {"address": _socket(address, PROXY_ADMIN_PORT)},
            "bootstrap_extensions": [
                {"name": "envoy.bootstrap.internal_listener", "typed_config": {"@type": internal}}
            ],
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": True,
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
                },
                "cds_config": source,
                "lds_config": source,
            },
            "static_resources": {
                "clusters": [
                    {
                        "name": "xds",
                        "type": "STATIC",
                        "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [place]}]},
                        "typed_extension_protocol_options": {options: http2},
                    }
                ]
            },
        }

    async def _serve(self, context: ServicerContext) -> None:
        first = await read_first(context)
        stream, node = DeltaStream(Order.ENVOY), first.node.id
        self._connected.append(node)
        try:
            await serve_stream(context, first, stream=stream, feed=self._feed(node, stream))
        finally:
            self._connected.remove(node)

    async def _feed(self, node: str, stream: DeltaStream) -> AsyncIterator[ResourceSet]:
        while True:
            news = self._news
            yield self._offers[node]
            self._streams[node] = stream, self._revision
            await news.wait()


def _socket(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}
