"""What a thief attacks: a real control plane of west, real Envoys that it configures, and a mesh whose root is at hand.

East's intermediate is stolen. South is a third member that the thief would like to be, too.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from federation import names
from federation.etcd import EtcdClient
from federation.model import (
    Endpoint,
    ExportedService,
    GatewayAddress,
    Locality,
    MemberCluster,
    NetworkName,
    Protocol,
    ServiceKey,
    ServicePort,
)
from federation.peering import exports
from tests.containment.thief import Authority
from tests.support.addresses import free_address
from tests.support.control import DOMAIN, Control, export, join, pod, service, start_control, start_proxy
from tests.support.envoy import Envoy
from tests.support.running_mesh import run_app
from tests.support.trust import init_root
from trust.certificates import load_key, make_intermediate, make_leaf, new_key
from trust.spiffe import ClusterName, Identity, MeshDomain, Namespace, ServiceAccount

EAST, WEST, SOUTH = ClusterName("east"), ClusterName("west"), ClusterName("south")
SHOP = Namespace("shop")
MESH = MeshDomain(DOMAIN)
LURE_PORT = 9000
FIRST_USE = 20000
_HOUR = timedelta(hours=1)


class Besieged(msgspec.Struct, frozen=True, kw_only=True):
    """The victim's world. `lures[n]` is where the n-th impostor stands: as a pod of west (reached by the client's
    sidecar on port FIRST_USE + n), as a gateway of south and as south's control plane."""

    root: x509.Certificate
    authorities: Mapping[ClusterName, Authority]
    control: Control
    server: str
    client: str
    client_envoy: Envoy
    gateway: str
    lures: Sequence[str]
    bootstrap: Mapping[str, Any]


def identity(cluster: ClusterName, account: str) -> Identity:
    return Identity(cluster, SHOP, ServiceAccount(account))


@asynccontextmanager
async def besieged(folder: Path, lures: int) -> AsyncIterator[Besieged]:
    """Runs west with a server, a client and a gateway; `lures` addresses wait for impostors."""
    now = datetime.now(UTC)
    root = init_root(folder / "root", MESH, now=now)
    [key_file] = (folder / "root").glob("*-key.pem")
    root_key = load_key(key_file.read_bytes())
    authorities = {name: _authority(root.certificate, root_key, name, now=now) for name in (EAST, WEST, SOUTH)}
    server, client, gateway = free_address(), free_address(), free_address()
    places = [free_address() for _ in range(lures)]
    async with AsyncExitStack() as stack:
        west = await stack.enter_async_context(
            start_control(folder / "west", "west", "--region", "us", "--gateways", gateway)
        )
        await join(root, west)
        await _introduce(west, authorities, places)
        _write_manifests(west, server, client, places)
        await stack.enter_async_context(run_app("server-1", server))
        started = [
            await stack.enter_async_context(start_proxy(west, root, node, address=address, account=account))
            for node, address, account in (
                ("west/shop/server-1", server, "server"),
                ("west/shop/client-1", client, "client"),
                ("west/gateway-1", gateway, "gateway"),
            )
        ]
        for envoy in started:
            await envoy.wait_live()
        yield Besieged(
            root=root.certificate,
            authorities=authorities,
            control=west,
            server=server,
            client=client,
            client_envoy=started[1],
            gateway=gateway,
            lures=places,
            bootstrap=msgspec.json.decode((west.folder / "west-shop-client-1" / "envoy.json").read_bytes()),
        )


def _authority(
    root: x509.Certificate, root_key: ec.EllipticCurvePrivateKey, cluster: ClusterName, *, now: datetime
) -> Authority:
    key = new_key()
    certificate = make_intermediate(
        root, root_key, public_key=key.public_key(), cluster=cluster, domain=MESH, now=now, lifetime=_HOUR
    )
    return Authority(certificate=certificate, key=key)


def honest_leaf(
    authority: Authority, whose: Identity, *extra_dns: str
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Returns what a control plane would issue."""
    key = new_key()
    leaf = make_leaf(
        authority.certificate,
        authority.key,
        public_key=key.public_key(),
        identity=whose,
        domain=MESH,
        extra_dns=extra_dns,
        now=datetime.now(UTC),
        lifetime=_HOUR,
    )
    return leaf, key


async def _introduce(west: Control, authorities: Mapping[ClusterName, Authority], lures: Sequence[str]) -> None:
    """Tells west of the other members, and that south offers a service behind gateways that are impostors."""
    far = ServiceKey(SHOP, "far")
    offer = ExportedService(
        cluster=SOUTH,
        key=far,
        ports=(ServicePort(80, Protocol.HTTP),),
        endpoints=(Endpoint("10.0.0.1", "far-1", ServiceAccount("far"), Locality("eu", "a")),),
        changed_at=datetime.now(UTC),
    )
    async with EtcdClient((west.etcd,)) as etcd:
        for name, gateways in ((EAST, ()), (SOUTH, tuple(GatewayAddress(one) for one in lures))):
            pem = authorities[name].pem
            member = MemberCluster(name, NetworkName(name), "eu", gateways, certificate=pem, introduced_by="root")
            await etcd.put(names.member_key(name), exports.encode(member))
        await etcd.put(names.export_key(SOUTH, far), exports.encode(offer))


def _write_manifests(west: Control, server: str, client: str, lures: Sequence[str]) -> None:
    def tcp(name: str, port: int, target: int, app: str) -> dict[str, Any]:
        made: dict[str, Any] = service(name, port=port, target=target)
        made["spec"] |= {"selector": {"app": app}}
        made["spec"]["ports"][0] |= {"name": "tcp", "appProtocol": "tcp"}
        return made

    def http(name: str) -> dict[str, Any]:
        made: dict[str, Any] = service(name)
        made["spec"] |= {"selector": {"app": "server"}}
        return made

    stores = [tcp("store", 6379, 8080, "server"), tcp("cache", 6380, 8080, "server")]
    west.write("server.yaml", pod("server-1", "server", server), http("cart"), http("page"), *stores)
    west.write("exports.yaml", export("cart"), export("store"))
    caller: dict[str, Any] = pod("client-1", "client", client)
    uses = ",".join(f"lure-{number}.shop:{LURE_PORT}@{FIRST_USE + number}" for number in range(len(lures)))
    caller["metadata"]["annotations"] = {"isthmus.dev/tcp-uses": uses}
    west.write("client.yaml", caller)
    baits = []
    for number, address in enumerate(lures):
        bait: dict[str, Any] = pod(f"lure-{number}", f"lure-{number}", address)
        bait["spec"]["serviceAccountName"] = "server"
        baits += [bait, tcp(f"lure-{number}", LURE_PORT, LURE_PORT, f"lure-{number}")]
    west.write("lures.yaml", *baits)
