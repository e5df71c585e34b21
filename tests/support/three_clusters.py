"""A mesh of three clusters in real Envoys, of which one client is told everything by push, as the product compiles it.

East has the client and one server, west two servers behind a gateway on a network of its own, south one server on the
network of east. All export `cart` (HTTP), `greeter` (gRPC) and `store` (plain TCP); `page` (HTTP) only west does.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from federation import snapshot as picture
from federation.model import OUTBOUND_PORT, GatewayAddress, Locality, Pod, PodKey, TcpUse
from federation.names import sidecar_node
from federation.peering.exports import own_member
from federation.snapshot import Change, Replace, Section
from federation.xds.resources import ResourceSet, TypeUrl
from tests.support.addresses import free_block
from tests.support.envoy import Envoy, start_envoy
from tests.support.identities import MeshIdentities
from tests.support.pushing import Pushing
from tests.support.running_mesh import App, run_programs
from tests.support.static_envoy import static_bootstrap
from tests.support.two_clusters import (
    DOMAIN,
    FAR_STORE_USE,
    SHOP,
    STORE_PORT,
    Member,
    far,
    introduce,
    member,
    server,
)
from trust.spiffe import ClusterName, ServiceAccount, gateway_identity

_EVERYWHERE = ("cart", "greeter", "store")
_CLIENT = sidecar_node(ClusterName("east"), PodKey(SHOP, "client"))


class ThreeClusters:
    """What runs: `east` is what the client's cluster knows, sidecars and apps are by `<cluster>/<pod>`."""

    def __init__(self, block: str, east: Member, identities: MeshIdentities) -> None:
        self.east = east
        self.pushing = Pushing(f"{block}.9")
        self.sidecars: dict[str, Envoy] = {}
        self.apps: dict[str, App] = {}
        self._serving = AsyncExitStack()
        self._secrets = identities.secrets(east.pod_scope("client").identity)

    async def know(self, *changes: Change | Replace) -> None:
        """Changes what east knows, and waits until the client's sidecar has taken it."""
        self.east = Member(self.east.settings, picture.apply(self.east.snapshot, changes))
        self.pushing.show(self.told)
        await self.pushing.settled()

    async def serve(self) -> None:
        """Starts the control plane (again, after `silence`)."""
        await self._serving.enter_async_context(self.pushing.serve())

    async def silence(self) -> None:
        """Ends the control plane: nothing is told to the client's sidecar any more."""
        await self._serving.aclose()

    @property
    def told(self) -> Mapping[str, ResourceSet]:
        """What the client's sidecar is told, by its node."""
        return {_CLIENT: {**self.east.sidecar("client"), TypeUrl.SECRET: self._secrets}}

    @property
    def client(self) -> Envoy:
        """The client's sidecar."""
        return self.sidecars["east/client"]

    @property
    def address(self) -> str:
        """The address of the client's pod."""
        return self.east.pod_scope("client").address

    @property
    def proxy(self) -> str:
        """What the client program is told in its environment."""
        return f"http://{self.address}:{OUTBOUND_PORT}"


@asynccontextmanager
async def run_three_clusters(folder: Path) -> AsyncIterator[ThreeClusters]:
    """Runs the mesh; the client's sidecar serves when it yields."""
    block = free_block()
    uses = (TcpUse(far("store"), STORE_PORT, FAR_STORE_USE),)
    client = Pod(PodKey(SHOP, "client"), f"{block}.1", ServiceAccount("client"), Locality("eu", "a"), uses=uses)
    east = member(
        "east", [client, server("server-1", f"{block}.2", region="eu", zone="a")], network="one", exports=_EVERYWHERE
    )
    west = member(
        "west",
        [server(f"server-{n}", f"{block}.2{n}", region="us", zone="a") for n in (1, 2)],
        network="two",
        exports=(*_EVERYWHERE, "page"),
        gateways=[GatewayAddress(f"{block}.29")],
    )
    south = member(
        "south", [server("server-1", f"{block}.31", region="ap", zone="a")], network="one", exports=_EVERYWHERE
    )
    known = Replace(Section.MEMBERS, {east.settings.name: own_member(east.settings)})
    west, south = (Member(one.settings, picture.apply(one.snapshot, [known])) for one in (west, south))
    identities = MeshIdentities(DOMAIN)
    told = introduce(east, west)
    also = introduce(east, south).snapshot
    told = Member(
        east.settings,
        picture.apply(
            told.snapshot,
            [
                *(Change(Section.MEMBERS, name, record) for name, record in also.members.items()),
                *(Change(Section.IMPORTS, name, offer) for name, offer in also.imports.items()),
            ],
        ),
    )
    mesh = ThreeClusters(block, told, identities)
    async with AsyncExitStack() as stack:
        for cluster in (east, west, south):
            for pod in cluster.snapshot.pods.values():
                if pod.account != "server":
                    continue
                name = f"{cluster.settings.name}/{pod.key.name}"
                config = static_bootstrap(
                    cluster.sidecar(pod.key.name),
                    identities.secrets(cluster.pod_scope(pod.key.name).identity),
                    node=sidecar_node(cluster.settings.name, pod.key),
                    address=pod.address,
                )
                starting = start_envoy(config, folder=folder, name=name.replace("/", "-"))
                mesh.sidecars[name] = await stack.enter_async_context(starting)
                mesh.apps[name] = await stack.enter_async_context(run_programs(name, pod.address))
        address = west.settings.gateways[0].address
        config = static_bootstrap(
            west.gateway(address, control=(f"{block}.201",)),
            identities.secrets(gateway_identity(west.settings.name)),
            node=f"west/gateway-{address}",
            address=address,
        )
        mesh.sidecars["west/gateway"] = await stack.enter_async_context(
            start_envoy(config, folder=folder, name="west-gateway")
        )
        mesh.pushing.show(mesh.told)
        config = mesh.pushing.bootstrap(_CLIENT, client.address)
        mesh.sidecars["east/client"] = await stack.enter_async_context(
            start_envoy(config, folder=folder, name="east-client")
        )
        stack.push_async_callback(mesh.silence)
        await mesh.serve()
        await mesh.pushing.settled()
        await mesh.client.wait_live()
        yield mesh
