"""A connection to a peer that ends at any moment leaves nothing open."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import psutil

from federation.model import FEDERATION_PORT, GatewayAddress
from federation.peering.dialing import open_channel
from tests.support.federation import exported_service, start_cluster
from tests.support.trust import DOMAIN, EAST, WEST, make_issuers
from tests.support.waiting import eventually
from trust.spiffe import control_identity

_TURNS = 40
"""Turns of the loop; the channel is ready after some 20."""


def relayed() -> list[str]:
    """Returns the sockets by which gRPC speaks to a relay of this process."""
    found = psutil.Process().net_connections(kind="unix")
    return [one.laddr for one in found if isinstance(one.laddr, str) and one.laddr.endswith("/peer")]


async def test_a_call_given_up_at_any_moment_leaves_no_socket_open(tmp_path: Path) -> None:
    issuers = make_issuers(EAST, WEST, now=datetime.now(UTC))
    svid = issuers[WEST].issue(control_identity(WEST), now=datetime.now(UTC))
    ready = 0

    async def call(address: str, proved: asyncio.Event) -> None:
        nonlocal ready
        async with open_channel(
            GatewayAddress(address, FEDERATION_PORT),
            peer=EAST,
            domain=DOMAIN,
            svid=svid,
            trust_bundle=issuers[EAST].trust_bundle_pem,
        ) as channel:
            proved.set()
            await channel.channel_ready()
            ready += 1
            await asyncio.Event().wait()

    async with start_cluster(tmp_path, issuers[EAST]) as east, east.control(*exported_service()):
        for turns in range(_TURNS):
            proved = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                calling = group.create_task(call(east.address, proved))
                await proved.wait()
                for _ in range(turns):
                    await asyncio.sleep(0)
                if turns == _TURNS - 1:
                    await eventually(lambda: ready > 0)
                    assert relayed()
                calling.cancel()
            await eventually(lambda: not relayed())
