"""A small world for tests of delivery: an ADS server, real Envoys on it, apps behind them, and a client that counts.

Resources are as plain as Envoy takes them; what the product compiles is tested elsewhere.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import trustme
from aiohttp import web
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401 - registers what JSON below names
from envoy.extensions.filters.network.echo.v3 import echo_pb2  # noqa: F401 - likewise
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,  # noqa: F401 - likewise
)
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2  # noqa: F401 - likewise
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from federation.model import Audience, Locality, MemberCluster, NetworkName, ProxyRole, ProxyScope, Trust
from federation.names import TRUST_BUNDLE_SECRET
from federation.proxy_trust import ProxyTrust
from federation.snapshot import TRUST_KEY, Change, Section, Snapshot
from federation.store import MeshStore
from federation.xds.ads import MAX_AGE, Admitted, AdsServer, Issued, ProxyNode, ProxyStatus
from federation.xds.resources import Resource, ResourceSet, TypeUrl, make_resource
from federation.xds.server import SERVER_OPTIONS, Unauthenticated
from tests.support.addresses import free_address
from tests.support.envoy import Envoy, start_envoy
from tests.support.waiting import eventually
from trust.bundle import TrustBundle
from trust.spiffe import ClusterName, Identity, MeshDomain, Namespace, ServiceAccount

TOKEN = "open sesame"
ADS_PORT = 15012
ADS: dict[str, Any] = {"ads": {}, "resource_api_version": "V3"}
_NETWORK_FILTERS = "type.googleapis.com/envoy.extensions.filters.network"


def resource(name: str, message: Message, content: Mapping[str, Any]) -> Resource:
    """Makes a resource of JSON."""
    return make_resource(name, ParseDict(dict(content), message).SerializeToString(deterministic=True))


def upstream(name: str, **more: Any) -> Resource:
    """An Envoy cluster with endpoints from ADS."""
    eds = {"eds_config": ADS}
    return resource(name, Cluster(), {"name": name, "type": "EDS", "eds_cluster_config": eds, **more})


def endpoints(name: str, *ports: tuple[str, int], **more: Any) -> Resource:
    """The endpoints of an Envoy cluster by address and port; none at all without."""
    places = [{"endpoint": {"address": _socket(address, port)}} for address, port in ports]
    return resource(
        name, ClusterLoadAssignment(), {"cluster_name": name, "endpoints": [{"lb_endpoints": places, **more}]}
    )


def routes(*names: str, **more: Any) -> Resource:
    """Routes named `r`: the host `NAME.test` goes to the Envoy cluster NAME, and `/NAME` too."""
    hosts = [
        {"name": name, "domains": [f"{name}.test"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name}}]}
        for name in names
    ]
    return resource("r", RouteConfiguration(), {"name": "r", "virtual_hosts": hosts, **more})


def listener(address: str, name: str = "l", port: int = 15001, **more: Any) -> Resource:
    """A listener with the routes `r` from ADS."""
    manager = {
        "@type": f"{_NETWORK_FILTERS}.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "rds": {"route_config_name": "r", "config_source": ADS},
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    content = {"name": name, "address": _socket(address, port), "filter_chains": [chain], **more}
    return resource(name, Listener(), content)


def tls_listener(address: str, *, checks_clients: bool) -> Resource:
    """A listener that ends TLS with the secret WORKLOAD_SECRET and, for clients, TRUST_BUNDLE_SECRET."""
    tls: dict[str, Any] = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [{"name": "workload", "sds_config": ADS}],
            **(
                {"validation_context_sds_secret_config": {"name": TRUST_BUNDLE_SECRET, "sds_config": ADS}}
                if checks_clients
                else {}
            ),
        },
    }
    echo = {"name": "echo", "typed_config": {"@type": f"{_NETWORK_FILTERS}.echo.v3.Echo"}}
    chain = {"filters": [echo], "transport_socket": {"name": "tls", "typed_config": tls}}
    return resource("t", Listener(), {"name": "t", "address": _socket(address, 15002), "filter_chains": [chain]})


def tls_secret(name: str, cert: trustme.LeafCert, key_of: trustme.LeafCert | None = None) -> Resource:
    """A certificate with its key, or with the key of another one."""
    chain = b"".join(blob.bytes() for blob in cert.cert_chain_pems).decode()
    key = (key_of or cert).private_key_pem.bytes().decode()
    pair = {"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}}
    return resource(name, Secret(), {"name": name, "tls_certificate": pair})


def trust_secret(name: str, bundle: str) -> Resource:
    """Roots to check others by."""
    return resource(name, Secret(), {"name": name, "validation_context": {"trusted_ca": {"inline_string": bundle}}})


def by_name(*resources: Resource) -> dict[str, Resource]:
    return {one.name: one for one in resources}


def _socket(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}


class World:
    """What the proxies should have, the server that delivers it, and what the server reported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = free_address()
        self.store = MeshStore(frozenset())
        self.resources: ResourceSet = {}
        self.secrets_of_proxy: Mapping[str, Resource] = {}
        self.secret_lifetime = timedelta(hours=1)
        self.max_age = MAX_AGE
        self.trust = ("", "")
        self.noted: dict[str, ProxyTrust] = {}
        self.converged: list[tuple[timedelta, bool]] = []
        self.pushed: Counter[TypeUrl] = Counter()
        self.rejected: Counter[TypeUrl] = Counter()
        self.crowded: Counter[ProxyRole] = Counter()
        self.ads = self._make_server()

    def show(self, resources: ResourceSet) -> None:
        """Makes `resources` what every proxy should have: a new revision of the picture."""
        self.resources = resources
        member = MemberCluster(
            name=ClusterName(f"m{self.store.snapshot.revision}"), network=NetworkName("n"), region="r", gateways=()
        )
        self.store.apply([Change(Section.MEMBERS, member.name, member)])

    def entrust(self, secrets: Mapping[str, Resource], *, authority: str, bundle: str) -> None:
        """Makes `secrets` those of every proxy, from now on, with what they stand for."""
        self.secrets_of_proxy, self.trust = secrets, (authority, bundle)
        issued = datetime(2026, 1, 1, tzinfo=UTC)
        root = TrustBundle(domain=MeshDomain("mesh.test"), sequence=1, roots=(bundle,), issued=issued)
        self.store.apply([Change(Section.TRUST, TRUST_KEY, Trust(ClusterName("east"), root, authority))])

    def proxy(self) -> ProxyStatus:
        """The one proxy that is connected."""
        (status,) = self.ads.proxies()
        return status

    async def settled(self) -> ProxyStatus:
        """Waits until the one proxy has taken, or refused, the newest picture."""
        await eventually(
            lambda: [one.acknowledged_revision for one in self.ads.proxies()] == [self.store.snapshot.revision],
            "the proxy has the newest picture",
        )
        return self.proxy()

    @asynccontextmanager
    async def serve(self, settle_limit: timedelta = timedelta(seconds=10)) -> AsyncIterator[None]:
        """Runs a new ADS server, as after a restart of the control plane."""
        self.ads = self._make_server(settle_limit)
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((self.ads.handler,))
        assert server.add_insecure_port(f"{self.address}:{ADS_PORT}") == ADS_PORT
        await server.start()
        try:
            yield
        finally:
            await server.stop(grace=None)

    @asynccontextmanager
    async def envoy(self, node: str = "east/shop/cart-1", token: str = TOKEN) -> AsyncIterator[Envoy]:
        """Runs an Envoy that takes everything from the ADS server."""
        async with start_envoy(self._bootstrap(node, token), folder=self.folder) as envoy:
            yield envoy

    # What the server asks (federation.xds.ads.Admission, SecretSource)

    async def admit(self, node: ProxyNode, token: str) -> Admitted:
        if token != TOKEN:
            raise Unauthenticated("this token is not known")
        return Admitted(Identity(ClusterName("east"), Namespace("shop"), ServiceAccount("cart")))

    async def ended(self, node: ProxyNode, admitted: Admitted) -> None:
        await asyncio.get_running_loop().create_future()

    def scope(self, snapshot: Snapshot, node: ProxyNode, identity: Identity) -> ProxyScope | None:
        audience = Audience(
            ProxyRole.SIDECAR if node.id.count("/") == 2 else ProxyRole.GATEWAY,
            identity.cluster,
            NetworkName("n"),
            Locality(),
            namespace=identity.namespace,
        )
        return ProxyScope(audience, identity, self.address) if node.id.startswith("east/") else None

    def secrets(self, scope: ProxyScope, now: datetime, *, asked_by: str, proof: str) -> Issued:
        return Issued(
            self.secrets_of_proxy,
            renew_at=now + self.secret_lifetime,
            authority=self.trust[0],
            bundle=self.trust[1],
            expires=datetime.max.replace(tzinfo=UTC) if self.secrets_of_proxy else None,
        )

    # What the server tells (federation.xds.ads.AcknowledgedTrust)

    def record(self, node: str) -> ProxyTrust | None:
        return self.noted.get(node)

    def note(self, record: ProxyTrust) -> None:
        self.noted[record.node] = record

    def _make_server(self, settle_limit: timedelta = timedelta(seconds=10)) -> AdsServer:
        return AdsServer(
            self.store,
            lambda snapshot, scope: self.resources,
            admission=self,
            secrets=self,
            acknowledgements=self,
            on_converged=lambda span, is_remote: self.converged.append((span, is_remote)),
            on_pushed=lambda type_url: self.pushed.update([type_url]),
            on_rejected=lambda type_url: self.rejected.update([type_url]),
            on_crowded=lambda role: self.crowded.update([role]),
            settle_limit=settle_limit,
            max_age=self.max_age,
        )

    def _bootstrap(self, node: str, token: str) -> dict[str, Any]:
        place = {"endpoint": {"address": _socket(self.address, ADS_PORT)}}
        http = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        keepalive = {"connection_keepalive": {"interval": "1s", "timeout": "1s"}}
        ads_cluster = {
            "name": "xds",
            "type": "STATIC",
            "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [place]}]},
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": http,
                    "explicit_http_config": {"http2_protocol_options": keepalive},
                }
            },
        }
        service = {
            "envoy_grpc": {
                "cluster_name": "xds",
                "retry_policy": {"retry_back_off": {"base_interval": "0.1s", "max_interval": "0.5s"}},
            },
            "initial_metadata": [{"key": "authorization", "value": f"Bearer {token}"}],
        }
        dynamic = {**ADS, "initial_fetch_timeout": "0s"}
        return {
            "node": {"id": node, "cluster": "cart.shop", "metadata": {"address": self.address}},
            "admin": {"address": _socket(self.address, 15000)},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": True,
                    "grpc_services": [service],
                },
                "cds_config": dynamic,
                "lds_config": dynamic,
            },
            "static_resources": {"clusters": [ads_cluster]},
        }


@asynccontextmanager
async def app(address: str, port: int, name: str) -> AsyncIterator[tuple[str, int]]:
    """Runs an HTTP server that answers every request with `name`; gives its address and port."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=name)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, address, port).start()
    try:
        yield address, port
    finally:
        await runner.cleanup()


class Load:
    """Requests without pause from several clients; `seen` counts (status, text)."""

    def __init__(self, url: str, host: str) -> None:
        self.seen: Counter[tuple[int, str]] = Counter()
        self.host = host
        self._url = url

    @property
    def total(self) -> int:
        return sum(self.seen.values())

    @asynccontextmanager
    async def running(self, clients: int = 4) -> AsyncIterator["Load"]:
        """Sends requests while the block runs."""
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._repeat(session)) for _ in range(clients)]
            try:
                yield self
            finally:
                for task in tasks:
                    task.cancel()

    async def _repeat(self, session: aiohttp.ClientSession) -> None:
        while True:
            try:
                async with asyncio.timeout(10), session.get(self._url, headers={"host": self.host}) as response:
                    self.seen[response.status, await response.text()] += 1
            except (aiohttp.ClientError, TimeoutError) as error:
                self.seen[0, repr(error)] += 1
            await asyncio.sleep(0.001)
