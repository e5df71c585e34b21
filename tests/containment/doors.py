"""Every door of a mesh at which a certificate is looked at, and what it takes for a forgery to be believed there."""

import asyncio
import json
import re
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from federation.model import FEDERATION_PORT, GATEWAY_PORT, MESH_PORT, GatewayAddress, ServiceKey
from federation.names import exported_authority, service_sni, tunnel_sni
from federation.peering.dialing import PeerUnavailable, open_channel
from tests.containment import h2
from tests.containment.besieged import (
    EAST,
    FIRST_USE,
    LURE_PORT,
    MESH,
    SHOP,
    SOUTH,
    WEST,
    Besieged,
    honest_leaf,
    identity,
)
from tests.containment.presenting import Impostor, converse, tls_context
from tests.containment.thief import Aim, Forgery
from tests.support.addresses import free_address
from tests.support.envoy import PATIENCE, start_envoy
from tests.support.waiting import eventually
from trust.certificates import certificate_pem, key_pem
from trust.issuance import X509Svid
from trust.spiffe import (
    ClusterName,
    Identity,
    control_dns_name,
    control_identity,
    gateway_dns_name,
    gateway_identity,
    spiffe_id,
)

_HTTP = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
_AT_ONCE = 24  # handshakes
_CALLS = 2  # that have to end without a word before a gateway counts as refused
SOMEBODY = "somebody"

Seen = str | None
"""For whom a door took who came: SOMEBODY where it does not tell, nothing when it refused; None for a chain that could
not be shown at all, because OpenSSL would not load it."""
TryAll = Callable[[Sequence[Forgery]], Awaitable[Sequence[Seen]]]


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """A place where somebody is believed or not. `takes_own`: east's own certificates are good here, as east's."""

    name: str
    victim: Identity
    own: Identity
    honest: Identity
    try_all: TryAll
    takes_own: bool = False

    @property
    def aim(self) -> Aim:
        return Aim(domain=MESH, victim=self.victim, own=self.own)


def verdict(door: Door, forgery: Forgery, seen: Seen) -> str:
    """Says what has happened: `ACCEPTED` is what must never be."""
    if seen is None:
        return "not shown"
    if not seen:
        return "refused"
    hosts = set(re.findall(r"spiffe://([^/]*)", seen))
    is_own = door.takes_own and forgery.is_own and hosts <= {f"{EAST}.{MESH}"}
    return "own slice" if is_own else "ACCEPTED"


def honest(besieged: Besieged, whose: Identity) -> Forgery:
    """Returns what the true owner of a name would show: the proof that a door works."""
    system = {control_identity(whose.cluster): control_dns_name, gateway_identity(whose.cluster): gateway_dns_name}
    authority = besieged.authorities[whose.cluster]
    leaf, key = honest_leaf(
        authority, whose, *(name(whose.cluster, MESH) for who, name in system.items() if who == whose)
    )
    chain = (leaf.public_bytes(Encoding.DER), authority.encoded)
    return Forgery(name="honest", chain=chain, key=key, is_own=whose.cluster == EAST, is_sound=True)


def doors_for_clients(besieged: Besieged) -> Iterator[Door]:
    """Doors at which a thief calls."""

    def inbound(service: str, port: int, *, victim: Identity, own: bool) -> Door:
        server_name = service_sni(WEST, ServiceKey(SHOP, service), port, MESH)

        itself = f"By={spiffe_id(identity(WEST, 'server'), MESH)};"

        async def try_one(context: ssl.SSLContext) -> str:
            answer = await converse(besieged.server, MESH_PORT, context, server_name, _HTTP)
            if not answer.startswith(b"HTTP/1.1 200"):
                return ""
            if port != 80:
                return SOMEBODY  # bytes pass as they are: nobody tells the app who sent them
            headers = json.loads(answer.partition(b"\r\n\r\n")[2])["headers"]
            told = str(headers["x-forwarded-client-cert"])
            assert told.startswith(itself), told
            return told.removeprefix(itself)

        kind = f"sidecar inbound, {'TCP' if port != 80 else 'HTTP'}, {'exported' if own else 'not exported'}"
        who = f"{victim.cluster}/{victim.namespace}/{victim.account}"
        return Door(
            name=f"{kind}, as {who}",
            victim=victim,
            own=identity(EAST, "client"),
            honest=victim if own or victim.cluster == WEST else identity(WEST, "client"),
            try_all=_each(try_one),
            takes_own=own,
        )

    client = identity(WEST, "client")
    for victim in (client, control_identity(WEST), gateway_identity(WEST), identity(SOUTH, "client")):
        yield inbound("cart", 80, victim=victim, own=True)
    yield inbound("store", 6379, victim=client, own=True)
    yield inbound("page", 80, victim=client, own=False)
    yield inbound("cache", 6380, victim=client, own=False)

    def tunnel(caller: ClusterName, victim: Identity) -> Door:
        async def try_one(context: ssl.SSLContext) -> str:
            context.set_alpn_protocols(["h2"])
            headers = {
                ":method": "CONNECT",
                ":authority": exported_authority(WEST, ServiceKey(SHOP, "cart"), MESH),
                "x-isthmus-endpoint": f"{besieged.server}:{MESH_PORT}",
            }
            name = tunnel_sni(caller, WEST, MESH)
            served = await h2.ask(besieged.gateway, GATEWAY_PORT, context=context, server_name=name, headers=headers)
            return SOMEBODY if served == 200 else ""

        return Door(
            name=f"gateway, tunnel of {caller}, as {victim.cluster}/{victim.namespace}/{victim.account}",
            victim=victim,
            own=identity(EAST, "client"),
            honest=identity(caller, "client"),
            try_all=_each(try_one),
            takes_own=caller == EAST,
        )

    yield tunnel(EAST, identity(SOUTH, "client"))
    yield tunnel(EAST, identity(WEST, "client"))
    yield tunnel(SOUTH, identity(SOUTH, "client"))
    yield tunnel(SOUTH, gateway_identity(SOUTH))

    async def listen(context: ssl.SSLContext) -> str:
        name = control_dns_name(WEST, MESH)
        is_served = await h2.listens(besieged.control.address, FEDERATION_PORT, context=context, server_name=name)
        return SOMEBODY if is_served else ""

    yield Door(
        name="federation stream, calling as south's control plane",
        victim=control_identity(SOUTH),
        own=control_identity(EAST),
        honest=control_identity(SOUTH),
        try_all=_each(listen),
        takes_own=True,
    )


def doors_for_servers(besieged: Besieged, folder: Path) -> Iterator[Door]:
    """Doors at which a thief is called: nobody who calls others takes east for them."""
    own = identity(EAST, "server")

    async def outbound(forgeries: Sequence[Forgery]) -> Sequence[Seen]:
        return await _lured(besieged, forgeries, MESH_PORT, partial(_is_answered, besieged.client))

    yield Door(
        name="sidecar outbound, served by west/shop/server",
        victim=identity(WEST, "server"),
        own=own,
        honest=identity(WEST, "server"),
        try_all=outbound,
    )

    async def gateway(forgeries: Sequence[Forgery]) -> Sequence[Seen]:
        """South's gateways are impostors: the sidecar checks their health, and west's control plane calls them, too.

        It calls all of them twice a second, so only some are there at a time: a slow machine would never be done.
        """
        impostors = [_impostor(forgery) for forgery in forgeries]
        (genuine, where), *others = (
            (one, where) for one, where in zip(impostors, besieged.lures, strict=False) if one is not None
        )
        async with genuine.serve(where, GATEWAY_PORT):
            for first in range(0, len(others), _AT_ONCE):
                some = others[first : first + _AT_ONCE]
                async with AsyncExitStack() as stack:
                    for impostor, where in some:
                        await stack.enter_async_context(impostor.serve(where, GATEWAY_PORT))
                    # A connection may break off, too: a caller that is told something new meanwhile begins anew.
                    await eventually(
                        lambda some=some: all(one.believed or one.refused >= _CALLS for one, _ in some),
                        "all gateways were called",
                    )
            await eventually(lambda: bool(genuine.believed), "the genuine gateway was believed")
        return [None if one is None else " ".join(sorted(one.believed)) for one in impostors]

    yield Door(
        name="gateway, served by south's",
        victim=gateway_identity(SOUTH),
        own=gateway_identity(EAST),
        honest=gateway_identity(SOUTH),
        try_all=gateway,
    )

    async def federation(forgeries: Sequence[Forgery]) -> Sequence[Seen]:
        leaf, key = honest_leaf(besieged.authorities[WEST], control_identity(WEST))
        svid = _svid(certificate_pem(leaf) + besieged.authorities[WEST].pem.encode(), key)

        async def call(number: int) -> str:
            where = GatewayAddress(besieged.lures[number], FEDERATION_PORT)
            try:
                async with open_channel(
                    where, peer=SOUTH, domain=MESH, svid=svid, trust_bundle=certificate_pem(besieged.root)
                ):
                    return SOMEBODY
            except PeerUnavailable:
                return ""

        return await _lured(besieged, forgeries, FEDERATION_PORT, call)

    yield Door(
        name="federation stream, served by south's control plane",
        victim=control_identity(SOUTH),
        own=control_identity(EAST),
        honest=control_identity(SOUTH),
        try_all=federation,
    )

    async def ads(forgeries: Sequence[Forgery]) -> Sequence[Seen]:
        admin = free_address()
        config = _only_control_planes(besieged, admin, len(forgeries))
        async with start_envoy(config, folder=folder, name=f"ads-{len(forgeries)}") as envoy:
            await envoy.wait_live()
            return await _lured(besieged, forgeries, LURE_PORT, partial(_is_answered, admin))

    yield Door(
        name="ADS, served by west's control plane",
        victim=control_identity(WEST),
        own=control_identity(EAST),
        honest=control_identity(WEST),
        try_all=ads,
    )


def _only_control_planes(besieged: Besieged, admin: str, count: int) -> dict[str, Any]:
    """Returns a bootstrap in which the cluster of the control plane stands once for each impostor, as a sidecar has it.

    Envoy itself would try them one by one, and wait longer after each.
    """
    config = json.loads(json.dumps(besieged.bootstrap))
    [cluster] = config["static_resources"]["clusters"]
    clusters, listeners = [], []
    for number in range(count):
        copy = json.loads(json.dumps(cluster)) | {"name": f"xds-{number}"}
        copy.pop("typed_extension_protocol_options")  # what would be sent: nothing is, to whom is not believed
        where = {"socket_address": {"address": besieged.lures[number], "port_value": LURE_PORT}}
        copy["load_assignment"] = {
            "cluster_name": f"xds-{number}",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": where}}]}],
        }
        clusters.append(copy)
        proxy = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "x",
            "cluster": f"xds-{number}",
        }
        listen = {"socket_address": {"address": admin, "port_value": FIRST_USE + number}}
        chain = {"filters": [{"name": "tcp", "typed_config": proxy}]}
        listeners.append({"name": f"l{number}", "address": listen, "filter_chains": [chain]})
    del config["dynamic_resources"], config["cluster_manager"]["load_stats_config"]  # they name the one cluster
    config["admin"]["address"]["socket_address"]["address"] = admin
    return config | {"static_resources": {"clusters": clusters, "listeners": listeners}}


def _each(try_one: Callable[[ssl.SSLContext], Awaitable[str]]) -> TryAll:
    async def try_all(forgeries: Sequence[Forgery]) -> Sequence[Seen]:
        room = asyncio.Semaphore(_AT_ONCE)

        async def attempt(forgery: Forgery) -> Seen:
            async with room:
                context = tls_context(forgery, "client")
                return None if context is None else await try_one(context)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(attempt(forgery)) for forgery in forgeries]
        return [task.result() for task in tasks]

    return try_all


async def _lured(
    besieged: Besieged,
    forgeries: Sequence[Forgery],
    port: int,
    call: Callable[[int], Awaitable[str]],
) -> Sequence[Seen]:
    """Lets each forgery wait at its lure, and calls it there."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def attempt(number: int, forgery: Forgery) -> Seen:
        async with room:
            impostor = _impostor(forgery)
            if impostor is None:
                return None
            async with impostor.serve(besieged.lures[number], port):
                return await call(number)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(attempt(number, forgery)) for number, forgery in enumerate(forgeries)]
    return [task.result() for task in tasks]


async def _is_answered(address: str, number: int) -> str:
    """Speaks through the Envoy listener that leads to the n-th lure."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(address, FIRST_USE + number)
        try:
            writer.write(b"hello")
            return SOMEBODY if await reader.read() else ""
        except ConnectionError:
            return ""
        finally:
            writer.close()


def _impostor(forgery: Forgery) -> Impostor | None:
    context = tls_context(forgery, "server", "h2")
    return None if context is None else Impostor(context)


def _svid(chain: bytes, key: ec.EllipticCurvePrivateKey) -> X509Svid:
    now = datetime.now(UTC)
    return X509Svid(
        identity=control_identity(ClusterName(WEST)),
        certificate_chain_pem=chain,
        key_pem=key_pem(key),
        not_before=now,
        not_after=now,
        renew_at=now,
    )
