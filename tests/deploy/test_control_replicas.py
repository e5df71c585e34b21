"""Two replicas of one control plane: one grant serves both, one leads, and the other takes over."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from deploy.admin_client import AdminClient
from tests.support.control import DOMAIN, Control, is_listening, isthmus, join, start_control, until
from tests.support.trust import init_root
from trust.spiffe import MeshDomain


@asynccontextmanager
async def start_replica(first: Control) -> AsyncIterator[Control]:
    arguments = ("--region", "eu")
    second = Control(first.folder, first.name, etcd=first.etcd, arguments=arguments, replica="control-2")
    try:
        await second.start()
        yield second
    finally:
        await second.stop()


async def leader(client: AdminClient) -> str:
    return (await client.status()).leader


async def test_one_grant_serves_both_and_the_second_takes_over(tmp_path: Path) -> None:
    root = init_root(tmp_path / "root", MeshDomain(DOMAIN), now=datetime.now(UTC))
    async with start_control(tmp_path / "east") as one, start_replica(one) as two:
        await join(root, one)
        async with two.client() as client:
            await until(client.status, lambda status: status.is_ready)
            first = await until(lambda: leader(client), bool)
        leading, following = (one, two) if first == "control-1" else (two, one)
        await leading.kill()
        async with following.client() as client:
            second = await until(lambda: leader(client), lambda name: name not in ("", first))
        assert {first, second} == {"control-1", "control-2"}
        contexts = tmp_path / "contexts.json"
        contexts.write_text(json.dumps({"east": {**leading.context, "others": [following.context["admin"]]}}))
        shown = await isthmus("status", "--cluster", "east", "-o", "json", contexts=contexts)
        assert shown.code == 0, shown.stdout
        assert json.loads(shown.stdout)["replica"] == second


async def test_what_cannot_start_says_why_and_what_to_do(tmp_path: Path) -> None:
    async with start_control(tmp_path / "east") as running:
        options = ("--cluster", "east", "--domain", DOMAIN, "--region", "eu", "--etcd", running.etcd)
        taken = await isthmus("control", *options, "--data", str(tmp_path / "other"), "--address", running.address)
        assert taken.code == 1
        assert f"cannot listen on {running.address}:15014" in taken.stderr
        assert "hint: " in taken.stderr
        assert "Traceback" not in taken.stderr
        assert is_listening(running.address, 15014)

        data = tmp_path / "open"
        data.mkdir(mode=0o755)
        refused = await isthmus("control", *options, "--data", str(data), "--address", running.address)
        assert refused.code == 1
        assert "is open to others" in refused.stderr
        assert list(data.iterdir()) == []
