"""Envoy itself accepts what the compilers make, for every kind of proxy."""

from pathlib import Path

import pytest

from federation.model import ADS_PORT, Locality
from federation.xds.bootstrap import bootstrap, token_file, trust_bundle_file
from tests.support.envoy import validate
from tests.support.identities import MeshIdentities
from tests.support.static_envoy import static_bootstrap
from tests.support.two_clusters import DOMAIN, east_and_west
from trust.spiffe import ClusterName, control_dns_name, control_identity, gateway_identity, spiffe_id

BLOCK = "10.1.1"


async def test_the_bootstrap_is_valid(tmp_path: Path) -> None:
    trust, token = tmp_path / "trust.json", tmp_path / "token.json"
    trust.write_text(trust_bundle_file(MeshIdentities(DOMAIN).root_pem))
    token.write_text(token_file("secret"))
    config = bootstrap(
        "east/shop/client",
        Locality("eu", "a"),
        address=f"{BLOCK}.11",
        control_addresses=[(f"{BLOCK}.201", ADS_PORT), (f"{BLOCK}.202", ADS_PORT)],
        control_dns_name=control_dns_name(ClusterName("east"), DOMAIN),
        control_spiffe_id=spiffe_id(control_identity(ClusterName("east")), DOMAIN),
        trust_bundle_path=str(trust),
        token_path=str(token),
    )
    await validate(config)


@pytest.mark.parametrize("west_network", ["one", "two"])
async def test_a_sidecar_of_a_client_is_valid(west_network: str) -> None:
    east, _ = east_and_west(BLOCK, west_network=west_network)
    scope = east.pod_scope("client")
    secrets = MeshIdentities(DOMAIN).secrets(scope.identity)
    await validate(static_bootstrap(east.sidecar("client"), secrets, node="east/shop/client", address=scope.address))


async def test_a_sidecar_of_a_server_is_valid() -> None:
    _, west = east_and_west(BLOCK)
    scope = west.pod_scope("server-1")
    secrets = MeshIdentities(DOMAIN).secrets(scope.identity)
    await validate(
        static_bootstrap(west.sidecar("server-1"), secrets, node="west/shop/server-1", address=scope.address)
    )


async def test_a_gateway_is_valid() -> None:
    _, west = east_and_west(BLOCK)
    secrets = MeshIdentities(DOMAIN).secrets(gateway_identity(west.settings.name))
    resources = west.gateway(f"{BLOCK}.101", control=(f"{BLOCK}.201",))
    await validate(static_bootstrap(resources, secrets, node="west/gateway-1", address=f"{BLOCK}.101"))
