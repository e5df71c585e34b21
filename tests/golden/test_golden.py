"""What a small mesh's proxies are told, one resource of each kind, for people to read in a review.

`UPDATE_GOLDEN=1 pytest tests/golden` accepts what the compilers make now.
"""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from federation.model import GatewayAddress, Locality, MemberCluster, NetworkName, Pod, PodKey, TcpUse
from federation.snapshot import Replace, Section, apply
from federation.xds.bootstrap import bootstrap
from federation.xds.resources import ResourceSet
from tests.support.static_envoy import as_values
from tests.support.two_clusters import DOMAIN, SHOP, Member, introduce, member, server
from trust.bundle import make_revocation
from trust.spiffe import ClusterName, ServiceAccount, control_dns_name, control_identity, spiffe_id

HERE = Path(__file__).parent
SERVICES = ("cart", "store")  # one of HTTP, one of plain TCP


def small(cluster: Member) -> Member:
    """Returns a cluster that knows two services and no more."""
    services = {key: service for key, service in cluster.snapshot.services.items() if key.name in SERVICES}
    return Member(cluster.settings, apply(cluster.snapshot, [Replace(Section.SERVICES, services)]))


def east() -> Member:
    uses = (TcpUse("store", 6379, 7001),)
    client = Pod(PodKey(SHOP, "client"), "10.1.0.1", ServiceAccount("client"), Locality("eu", "a"), uses=uses)
    pods = [client, server("server-a", "10.1.0.2", region="eu", zone="a")]
    return introduce(small(member("east", pods, network="one", exports=("cart",))), west())


def west() -> Member:
    pods = [server("server-1", "10.2.0.1", region="us", zone="a")]
    return small(member("west", pods, network="two", exports=("cart",), gateways=[GatewayAddress("192.0.2.1")]))


def revoking(cluster: Member) -> Member:
    """Returns a cluster that knows two others, and has revoked one of them, a workload, and one in every member."""
    others = [
        MemberCluster(ClusterName(name), NetworkName("one"), region="eu", gateways=()) for name in ("east", "north")
    ]
    revoked = ("north", "shop/client@east", "shop/thief")
    return Member(
        cluster.settings,
        apply(
            cluster.snapshot,
            [
                Replace(Section.MEMBERS, {one.name: one for one in others}),
                Replace(
                    Section.REVOCATIONS,
                    {one: make_revocation(one, at=datetime(2026, 1, 1, tzinfo=UTC)) for one in revoked},
                ),
            ],
        ),
    )


def printed(values: object) -> str:
    return yaml.safe_dump(json.loads(json.dumps(values)), width=120)


def of_resources(resources: ResourceSet, *names: str) -> str:
    """Prints the resources of these names."""
    found = {
        type_url.rpartition(".")[2]: {name: values for name, values in of_type.items() if name in names}
        for type_url, of_type in as_values(resources).items()
    }
    assert set(names) == {name for of_type in found.values() for name in of_type}
    return printed(found)


def outbound() -> str:
    cart = "outbound|80|cart.shop.svc.clusterset.local"
    return of_resources(east().sidecar("client"), cart, "gateway|west", "tunnel|west", "outbound", "outbound-tcp|7001")


def inbound() -> str:
    rules = ("inbound-http|shop/cart", "inbound-tcp|shop/store")
    return of_resources(revoking(west()).sidecar("server-1"), "inbound", "inbound|8080", "inbound|6379", *rules)


def gateway() -> str:
    resources = revoking(west()).gateway("192.0.2.1", control=("10.2.0.200",))
    return of_resources(resources, "east-west", "federation", "cart.shop.svc.west.mesh.test")


def bootstrap_of_sidecar() -> str:
    name = ClusterName("east")
    return printed(
        bootstrap(
            "east/shop/client",
            Locality("eu", "a"),
            address="10.1.0.1",
            control_addresses=[("10.1.0.200", 15012)],
            control_dns_name=control_dns_name(name, DOMAIN),
            control_spiffe_id=spiffe_id(control_identity(name), DOMAIN),
            trust_bundle_path="/etc/isthmus/trust/trust-bundle.json",
            token_path="/etc/isthmus/token.json",
        )
    )


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("outbound", outbound),
        ("inbound", inbound),
        ("gateway", gateway),
        ("bootstrap", bootstrap_of_sidecar),
    ],
)
def test_what_is_told_is_what_was_reviewed(name: str, made: Callable[[], str]) -> None:
    path, text = HERE / f"{name}.yaml", made()
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"{path} differs: review, then accept with UPDATE_GOLDEN=1"
