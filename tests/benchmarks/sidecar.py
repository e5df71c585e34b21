"""A sidecar of one member, simulated: the real ADS server and compilers, and a client that takes all and says so."""

import asyncio
from datetime import datetime, timedelta
from pathlib import Path

import grpc
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from deploy.control.proxies import Compiler
from federation.model import Audience, ClusterSettings, Locality, PodKey, ProxyRole, ProxyScope
from federation.peering.news import News
from federation.proxy_trust import ProxyTrust
from federation.snapshot import Snapshot
from federation.store import MeshStore
from federation.xds.ads import Admitted, AdsServer, Issued, ProxyNode
from federation.xds.resources import TypeUrl
from federation.xds.server import ADS_SERVICE, SERVER_OPTIONS
from tests.benchmarks.plan import NAMESPACE
from trust.spiffe import Identity

_WILDCARDS = (TypeUrl.CLUSTER, TypeUrl.LISTENER)


class SimulatedSidecar:
    """One proxy of the first pod in the picture. `took` are the seconds that remote changes took until its ACK."""

    def __init__(self, settings: ClusterSettings, store: MeshStore, folder: Path) -> None:
        self.took: list[float] = []
        self._acks = News()
        self._settings = settings
        self._store = store
        self._path = folder / f"{settings.name}.ads"

    async def run(self) -> None:
        """Serves and subscribes for ever."""
        ads = AdsServer(
            self._store,
            Compiler(self._settings, ["127.0.0.1"]),
            admission=self,
            secrets=self,
            acknowledgements=self,
            on_converged=self._note,
            on_pushed=lambda _: None,
            on_rejected=lambda _: None,
            on_crowded=lambda _: None,
        )
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((ads.handler,))
        server.add_insecure_port(f"unix:{self._path}")
        await self._store.wait_ready()
        await server.start()
        try:
            await self._subscribe()
        finally:
            await server.stop(grace=None)

    async def await_ack(self) -> None:
        """Returns once `took` has an acknowledgement."""
        while not self.took:
            await self._acks.wait_newer(self._acks.count)

    async def _subscribe(self) -> None:
        options = (("grpc.max_receive_message_length", -1),)
        async with grpc.aio.insecure_channel(f"unix:{self._path}", options=options) as channel:
            call = channel.stream_stream(
                f"/{ADS_SERVICE}/DeltaAggregatedResources",
                request_serializer=DeltaDiscoveryRequest.SerializeToString,
                response_deserializer=DeltaDiscoveryResponse.FromString,
            )()
            node = Node(id=f"{self._settings.name}/{NAMESPACE}/{self._pod.name}")
            for type_url in _WILDCARDS:
                await call.write(DeltaDiscoveryRequest(type_url=type_url, node=node))
            await call.write(DeltaDiscoveryRequest(type_url=TypeUrl.ROUTES, resource_names_subscribe=["outbound"]))
            known: set[str] = set()
            while isinstance(response := await call.read(), DeltaDiscoveryResponse):
                await call.write(DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce))
                if response.type_url == TypeUrl.CLUSTER:
                    names = {one.name for one in response.resources if one.name.startswith(("outbound|", "gateway"))}
                    if names - known:
                        request = DeltaDiscoveryRequest(
                            type_url=TypeUrl.ENDPOINTS, resource_names_subscribe=sorted(names - known)
                        )
                        await call.write(request)
                        known |= names

    @property
    def _pod(self) -> PodKey:
        return min(self._store.snapshot.pods)

    def _note(self, took: timedelta, is_remote: bool) -> None:
        if is_remote:
            self.took.append(took.total_seconds())
            self._acks.tell()

    # What the server asks (federation.xds.ads.Admission, SecretSource, AcknowledgedTrust)

    async def admit(self, node: ProxyNode, token: str) -> Admitted:
        pod = self._store.snapshot.pods[self._pod]
        return Admitted(Identity(self._settings.name, NAMESPACE, pod.account))

    async def ended(self, node: ProxyNode, admitted: Admitted) -> None:
        await asyncio.get_running_loop().create_future()

    def scope(self, snapshot: Snapshot, node: ProxyNode, identity: Identity) -> ProxyScope | None:
        pod = snapshot.pods[self._pod]
        audience = Audience(
            ProxyRole.SIDECAR,
            self._settings.name,
            self._settings.network,
            Locality(self._settings.region, "a"),
            namespace=NAMESPACE,
        )
        return ProxyScope(audience, identity, pod.address, pod)

    def secrets(self, scope: ProxyScope, now: datetime, *, asked_by: str, proof: str) -> Issued:
        return Issued({}, renew_at=now + timedelta(hours=1), authority="", bundle="", expires=None)

    def record(self, node: str) -> ProxyTrust | None:
        return None

    def note(self, record: ProxyTrust) -> None:
        pass
