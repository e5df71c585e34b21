"""`isthmus leave` and `isthmus join` against real control planes: who left is gone at once, and back when it joins."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from federation.model import FEDERATION_PORT, GATEWAY_PORT, Liveness
from federation.reports import ClusterReport
from tests.support.addresses import free_address
from tests.support.control import (
    DOMAIN,
    Control,
    export,
    isthmus,
    join,
    pod,
    service,
    start_control,
    until,
    write_contexts,
)
from tests.support.relay import Relay
from tests.support.trust import init_root
from trust.spiffe import MeshDomain


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[tuple[Control, Control, Path]]:
    """East and west, each with a cart; their peers reach them without a gateway. And where the root is."""
    folder = tmp_path / "root"
    root = init_root(folder, MeshDomain(DOMAIN), now=datetime.now(UTC))
    async with AsyncExitStack() as stack:
        controls = []
        for name in ("east", "west"):
            gateway = free_address()
            started = start_control(tmp_path / name, name, "--region", "eu", "--gateways", gateway)
            controls.append(control := await stack.enter_async_context(started))
            relay = Relay((control.address, FEDERATION_PORT), gateway, GATEWAY_PORT)
            stack.push_async_callback(relay.cut)
            await relay.open()
        east, west = controls
        for control in controls:
            control.write("cart.yaml", service("cart"), export("cart"), pod("cart-1", "cart", free_address()))
        await join(root, east)
        await join(root, west, via=east)
        yield east, west, folder


def live(found: tuple[ClusterReport, ...]) -> bool:
    return len(found) == 2 and all(one.state is Liveness.LIVE and one.left is None for one in found)


async def test_a_cluster_leaves_by_one_command_and_is_back_by_joining(
    mesh: tuple[Control, Control, Path], tmp_path: Path
) -> None:
    east, west, root = mesh
    contexts = write_contexts(tmp_path / "contexts.json", east, west)
    async with east.client() as at_east, west.client() as at_west:
        for admin in (at_east, at_west):
            await until(admin.clusters, live)
            await until(admin.services, lambda found: {place.cluster for place in found[0].places} == {"east", "west"})

        left = await isthmus("leave", "west", "--yes", "-o", "json", contexts=contexts)
        assert left.code == 0, left.stderr + left.stdout
        assert json.loads(left.stdout)["cluster"] == "west"
        for admin, own in ((at_east, "east"), (at_west, "west")):
            await until(admin.services, lambda found, own=own: {place.cluster for place in found[0].places} == {own})

        back = await isthmus("join", "west", "--root", str(root), contexts=contexts)
        assert back.code == 0, back.stderr
        assert "west is back" in back.stdout
        for admin in (at_east, at_west):
            await until(admin.clusters, live)
            await until(admin.services, lambda found: {place.cluster for place in found[0].places} == {"east", "west"})

        # West is lost: the others are told, and what it offered goes at once.
        await west.kill()
        lost = await isthmus("leave", "west", "--yes", "--force", contexts=contexts)
        assert "east" in lost.stdout, lost.stderr
        await until(at_east.services, lambda found: {place.cluster for place in found[0].places} == {"east"})
        await west.start()  # it was not lost after all
        await until(at_east.services, lambda found: {place.cluster for place in found[0].places} == {"east", "west"})
