"""The leader's process is frozen and wakes up: etcd's history shows that it wrote nothing after the next had begun."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from federation import names
from federation.etcd import EtcdClient, Event
from federation.model import FEDERATION_PORT, GATEWAY_PORT, ServiceKey
from federation.peering import exports
from tests.support.addresses import free_address
from tests.support.control import DOMAIN, Control, export, join, pod, service, start_control, until
from tests.support.history import history, reigns
from tests.support.relay import Relay
from tests.support.trust import EAST, init_root
from trust.spiffe import MeshDomain, Namespace

CART = ServiceKey(Namespace("shop"), "cart")
KEY = names.export_key(EAST, CART)


@asynccontextmanager
async def start_second(first: Control) -> AsyncIterator[Control]:
    """Another replica of the cluster, which sees other pods: what is written tells whose word it is."""
    second = Control(
        first.folder,
        first.name,
        etcd=first.etcd,
        arguments=("--region", "eu", "--gateways", free_address()),
        replica="control-2",
        manifests="other-manifests",
    )
    says(second, "10.2.0.1")
    await second.start()
    try:
        yield second
    finally:
        await second.stop()


@asynccontextmanager
async def gateway(control: Control, address: str) -> AsyncIterator[None]:
    """Leads from the gateway's address to the control plane: bytes are all that a gateway passes on."""
    relay = Relay((control.address, FEDERATION_PORT), address, GATEWAY_PORT)
    await relay.open()
    try:
        yield
    finally:
        await relay.cut()


def says(control: Control, *addresses: str) -> None:
    pods = [pod(f"cart-{number}", "cart", address) for number, address in enumerate(addresses)]
    control.write("cart.yaml", service("cart"), export("cart"), *pods)


def endpoints(write: Event) -> list[str]:
    return [one.address for one in exports.decode_export(write.item.value).endpoints] if write.item else []


async def test_a_leader_that_was_frozen_writes_nothing_after_the_next_has_begun(tmp_path: Path) -> None:
    root = init_root(tmp_path / "root", MeshDomain(DOMAIN), now=datetime.now(UTC))
    west_gateway = free_address()
    async with (
        start_control(tmp_path / "west", "west", "--gateways", west_gateway) as west,
        gateway(west, west_gateway),
        start_control(tmp_path / "east", "east", "--gateways", free_address()) as one,
        EtcdClient((one.etcd,)) as etcd,
    ):

        async def published() -> list[str]:
            found = await etcd.get(KEY)
            return [each.address for each in exports.decode_export(found.value).endpoints] if found else []

        says(one, "10.1.0.1")
        await join(root, west)
        await join(root, one, via=west)
        await until(published, lambda addresses: addresses == ["10.1.0.1"])
        async with start_second(one) as two, one.client() as ask_one, two.client() as ask_two:
            await until(ask_two.status, lambda status: status.is_ready and status.leader == "control-1")
            frozen_at = time.monotonic()
            one.pause()
            try:
                await until(ask_two.status, lambda status: status.is_leader)
                took = time.monotonic() - frozen_at
                await until(published, lambda addresses: addresses == ["10.2.0.1"])
                says(one, "10.1.0.1", "10.1.0.2")  # the first that it sees when it wakes up
            finally:
                one.resume()
            await until(ask_one.status, lambda status: status.pods == 2 and status.leader == "control-2")
            says(two, "10.2.0.1", "10.2.0.2")
            await until(published, lambda addresses: addresses == ["10.2.0.1", "10.2.0.2"])
            assert "leadership over" in one.log
            found = reigns(await history(one.etcd))
    told = "\n".join(map(str, found))
    print(f"the next led {took:.1f} s after the leader was frozen\n{told}")
    by_holder = {reign.holder: [endpoints(write) for write in reign.writes if write.key == KEY] for reign in found}
    assert [reign.holder for reign in found] == ["", "control-1", "", "control-2"], told
    assert by_holder == {
        "": [],
        "control-1": [["10.1.0.1"]],
        "control-2": [["10.2.0.1"], ["10.2.0.1", "10.2.0.2"]],
    }, told
