"""Many handshakes at once, as after a pause or an outage, when every proxy of a cluster comes back in one moment."""

import asyncio
import ssl
from datetime import UTC, datetime
from pathlib import Path

from tests.support.control import DOMAIN, join, start_control, until
from tests.support.trust import init_root
from trust.spiffe import MeshDomain

HANDSHAKES, AT_ONCE = 4000, 64


async def test_a_storm_of_handshakes_ends_no_control_plane(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    left = iter(range(HANDSHAKES))
    root = init_root(tmp_path / "root", MeshDomain(DOMAIN), now=datetime.now(UTC))
    async with start_control(tmp_path / "east") as control:
        await join(root, control)
        async with control.client() as client:
            await until(client.status, lambda status: status.is_ready)

            async def connect() -> None:
                for _ in left:
                    async with asyncio.timeout(60):
                        _, writer = await asyncio.open_connection(control.address, 15012, ssl=context)
                    writer.close()

            async with asyncio.TaskGroup() as tasks:
                for _ in range(AT_ONCE):
                    tasks.create_task(connect())
            assert (await client.status()).is_ready
