"""A cluster becomes a member: in one step, in steps of two operators, and every refusal changes nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.admin_client import ControlRefused
from tests.support.control import (
    DOMAIN,
    Control,
    export,
    is_listening,
    isthmus,
    pod,
    service,
    start_control,
    until,
    write_contexts,
)


@pytest.fixture
async def east(tmp_path: Path) -> AsyncIterator[Control]:
    async with start_control(tmp_path / "east") as control:
        yield control


@pytest.fixture
async def root(tmp_path: Path) -> str:
    made = await isthmus("trust", "init", "--domain", DOMAIN, "--out", str(tmp_path / "root"))
    assert made.code == 0, made.stderr
    return str(tmp_path / "root")


async def test_before_it_has_joined_only_the_admin_api_is_open(east: Control) -> None:
    async with east.client() as client:
        status = await client.status()
        assert not status.is_joined
        assert not status.is_ready
        assert "join" in status.waiting_for
        with pytest.raises(ControlRefused, match="no member of a mesh yet"):
            await client.member()
    assert not is_listening(east.address, 15012)
    assert not is_listening(east.address, 15013)


async def test_the_admin_api_wants_its_token(east: Control) -> None:
    async with east.client(token="wrong") as client:
        with pytest.raises(ControlRefused, match="admin token is missing or wrong") as refused:
            await client.status()
        assert refused.value.status == 401
    assert (east.data / "admin-token").stat().st_mode & 0o777 == 0o600


async def test_one_step_makes_the_cluster_a_member_and_its_ports_open(east: Control, root: str, tmp_path: Path) -> None:
    east.write("shop.yaml", service("cart"), export("cart"), pod("cart-1", "cart", "127.108.0.1"))
    contexts = write_contexts(tmp_path / "contexts.json", east)
    joined = await isthmus("join", "east", "--root", root, contexts=contexts)
    assert joined.code == 0, joined.stderr
    assert joined.stdout == f"east is a member of {DOMAIN}.\n"
    async with east.client() as client:
        status = await until(client.status, lambda status: status.is_ready)
        assert (status.services, status.exports, status.ready_pods) == (1, 1, 1)
        assert status.certificate_expires is not None
    assert is_listening(east.address, 15012)
    assert is_listening(east.address, 15013)
    shown = await isthmus("status", "-o", "json", contexts=contexts)
    assert shown.code == 0, shown.stdout
    assert json.loads(shown.stdout)[0]["isReady"]
    for command in ("status", "clusters", "services", "proxies"):
        assert (await isthmus(command, contexts=contexts)).code == 0

    again = await isthmus("join", "east", "--root", root, contexts=contexts)
    assert again.code == 1
    assert "error: " in again.stderr
    assert "hint: " in again.stderr


async def test_two_operators_join_a_cluster_in_steps_and_a_request_serves_once(
    east: Control, root: str, tmp_path: Path
) -> None:
    contexts = write_contexts(tmp_path / "contexts.json", east)
    request, grant = tmp_path / "request.json", tmp_path / "grant.json"
    asked = await isthmus("join-request", "--out", str(request), contexts=contexts)
    assert asked.code == 0, asked.stderr
    same = await isthmus("join-request", contexts=contexts)
    assert same.stdout.strip() == request.read_text().strip()
    # the operator of the root reaches no control plane at all
    signed = await isthmus("grant", str(request), "--root", root, "--out", str(grant))
    assert signed.code == 0, signed.stderr
    accepted = await isthmus("accept", str(grant), contexts=contexts)
    assert accepted.code == 0, accepted.stderr
    async with east.client() as client:
        await until(client.status, lambda status: status.is_ready)


async def test_after_a_grant_that_expired_a_new_request_is_the_way_on(east: Control, root: str, tmp_path: Path) -> None:
    contexts = write_contexts(tmp_path / "contexts.json", east)
    asked = await isthmus("join-request", contexts=contexts)
    signed = await isthmus("grant", "-", "--root", root, "--valid-for", "1s", stdin=asked.stdout)
    assert signed.code == 0, signed.stderr
    expires = datetime.fromisoformat(json.loads(signed.stdout)["expires"])
    await asyncio.sleep(max(0.0, (expires - datetime.now(UTC)).total_seconds()))
    late = await isthmus("accept", "-", contexts=contexts, stdin=signed.stdout)
    assert late.code == 1
    assert "error: the grant expired at " in late.stderr
    assert "isthmus join-request --new" in late.stderr
    twice = await isthmus("grant", "-", "--root", root, stdin=asked.stdout)
    assert twice.code == 1
    assert "was granted already" in twice.stderr
    assert "isthmus join-request --new" in twice.stderr

    renewed = await isthmus("join-request", "--new", contexts=contexts)
    assert renewed.code == 0, renewed.stderr
    signed = await isthmus("grant", "-", "--root", root, stdin=renewed.stdout)
    accepted = await isthmus("accept", "-", contexts=contexts, stdin=signed.stdout)
    assert accepted.code == 0, accepted.stderr


async def test_a_grant_of_another_mesh_is_refused_and_nothing_changes(east: Control, tmp_path: Path) -> None:
    contexts = write_contexts(tmp_path / "contexts.json", east)
    other = str(tmp_path / "other")
    assert (await isthmus("trust", "init", "--domain", "other.test", "--out", other)).code == 0
    before = {file: file.read_bytes() for file in east.data.rglob("*") if file.is_file()}
    refused = await isthmus("join", "east", "--root", other, contexts=contexts)
    assert refused.code == 1
    assert "error: " in refused.stderr
    async with east.client() as client:
        assert not (await client.status()).is_joined
    after = {file: file.read_bytes() for file in east.data.rglob("*") if file.is_file()}
    assert before.items() <= after.items()


async def test_joining_under_another_name_is_refused(east: Control, root: str, tmp_path: Path) -> None:
    contexts = tmp_path / "contexts.json"
    contexts.write_text(json.dumps({"west": east.context}))
    refused = await isthmus("join", "west", "--root", root, contexts=contexts)
    assert refused.code == 1
    assert "is of cluster east, not of west" in refused.stderr
    assert "isthmus join east" in refused.stderr


async def test_a_member_stays_one_after_kill_and_ends_well_on_sigterm(east: Control, root: str, tmp_path: Path) -> None:
    contexts = write_contexts(tmp_path / "contexts.json", east)
    assert (await isthmus("join", "east", "--root", root, contexts=contexts)).code == 0
    await east.kill()
    await east.start()
    async with east.client() as client:
        status = await until(client.status, lambda status: status.is_ready)
    assert status.is_joined
    assert await east.stop() == 0, east.log
    assert "Traceback" not in east.log


async def test_metrics_and_probes_are_open_to_all(east: Control) -> None:
    import aiohttp

    async with aiohttp.ClientSession(east.context["admin"]) as session:
        async with session.get("/healthz") as response:
            assert response.status == 200
        async with session.get("/readyz") as response:
            assert response.status == 503
        async with session.get("/metrics") as response:
            text = await response.text()
    assert "isthmus_revision" in text
    assert 'isthmus_objects{kind="service"} 0.0' in text


async def test_a_control_plane_that_is_silent_hides_no_other(east: Control, tmp_path: Path) -> None:
    contexts, nobody = tmp_path / "contexts.json", f"http://{east.address}:15021"
    contexts.write_text(json.dumps({"gone": {"admin": nobody}, "east": east.context}))
    shown = await isthmus("status", contexts=contexts)
    assert shown.code == 1
    assert f"no answer from the control plane at {nobody}: Connection refused" in shown.stdout
    gone, other = shown.stdout.splitlines()[1:3]
    assert gone.split()[:3] == ["gone", "-", "silent"]
    assert other.split()[:2] == ["east", "control-1"]
    shown = await isthmus("proxies", contexts=contexts)
    assert shown.code == 1
    assert f"error: no answer from the control plane at {nobody}: Connection refused\nhint: " in shown.stderr
