"""Three replicas of one control plane: one grant serves all, one leads, proxies spread, and move when theirs goes.

A replica that returns gets no proxy at once, for a stream that works is not cut to even out a load that one replica can
bear. It gets its share as streams reach their age (`MAX_AGE` in federation/xds/ads.py: thirty minutes, three more or
less), and Envoy opens the next one at the next replica in turn.
"""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

from deploy.admin_client import AdminClient
from tests.support.addresses import free_address
from tests.support.control import (
    DOMAIN,
    Control,
    is_listening,
    isthmus,
    join,
    pod,
    service,
    start_control,
    start_proxy,
    until,
)
from tests.support.envoy import Envoy
from tests.support.etcd import start_etcd
from tests.support.trust import init_root
from trust.spiffe import MeshDomain

PROXIES = 8
"""Envoy begins at a replica by chance: all of so many begin at one, where one already is, in 1 of 2,187 runs."""


async def leader(client: AdminClient) -> str:
    return (await client.status()).leader


async def replicas_of(admins: Sequence[AdminClient]) -> dict[str, str]:
    """Returns which replica has each proxy, of those that have taken all that they were told."""
    found = [proxy for admin in admins for proxy in await admin.proxies()]
    return {proxy.node: proxy.replica for proxy in found if proxy.is_in_step}


async def test_proxies_spread_over_replicas_and_move_when_theirs_goes(tmp_path: Path) -> None:
    root = init_root(tmp_path / "root", MeshDomain(DOMAIN), now=datetime.now(UTC))
    folder, addresses = tmp_path / "east", [free_address() for _ in range(3)]
    arguments = ("--region", "eu", "--control-addresses", ",".join(addresses))
    async with AsyncExitStack() as stack:
        (folder / "etcd").mkdir(parents=True)
        etcd = await stack.enter_async_context(start_etcd(folder / "etcd"))
        one, *others = (
            Control(folder, "east", etcd=etcd.url, arguments=arguments, address=address, replica=f"control-{number}")
            for number, address in enumerate(addresses, start=1)
        )
        pods = {f"cart-{number}": free_address() for number in range(PROXIES)}
        one.write("cart.yaml", service("cart"), *(pod(name, "cart", address) for name, address in pods.items()))
        for control in (one, *others):
            stack.push_async_callback(control.stop)
        await one.start()
        await join(root, one)

        async def start(name: str) -> None:
            proxy = start_proxy(one, root, f"east/shop/{name}", address=pods[name], account="cart", others=others)
            envoys[name] = await stack.enter_async_context(proxy)

        envoys: dict[str, Envoy] = {}
        at_one, *at_others = [await stack.enter_async_context(control.client()) for control in (one, *others)]
        # One proxy is where the leader is, the others come to all three.
        await start("cart-0")
        await until(lambda: replicas_of([at_one]), bool)
        assert await leader(at_one) == "control-1"
        for control, admin in zip(others, at_others, strict=True):
            await control.start()
            await until(admin.status, lambda status: status.is_ready)
        for name in list(pods)[1:]:
            await start(name)
        where = await until(lambda: replicas_of([at_one, *at_others]), lambda found: len(found) == PROXIES)
        assert 1 <= Counter(where.values())["control-1"] < PROXIES, where

        # The leader goes: its proxies are with the others, nobody else moved, and all hear of a change.
        await one.kill()
        moved = await until(lambda: replicas_of(at_others), lambda found: len(found) == PROXIES)
        assert set(moved.values()) <= {"control-2", "control-3"}
        assert {node: of for node, of in where.items() if of != "control-1"}.items() <= moved.items()
        one.write("pay.yaml", service("pay"))
        for envoy in envoys.values():
            await envoy.wait_for("/clusters", lambda text: "pay.shop" in text)
        second = await until(lambda: leader(at_others[0]), lambda name: name not in ("", "control-1"))

        # Whoever is asked says who leads, as the first of the command line's addresses is dead.
        contexts = tmp_path / "contexts.json"
        remaining = [control.context["admin"] for control in others]
        contexts.write_text(json.dumps({"east": {**one.context, "others": remaining}}))
        shown = await isthmus("status", "--cluster", "east", "-o", "json", contexts=contexts)
        assert shown.code == 0, shown.stdout
        assert json.loads(shown.stdout)["leader"] == second

        # It is back, and serves whoever comes; who has a stream keeps it.
        await one.start()
        await until(at_one.status, lambda status: status.is_ready and status.leader == second)
        assert await replicas_of(at_others) == moved


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
