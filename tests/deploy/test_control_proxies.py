"""Who may be told something, and that what several proxies share is compiled once."""

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from deploy.control.proxies import Admissions, Compiler, merged
from federation.etcd import EtcdClient
from federation.model import (
    Audience,
    ClusterSettings,
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
)
from federation.names import token_key
from federation.snapshot import EMPTY, Change, Section, Snapshot, apply
from federation.xds.ads import ProxyNode
from federation.xds.resources import TypeUrl, make_resource
from federation.xds.server import Refused, Unauthenticated, Unavailable
from tests.support.etcd import Etcd, start_etcd
from trust import attestation
from trust.attestation import TokenRole
from trust.spiffe import ClusterName, Identity, MeshDomain, Namespace, ServiceAccount, gateway_identity

EAST = ClusterName("east")
SHOP = Namespace("shop")
SETTINGS = ClusterSettings(EAST, MeshDomain("mesh.test"), NetworkName("east"), "eu", cloud="one")
CART = ServiceAccount("cart")


def a_pod(name: str, address: str, zone: str = "a") -> Pod:
    labels = (("app", "cart"),)
    return Pod(PodKey(SHOP, name), address, CART, Locality(zone=zone), labels=labels)


def a_picture(*pods: Pod) -> Snapshot:
    key = ServiceKey(SHOP, "cart")
    port = ServicePort(80, Protocol.HTTP, "http", 8080)
    changes = [
        Change(Section.SERVICES, key, Service(key, (port,), (("app", "cart"),))),
        Change(Section.EXPORTS, key, ServiceExport(key)),
        *(Change(Section.PODS, pod.key, pod) for pod in pods),
    ]
    return apply(EMPTY, changes)


def node(name: str, **metadata: str) -> ProxyNode:
    return ProxyNode(id=name, metadata=metadata)


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Etcd]:
    async with start_etcd(tmp_path) as server:
        yield server


async def a_token(client: EtcdClient, account: str, role: TokenRole = TokenRole.SIDECAR) -> str:
    token = attestation.new_token()
    namespace = "isthmus-system" if role is TokenRole.GATEWAY else "shop"
    record = attestation.make_record(namespace, account, role=role, now=datetime.now(UTC))
    await client.put(token_key(attestation.digest(token)), attestation.encode_record(record))
    return token


async def test_a_token_admits_the_proxies_of_its_account_and_no_others(etcd: Etcd) -> None:
    async with EtcdClient((etcd.url,)) as client:
        admissions = Admissions(SETTINGS, client)
        token = await a_token(client, "cart")
        identity = (await admissions.admit(node("east/shop/cart-1"), token)).identity
        assert identity == Identity(EAST, SHOP, CART)
        with pytest.raises(Unauthenticated):
            await admissions.admit(node("east/shop/cart-1"), attestation.new_token())
        for stranger in ("west/shop/cart-1", "east/bank/cart-1", "east/gateway-1", "nobody"):
            with pytest.raises(Refused):
                await admissions.admit(node(stranger), token)
        picture = a_picture(msgspec.structs.replace(a_pod("cart-1", "10.0.0.1"), account=ServiceAccount("other")))
        with pytest.raises(Refused, match="runs as other"):
            admissions.scope(picture, node("east/shop/cart-1"), identity)
        assert admissions.scope(picture, node("east/shop/cart-2"), identity) is None


async def test_a_gateway_says_where_it_listens(etcd: Etcd) -> None:
    async with EtcdClient((etcd.url,)) as client:
        admissions = Admissions(SETTINGS, client)
        token = await a_token(client, "gateway", TokenRole.GATEWAY)
        identity = (await admissions.admit(node("east/gateway-1"), token)).identity
        assert identity == gateway_identity(EAST)
        scope = admissions.scope(EMPTY, node("east/gateway-1", address="10.0.0.9"), identity)
        assert scope is not None
        assert (scope.address, scope.audience.role, scope.pod) == ("10.0.0.9", ProxyRole.GATEWAY, None)
        with pytest.raises(Refused, match="does not say its address"):
            admissions.scope(EMPTY, node("east/gateway-1"), identity)
        with pytest.raises(Refused):
            await admissions.admit(node("east/shop/cart-1"), token)


async def test_a_stranger_learns_nothing_and_costs_nothing(etcd: Etcd, caplog: pytest.LogCaptureFixture) -> None:
    async with EtcdClient((etcd.url,)) as client:
        admissions = Admissions(SETTINGS, client)
        for name in ("west/shop/cart-1", "x" * 10_000_000):
            with pytest.raises(Unauthenticated, match="unknown in this cluster") as refusal:
                await admissions.admit(node(name), attestation.new_token())
            assert "east" not in str(refusal.value)
        token = await a_token(client, "cart")
        with pytest.raises(Refused) as refusal:
            await admissions.admit(node("east/shop/" + "x" * 10_000_000), token)
        assert len(str(refusal.value)) < 1000
    assert len(caplog.records) == 3
    assert all(len(str(vars(record))) < 3000 for record in caplog.records)


async def test_a_gateway_listens_on_an_address(etcd: Etcd) -> None:
    async with EtcdClient((etcd.url,)) as client:
        admissions = Admissions(SETTINGS, client)
        for address in ("", "gateway.test", "0.0.0.0:1", "x" * 10_000_000):
            with pytest.raises(Refused) as refusal:
                admissions.scope(a_picture(), node("east/gateway-1", address=address), gateway_identity(EAST))
            assert len(str(refusal.value)) < 1000


async def test_known_proxies_come_back_while_etcd_is_away_and_strangers_wait(etcd: Etcd) -> None:
    async with EtcdClient((etcd.url,)) as client:
        admissions = Admissions(SETTINGS, client)
        known, stranger = await a_token(client, "cart"), await a_token(client, "cart")
        await admissions.admit(node("east/shop/cart-1"), known)
        await etcd.kill()
        await admissions.admit(node("east/shop/cart-2"), known)
        with pytest.raises(Unavailable):
            await admissions.admit(node("east/shop/cart-3"), stranger)


def a_scope(pod: Pod) -> ProxyScope:
    locality = Locality("eu", pod.locality.zone, "one")
    audience = Audience(ProxyRole.SIDECAR, EAST, SETTINGS.network, locality, SHOP)
    return ProxyScope(audience, Identity(EAST, SHOP, CART), pod.address, pod)


def test_proxies_of_one_audience_share_one_compilation() -> None:
    first, second, other = a_pod("cart-1", "10.0.0.1"), a_pod("cart-2", "10.0.0.2"), a_pod("cart-3", "10.0.0.3", "b")
    picture = a_picture(first, second, other)
    compiler = Compiler(SETTINGS, ["10.0.0.100"])
    one, two, three = (compiler(picture, a_scope(pod)) for pod in (first, second, other))
    for name, resource in one[TypeUrl.ENDPOINTS].items():
        assert two[TypeUrl.ENDPOINTS][name] is resource
    assert one[TypeUrl.ENDPOINTS] != three[TypeUrl.ENDPOINTS]
    assert one[TypeUrl.LISTENER] != two[TypeUrl.LISTENER]


def test_a_change_of_one_endpoint_changes_endpoints_only() -> None:
    first, second = a_pod("cart-1", "10.0.0.1"), a_pod("cart-2", "10.0.0.2")
    compiler = Compiler(SETTINGS, ["10.0.0.100"])
    before = compiler(a_picture(first), a_scope(first))
    after = compiler(apply(a_picture(first), [Change(Section.PODS, second.key, second)]), a_scope(first))
    changed = {kind for kind in before if _versions(before[kind]) != _versions(after[kind])}
    assert changed == {TypeUrl.ENDPOINTS}


def test_a_name_that_is_compiled_twice_is_a_bug() -> None:
    one = {TypeUrl.CLUSTER: {"cart": make_resource("cart", b"1")}}
    with pytest.raises(ValueError, match="compiled twice"):
        merged(one, one)


def _versions(resources: Mapping[str, msgspec.Struct]) -> Mapping[str, object]:
    return {name: resource.version for name, resource in resources.items()}
