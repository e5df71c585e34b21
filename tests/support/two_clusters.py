"""A mesh of two clusters for tests of proxies: pictures, scopes and configurations, no control plane.

East has a client and two servers, west has three servers behind two gateways on another network. Every server runs
every service: `cart` (HTTP, which both export), `page` (HTTP), `greeter` (gRPC), `chat`
(WebSocket) and `store` (plain TCP), which west alone exports: their mesh-wide names lead to west, their local names
stay in east.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from federation import snapshot as picture
from federation.model import (
    Audience,
    ClusterSettings,
    ExportedService,
    GatewayAddress,
    Locality,
    NetworkName,
    Pod,
    PodKey,
    Protocol,
    ProxyRole,
    ProxyScope,
    Service,
    ServiceExport,
    ServiceKey,
    ServicePort,
    TcpUse,
)
from federation.names import clusterset_host, local_host
from federation.peering.exports import offered, own_member
from federation.peering.visibility import audiences
from federation.revoked import tunnel_callers
from federation.severing import epochs
from federation.snapshot import Replace, Section, Snapshot
from federation.view import inbound_ports, resolve
from federation.xds.builders import merge
from federation.xds.resources import ResourceSet
from gateway.eastwest import compile_gateway
from sidecar.inbound import compile_inbound, compile_rules
from sidecar.outbound import compile_outbound, outbound_listeners
from trust.spiffe import ClusterName, Identity, MeshDomain, Namespace, ServiceAccount, gateway_identity

DOMAIN = MeshDomain("mesh.test")
SHOP = Namespace("shop")
HTTP_PORT, GRPC_PORT, CHAT_PORT, STORE_PORT = 8080, 50051, 8090, 6379
NEAR_STORE_USE, FAR_STORE_USE = 7001, 7002

_SERVICES = {
    "cart": ServicePort(80, Protocol.HTTP, target=HTTP_PORT),
    "page": ServicePort(80, Protocol.HTTP, target=HTTP_PORT),
    "greeter": ServicePort(50051, Protocol.GRPC, target=GRPC_PORT),
    "chat": ServicePort(80, Protocol.HTTP, target=CHAT_PORT),
    "store": ServicePort(6379, Protocol.TCP, target=STORE_PORT),
}


def key(name: str) -> ServiceKey:
    """Returns the key of a service in the namespace of these tests."""
    return ServiceKey(SHOP, name)


def near(name: str) -> str:
    """Returns the name of a service in the client's own cluster."""
    return local_host(key(name))


def far(name: str) -> str:
    """Returns the mesh-wide name of a service."""
    return clusterset_host(key(name))


def server(name: str, address: str, *, region: str, zone: str) -> Pod:
    """Returns a pod that stands behind every service."""
    return Pod(
        PodKey(SHOP, name), address, ServiceAccount("server"), Locality(region, zone), labels=(("app", "server"),)
    )


class Member(msgspec.Struct, frozen=True):
    """One cluster: what it was told and what it knows."""

    settings: ClusterSettings
    snapshot: Snapshot

    @property
    def offers(self) -> dict[ServiceKey, ExportedService]:
        return dict(offered(self.snapshot, self.settings, before={}, changed_at=datetime(2026, 1, 1, tzinfo=UTC)))

    def pod_scope(self, name: str) -> ProxyScope:
        """Returns the scope of a pod's sidecar."""
        pod = self.snapshot.pods[PodKey(SHOP, name)]
        identity = Identity(self.settings.name, SHOP, pod.account)
        return ProxyScope(self._audience(ProxyRole.SIDECAR, pod.locality), identity, pod.address, pod)

    def sidecar(self, name: str) -> ResourceSet:
        """Returns what a pod's sidecar is told."""
        scope = self.pod_scope(name)
        assert scope.pod is not None
        now = epochs(self.snapshot, self.settings)
        ports = inbound_ports(self.snapshot, scope.pod)
        return merge(
            compile_outbound(resolve(self.snapshot, self.settings, scope.audience)),
            outbound_listeners(scope, epoch=now.sidecars),
            compile_inbound(scope, ports, DOMAIN, epochs=now),
            compile_rules(
                self.settings.name,
                ports,
                DOMAIN,
                audiences=audiences(self.snapshot, self.settings),
                revoked=self.snapshot.revoked,
            ),
        )

    def gateway(self, address: str, *, control: Sequence[str] = ()) -> ResourceSet:
        """Returns what a gateway on `address` is told."""
        audience = self._audience(ProxyRole.GATEWAY, Locality(self.settings.region))
        scope = ProxyScope(audience, gateway_identity(self.settings.name), address)
        return compile_gateway(
            scope,
            self.offers,
            control_addresses=control,
            domain=DOMAIN,
            callers=tunnel_callers(self.snapshot, self.settings),
            audiences=audiences(self.snapshot, self.settings),
            revoked=self.snapshot.revoked,
            epochs=epochs(self.snapshot, self.settings),
        )

    def _audience(self, role: ProxyRole, locality: Locality) -> Audience:
        return Audience(role, self.settings.name, self.settings.network, locality, SHOP)


def member(
    name: str, pods: Sequence[Pod], *, network: str, exports: Sequence[str], gateways: Sequence[GatewayAddress] = ()
) -> Member:
    """Returns a cluster with these pods and all services, of which `exports` are exported."""
    settings = ClusterSettings(
        ClusterName(name), DOMAIN, NetworkName(network), region=pods[0].locality.region, gateways=tuple(gateways)
    )
    services = {key(one): Service(key(one), (port,), (("app", "server"),)) for one, port in _SERVICES.items()}
    snapshot = picture.apply(
        picture.EMPTY,
        [
            Replace(Section.SERVICES, services),
            Replace(Section.EXPORTS, {key(one): ServiceExport(key(one)) for one in exports}),
            Replace(Section.PODS, {pod.key: pod for pod in pods}),
        ],
    )
    return Member(settings, snapshot)


def introduce(listener: Member, speaker: Member) -> Member:
    """Returns `listener` as it is when it knows `speaker` and what that one offers."""
    name = speaker.settings.name
    snapshot = picture.apply(
        listener.snapshot,
        [
            Replace(Section.MEMBERS, {name: own_member(speaker.settings)}),
            Replace(Section.IMPORTS, {(name, offer.key): offer for offer in speaker.offers.values()}),
        ],
    )
    return Member(listener.settings, snapshot)


def east_and_west(block: str, *, west_network: str = "two") -> tuple[Member, Member]:
    """Returns both clusters on addresses `<block>.x`; each knows the other, and east its offers."""
    client = Pod(
        PodKey(SHOP, "client"),
        f"{block}.11",
        ServiceAccount("client"),
        Locality("eu", "a"),
        uses=(TcpUse("store", STORE_PORT, NEAR_STORE_USE), TcpUse(far("store"), STORE_PORT, FAR_STORE_USE)),
    )
    east = member(
        "east",
        [
            client,
            server("server-a", f"{block}.12", region="eu", zone="a"),
            server("server-b", f"{block}.13", region="eu", zone="b"),
        ],
        network="one",
        exports=("cart",),
    )
    west = member(
        "west",
        [server(f"server-{n}", f"{block}.2{n}", region="us", zone="a") for n in (1, 2, 3)],
        network=west_network,
        exports=("cart", "page", "greeter", "chat", "store"),
        gateways=[GatewayAddress(f"{block}.101"), GatewayAddress(f"{block}.102")],
    )
    known = Replace(Section.MEMBERS, {east.settings.name: own_member(east.settings)})
    return introduce(east, west), Member(west.settings, picture.apply(west.snapshot, [known]))
