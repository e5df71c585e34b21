"""Control planes as far as federation goes, several in one process: real etcd, real TLS, a network that can be cut."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import msgspec

from federation import names
from federation.etcd import EtcdClient
from federation.etcd.election import Election, Leadership
from federation.model import (
    FEDERATION_PORT,
    GATEWAY_PORT,
    ClusterSettings,
    GatewayAddress,
    Liveness,
    Locality,
    MemberCluster,
    NetworkName,
    Pod,
    PodKey,
    Protocol,
    Service,
    ServiceExport,
    ServiceKey,
    ServicePort,
)
from federation.peering import exports
from federation.peering.farewells import Farewells
from federation.peering.freshness import SHORTEST_ANSWER
from federation.peering.offer import Offer
from federation.peering.peers import Peers, PeerStatus
from federation.peering.publisher import Publisher
from federation.peering.replica import ORIGIN, Replica
from federation.peering.silences import Silences
from federation.snapshot import Change, Section, Snapshot
from federation.store import MeshStore
from federation.xds.server import patient_options
from tests.support.addresses import free_address
from tests.support.etcd import Etcd, start_etcd
from tests.support.relay import Relay, start_relay
from tests.support.trust_keepers import KeeperUnderTest
from trust.bundle import TrustBundle
from trust.issuance import Issuer, X509Svid
from trust.spiffe import ClusterName, Namespace, ServiceAccount

SHOP = Namespace("shop")
CART = ServiceKey(SHOP, "cart")


def pod(name: str, *, ready: bool = True, app: str = "cart") -> Change:
    """Says that a pod is there; its address ends with the number at the end of its name."""
    value = Pod(
        key=PodKey(SHOP, name),
        address=f"10.0.0.{name.rpartition('-')[2]}",
        account=ServiceAccount(app),
        locality=Locality("eu", "a"),
        ready=ready,
        labels=(("app", app),),
    )
    return Change(Section.PODS, value.key, value)


def exported_service(name: str = "cart") -> list[Change]:
    """Says that there is a service, and that it is exported."""
    key = ServiceKey(SHOP, name)
    service = Service(key, (ServicePort(80, Protocol.HTTP, target=8080),), (("app", name),))
    return [Change(Section.SERVICES, key, service), Change(Section.EXPORTS, key, ServiceExport(key))]


def catalogue(count: int, *, endpoints: int = 8) -> list[Change]:
    """Says that there are so many exported services, `shop/s-1` and so on, each with the same pods behind it."""
    found = [pod(f"cart-{number}") for number in range(1, endpoints + 1)]
    for number in range(1, count + 1):
        key = ServiceKey(SHOP, f"s-{number}")
        service = Service(key, (ServicePort(80, Protocol.HTTP, target=8080),), (("app", "cart"),))
        found += [Change(Section.SERVICES, key, service), Change(Section.EXPORTS, key, ServiceExport(key))]
    return found


class ControlUnderTest:
    """One control plane without proxies."""

    def __init__(
        self,
        issuer: Issuer,
        client: EtcdClient,
        settings: ClusterSettings,
        *,
        documents: Sequence[TrustBundle] = (),
        lease: timedelta = timedelta(seconds=5),
    ) -> None:
        """`lease` is what the leader's key hangs on: who shares a machine with fifty others is given longer."""
        self.name = settings.name
        self._lease = lease
        self.holder = f"{settings.name}-control-1"
        """Its name in elections."""
        self.client = client
        self.settings = settings
        self.store = MeshStore(frozenset({"source", ORIGIN}))
        self.replica = Replica(settings, self.store)
        self.keeper = KeeperUnderTest(
            settings, issuer, store=self.store, etcd=client, replica=self.replica, documents=documents
        )
        self.offer = Offer(settings, self.keeper, store=self.store, etcd=client, replica=self.replica)
        self.publisher = Publisher(self.keeper, store=self.store, etcd=client, replica=self.replica, offer=self.offer)
        self.peers = Peers(settings, self.keeper, store=self.store, etcd=client, replica=self.replica)
        self.farewells = Farewells(store=self.store, etcd=client, replica=self.replica, own=settings.name)

    @property
    def member(self) -> MemberCluster:
        return self.keeper.own_member()

    @property
    def picture(self) -> Snapshot:
        return self.store.snapshot

    def peer(self, name: ClusterName) -> PeerStatus:
        return next(status for status in self.peers.status() if status.peer == name)

    def addresses(self, peer: ClusterName, key: ServiceKey = CART) -> list[str]:
        """The endpoints' addresses of what a peer offers, as the picture has them."""
        imported = self.picture.imports.get((peer, key))
        return [endpoint.address for endpoint in imported.endpoints] if imported else []

    def is_live(self, peer: ClusterName) -> bool:
        freshness = self.picture.freshness.get(peer)
        return freshness is not None and freshness.state is Liveness.LIVE

    async def introduce(self, member: MemberCluster) -> None:
        """Tells this cluster of a member as an operator's grant does: by hearsay."""
        hearsay = msgspec.structs.replace(member, introduced_by="root")
        await self.client.put_if_absent(names.member_key(member.name), exports.encode(hearsay))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.replica.run(self.client))
            tasks.create_task(self.offer.run())
            tasks.create_task(Silences(self.store).run())
            tasks.create_task(Election(self.client, self.holder, ttl=self._lease).run(self._lead))

    async def _lead(self, leadership: Leadership) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.publisher.run(leadership))
            tasks.create_task(self.peers.run(leadership))
            tasks.create_task(self.farewells.run(leadership))


class ClusterUnderTest:
    """What stays when a control plane ends: its etcd, its authority, and the way to it, which can be cut."""

    def __init__(self, issuer: Issuer, etcd: Etcd, *, relay: Relay, address: str) -> None:
        self.issuer = issuer
        self.etcd = etcd
        self.etcd_urls = (etcd.url,)
        """How control planes reach etcd: to be replaced by a way that can be disturbed."""
        self.relay = relay
        self.address = address
        self.gateway = GatewayAddress(relay.address, relay.port)

    @asynccontextmanager
    async def control(
        self, *changes: Change, documents: Sequence[TrustBundle] = (), **settings: object
    ) -> AsyncIterator[ControlUnderTest]:
        """Runs the control plane, whose source lists `changes`; without any, its source has not been listed yet."""
        fixed = ClusterSettings(
            name=self.issuer.cluster,
            domain=self.issuer.domain,
            network=NetworkName(self.issuer.cluster),
            region="eu",
            gateways=(self.gateway,),
        )
        async with EtcdClient(self.etcd_urls) as client:
            told = msgspec.structs.replace(fixed, **settings)
            control = ControlUnderTest(self.issuer, client, told, documents=documents)
            if changes:
                control.store.apply(changes)
                control.store.mark_listed("source")
            svid = control.keeper.svid()
            async with (
                serve((self.address, FEDERATION_PORT), control.offer.handler, svid, issuer=self.issuer),
                asyncio.TaskGroup() as tasks,
            ):
                running = tasks.create_task(control.run())
                yield control
                running.cancel()


@asynccontextmanager
async def serve(
    where: tuple[str, int],
    handler: grpc.GenericRpcHandler,
    svid: X509Svid,
    *,
    issuer: Issuer,
    patience: timedelta = SHORTEST_ANSWER,
) -> AsyncIterator[None]:
    """Serves a federation stream as a control plane does."""
    server = grpc.aio.server(options=patient_options(patience))
    server.add_generic_rpc_handlers((handler,))
    credentials = grpc.ssl_server_credentials(
        [(svid.key_pem, svid.certificate_chain_pem)], issuer.trust_bundle_pem, require_client_auth=True
    )
    server.add_secure_port(f"{where[0]}:{where[1]}", credentials)
    await server.start()
    try:
        yield
    finally:
        await server.stop(grace=None)


@asynccontextmanager
async def start_cluster(
    folder: Path, issuer: Issuer, *, etcd_arguments: Sequence[str] = ()
) -> AsyncIterator[ClusterUnderTest]:
    """Starts all of a cluster but its control plane. The gateway is a relay to where the control plane will be."""
    (folder / issuer.cluster).mkdir()
    address = free_address()
    async with (
        start_etcd(folder / issuer.cluster, arguments=etcd_arguments) as etcd,
        start_relay((address, FEDERATION_PORT), port=GATEWAY_PORT) as relay,
    ):
        yield ClusterUnderTest(issuer, etcd, relay=relay, address=address)
