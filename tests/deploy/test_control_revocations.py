"""Revocations by the cluster's own admin and by the root, at a running control plane."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest

from deploy.admin_client import ControlRefused
from federation.reports import RevocationOrigin
from tests.support.addresses import free_address
from tests.support.control import DOMAIN, Control, join, pod, service, start_control, start_proxy, until
from tests.support.etcd import start_etcd
from trust.bundle import MOST_REVOKED, make_revocation
from trust.custody import FileCustody
from trust.root import Root
from trust.spiffe import MeshDomain


def make_root(directory: Path) -> Root:
    return Root.init(directory, MeshDomain(DOMAIN), custody=FileCustody(directory), now=datetime.now(UTC))


async def metrics(control: Control) -> list[str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{control.address}:15014/metrics") as answer:
        return (await answer.text()).splitlines()


async def test_the_admin_revokes_and_restores_and_a_restart_forgets_nothing(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    async with start_control(tmp_path / "east") as control:
        async with control.client() as client:
            with pytest.raises(ControlRefused, match="no member of a mesh yet"):
                await client.revoke("west")
        await join(root, control)
        async with control.client() as client:
            assert await client.revocations() == ()
            for nonsense in ("", "WEST", "a/b/c", "shop/cart@", "@west"):
                with pytest.raises(ControlRefused) as refused:
                    await client.revoke(nonsense)
                assert refused.value.status == 409
            with pytest.raises(ControlRefused, match="east is this cluster itself"):
                await client.revoke("east")
            made = await client.revoke("west", reason="stolen key")
            assert (made.origin, made.warning) == (RevocationOrigin.CLUSTER, "no cluster west is known here")
            assert (await client.revoke("shop/cart", sever=True)).warning == ""
            held = await until(client.revocations, lambda found: len(found) == 2)
            assert [one.subject for one in held] == ["shop/cart", "west"]
            assert await client.revoke("west", reason="stolen key") == made  # twice is once
            shown = await until(client.trust, lambda report: report.own.enforced_since is not None)
            assert shown.own.revoked == ("shop/cart", "west")

            await control.stop()
            await control.start()
            await until(client.status, lambda status: status.is_ready)
            assert await client.revocations() == held
            assert 'isthmus_revocations{origin="cluster"} 2.0' in await metrics(control)

            assert [one.subject for one in await client.restore("shop/cart")] == ["west"]
            await client.restore("shop/cart")  # twice is once
            await until(client.revocations, lambda found: len(found) == 1)

            await client.deliver([root.revoke(make_revocation("south", at=datetime.now(UTC)), now=datetime.now(UTC))])
            assert [one.origin for one in await client.revocations()] == [
                RevocationOrigin.ROOT,
                RevocationOrigin.CLUSTER,
            ]
            with pytest.raises(ControlRefused, match="the root revoked south") as refused:
                await client.restore("south")
            assert "--undo south --root" in refused.value.hint
        trail = [json.loads(line) for line in (control.data / "audit-control-1.jsonl").read_text().splitlines()]
        told = [(one["kind"], one["subject"], one.get("reason", "")) for one in trail]
        assert told.count(("revoked", "west", "stolen key")) == 1
        assert told.count(("restored", "shop/cart", "")) == 1
        assert all("admin at 127." in one["asked_by"] for one in trail if one["kind"] in ("revoked", "restored"))


async def test_a_revoked_workload_loses_its_certificate_and_gets_it_back(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    async with start_control(tmp_path / "east") as control:
        await join(root, control)
        address = free_address()
        control.write("cart.yaml", pod("cart-1", "cart", address), service("cart"))
        async with (
            control.client() as client,
            start_proxy(control, root, "east/shop/cart-1", address=address, account="cart"),
        ):
            await until(client.trust, lambda report: report.own.renewed == 1)
            issued = [line for line in await metrics(control) if line.startswith("isthmus_issued_total")]
            assert 'isthmus_issued_total{role="sidecar"} 1.0' in issued
            assert 'isthmus_issued_total{role="control"} 1.0' in issued
            await client.revoke("shop/cart@east", reason="seen elsewhere")
            report = await until(client.trust, lambda report: report.own.enforced_since is not None)
            assert report.own.proxies == 0  # whoever is revoked holds up nobody
            refused = 'isthmus_issuance_refused_total{reason="revoked"} 1.0'
            await until(lambda: metrics(control), lambda lines: refused in lines)
            await client.restore("shop/cart@east")
            anew = 'isthmus_issued_total{role="sidecar"} 2.0'  # the old key may be elsewhere
            await until(lambda: metrics(control), lambda lines: anew in lines)
            await until(client.trust, lambda report: report.own.renewed == 1)


async def test_an_admin_revokes_no_more_than_proxies_can_be_asked_to_check(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    async with start_control(tmp_path / "east") as control:
        await join(root, control)
        async with control.client() as client:
            for first in range(0, MOST_REVOKED, 50):
                await asyncio.gather(*(client.revoke(f"shop/a{first + n}") for n in range(50)))
            await until(client.revocations, lambda found: len(found) == MOST_REVOKED)
            with pytest.raises(ControlRefused, match="no more may be"):
                await client.revoke("shop/one-more")
            assert (await client.revoke("shop/a1", reason="said anew")).reason == "said anew"
            await client.restore("shop/a2")
            await until(client.revocations, lambda found: len(found) == MOST_REVOKED - 1)
            await client.revoke("shop/one-more")


async def test_a_cluster_that_the_root_revoked_warns(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    async with start_control(tmp_path / "east") as control:
        await join(root, control)
        async with control.client() as client:
            bundle = root.revoke(make_revocation("east", at=datetime.now(UTC), reason="stolen"), now=datetime.now(UTC))
            report = await client.deliver([bundle])
            (warning,) = report.warnings
            assert warning.startswith("the root has revoked this cluster (stolen)")
            assert (await client.status()).warnings == (warning,)
            (own,) = await client.clusters()
            assert own.revoked == "by the root: stolen"
            assert "isthmus_trust_warnings 1.0" in await metrics(control)
            await client.deliver([root.restore("east", now=datetime.now(UTC))])
            assert (await client.status()).warnings == ()


async def test_with_etcd_away_documents_of_the_root_still_come_into_force(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    (tmp_path / "etcd").mkdir()
    async with start_etcd(tmp_path / "etcd") as etcd:
        control = Control(tmp_path / "east", "east", etcd=etcd.url, arguments=("--region", "eu"))
        try:
            await control.start()
            await join(root, control)
            await etcd.kill()
            async with control.client() as client:
                revocation = make_revocation("west", at=datetime.now(UTC))
                taken = await client.deliver([root.revoke(revocation, now=datetime.now(UTC))])
                assert [one.subject for one in await client.revocations()] == ["west"]
                assert taken.bundle.sequence == 2
                with pytest.raises(ControlRefused, match="etcd did not take the revocation") as refused:
                    await client.revoke("south")
                assert refused.value.status == 503
        finally:
            await control.stop()
