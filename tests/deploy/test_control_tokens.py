"""Real proxies and their tokens: streams end at an age and with their token, and nothing is torn down for that."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deploy.control.admissions import Admissions
from deploy.control.tokens import Tokens
from federation.admin import TokenOrder
from federation.etcd import EtcdClient
from federation.model import ClusterSettings, Locality, NetworkName
from federation.names import parse_node
from federation.xds.ads import Admitted, ProxyNode
from federation.xds.bootstrap import bootstrap, token_file
from federation.xds.resources import ResourceSet, TypeUrl
from tests.support.ads import Load, World, app, by_name, endpoints, listener, routes, upstream
from tests.support.envoy import Envoy
from tests.support.etcd import start_etcd
from tests.support.waiting import eventually
from trust.attestation import Door
from trust.audit import AuditEvent
from trust.spiffe import ClusterName, MeshDomain, SpiffeId

NODE = "east/shop/cart-1"
SETTINGS = ClusterSettings(ClusterName("east"), MeshDomain("mesh.test"), NetworkName("east"), "eu")
CHANGES = [
    *(f"cluster_manager.cluster_{what}" for what in ("added", "modified", "removed")),
    *(f"listener_manager.listener_{what}" for what in ("added", "modified", "removed", "in_place_updated")),
]
EMPTY_ANSWERS = {TypeUrl.CLUSTER, TypeUrl.LISTENER}  # to "all that is new": the protocol asks for an answer


class GuardedWorld(World):
    """A world whose door is the real one; the token of its Envoy stands in a file."""

    def __init__(self, folder: Path, client: EtcdClient) -> None:
        super().__init__(folder)
        self.events: list[AuditEvent] = []
        self.admitted: list[str] = []
        self.tokens = Tokens(client, self.events.append)
        self._admissions = Admissions(SETTINGS, Door([self.tokens]), self.events.append)

    async def admit(self, node: ProxyNode, token: str) -> Admitted:
        admitted = await self._admissions.admit(node, token)
        self.admitted.append(admitted.proof)
        return admitted

    async def ended(self, node: ProxyNode, admitted: Admitted) -> None:
        await self._admissions.ended(node, admitted)

    async def write_token(self, *, once: bool = False) -> str:
        """Puts a new token into the file of the Envoy; returns its id."""
        made = await self.tokens.create(TokenOrder("shop", "cart", once=once), asked_by="admin")
        draft = self.folder / "token.draft"
        draft.write_text(token_file(made.token))
        draft.rename(self.folder / "token.json")
        return made.id

    @property
    def refusals(self) -> list[str]:
        return [event.reason for event in self.events if event.kind == "refused"]

    def _bootstrap(self, node: str, token: str) -> dict[str, Any]:
        config = super()._bootstrap(node, token)
        del config["dynamic_resources"]["ads_config"]["grpc_services"][0]["initial_metadata"]
        assert parse_node(node)
        real: Any = bootstrap(
            node,
            Locality(),
            address=self.address,
            control_addresses=[(self.address, 15012)],
            control_dns_name="control.east.mesh.test",
            control_spiffe_id=SpiffeId("spiffe://east.mesh.test/ns/isthmus-system/sa/control"),
            trust_bundle_path=str(self.folder / "bundle.json"),
            token_path=str(self.folder / "token.json"),
        )
        options = "typed_extension_protocol_options"
        (upstream_of_ads,) = config["static_resources"]["clusters"]
        upstream_of_ads[options] = real["static_resources"]["clusters"][0][options]
        return config


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[GuardedWorld]:
    (tmp_path / "etcd").mkdir()
    async with (
        start_etcd(tmp_path / "etcd") as etcd,
        EtcdClient((etcd.url,)) as client,
        asyncio.TaskGroup() as group,
    ):
        made = GuardedWorld(tmp_path, client)
        following = group.create_task(made.tokens.run())
        yield made
        following.cancel()


def services(world: World, place: tuple[str, int]) -> ResourceSet:
    return {
        TypeUrl.CLUSTER: by_name(upstream("a")),
        TypeUrl.ENDPOINTS: by_name(endpoints("a", place)),
        TypeUrl.ROUTES: by_name(routes("a")),
        TypeUrl.LISTENER: by_name(listener(world.address)),
    }


async def changes(envoy: Envoy) -> dict[str, int]:
    return {name: await envoy.stat(name) for name in CHANGES}


async def test_a_stream_ends_at_its_age_and_its_proxy_is_sent_nothing_again(world: GuardedWorld) -> None:
    world.max_age = world.max_age.resolution * 2_000_000  # microseconds: 2 s
    token = await world.write_token(once=True)
    async with app(world.address, 8080, "app") as place:
        world.show(services(world, place))
        async with world.serve(), world.envoy(NODE) as envoy:
            await envoy.wait_live()
            await world.settled()
            before, pushed = await changes(envoy), world.pushed.copy()
            load = Load(f"http://{world.address}:15001/", "a.test")
            async with load.running():
                await eventually(lambda: len(world.admitted) >= 3, "it came back twice")
                await world.settled()
            assert set(load.seen) == {(200, "app")}
            assert await changes(envoy) == before
            assert set(world.pushed - pushed) <= EMPTY_ANSWERS
    assert set(world.admitted) == {f"join-token {token}"}
    assert not world.refusals


async def test_a_revoked_token_ends_the_stream_and_a_good_one_in_its_file_brings_it_back(world: GuardedWorld) -> None:
    bad = await world.write_token()
    async with app(world.address, 8080, "app") as place:
        world.show(services(world, place))
        async with world.serve(), world.envoy(NODE) as envoy:
            await envoy.wait_live()
            await world.settled()
            before, pushed = await changes(envoy), world.pushed.copy()
            load = Load(f"http://{world.address}:15001/", "a.test")
            async with load.running():
                await world.tokens.revoke(bad, asked_by="admin")
                await eventually(lambda: "the join token is unknown in this cluster" in world.refusals, "it is refused")
                assert not world.ads.proxies()
                await eventually(
                    lambda: "the join token is unknown in this cluster" in envoy.log.read_text(), "it is told why"
                )
                good = await world.write_token()
                await world.settled()
            assert world.refusals[0] == "the join token was revoked"
            assert world.admitted[-1] == f"join-token {good}"
            assert set(load.seen) == {(200, "app")}  # what a proxy has it keeps
            assert await changes(envoy) == before
            assert set(world.pushed - pushed) <= EMPTY_ANSWERS


async def test_a_stolen_token_opens_nothing_to_another_proxy(world: GuardedWorld) -> None:
    await world.write_token(once=True)
    async with app(world.address, 8080, "app") as place:
        world.show(services(world, place))
        async with world.serve():
            async with world.envoy(NODE) as envoy:
                await envoy.wait_live()
                await world.settled()
            async with world.envoy("east/shop/cart-2") as thief:
                await eventually(lambda: bool(world.refusals), "it is refused")
                assert not world.ads.proxies()
                assert NODE not in thief.log.read_text().partition("the join token is good for one proxy")[2]
            assert f"claimed by {NODE}" in world.refusals[0]
