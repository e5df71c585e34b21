"""A running control plane keeps its trust up to date: real process, real etcd, real Envoy, asked by its admin API."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import msgspec
import pytest

from deploy.admin_client import ControlRefused
from federation.etcd import EtcdClient
from federation.names import grant_key
from federation.reports import TrustReport
from federation.xds.bootstrap import TRUST_BUNDLE_FILE
from tests.support.addresses import free_address
from tests.support.control import DOMAIN, Control, export, join, pod, service, start_control, start_proxy, until
from tests.support.envoy import Envoy
from trust.bundle import bundle_digest
from trust.certificates import load_certificate, new_key
from trust.custody import FileCustody
from trust.joining import Grant, Introduction, make_join_request
from trust.root import Root
from trust.spiffe import ClusterName, MeshDomain

EAST = ClusterName("east")
CART = "east/shop/cart-1"


def make_root(directory: Path) -> Root:
    return Root.init(directory, MeshDomain(DOMAIN), custody=FileCustody(directory), now=datetime.now(UTC))


@asynccontextmanager
async def start_replica(first: Control) -> AsyncIterator[Control]:
    second = Control(first.folder, first.name, etcd=first.etcd, arguments=("--region", "eu"), replica="control-2")
    try:
        await second.start()
        yield second
    finally:
        await second.stop()


async def chain_of(envoy: Envoy) -> bytes:
    """Returns the certificate chain (PEM) that a proxy has; empty before it has one."""
    url = f"{envoy.admin}/config_dump?resource=dynamic_active_secrets"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        secrets = (await answer.json()).get("configs", [])
    for one in secrets:
        chain = one["secret"].get("tls_certificate", {}).get("certificate_chain", {})
        if chain:
            inline = chain.get("inline_bytes")
            return base64.b64decode(inline) if inline else chain["inline_string"].encode()
    return b""


def signs_generation(report: TrustReport) -> int:
    return report.own.active.generation if report.own.active else 0


def is_renewed(report: TrustReport) -> bool:
    return signs_generation(report) == 2 and report.own.renewed == report.own.proxies == 1


def grant_for(root: Root, name: str) -> Grant:
    """Returns the grant that a newcomer of that name would get."""
    about = Introduction(name=ClusterName(name), network=name, region="eu")
    request = make_join_request(new_key(), about, domain=MeshDomain(DOMAIN), now=datetime.now(UTC))
    return root.grant(request, now=datetime.now(UTC))


async def everything_in_etcd(control: Control) -> str:
    async with EtcdClient((control.etcd,)) as etcd:
        listing = await etcd.list("/")
    return "\n".join(f"{item.key} {item.value.decode(errors='replace')}" for item in listing.items)


def check_no_secret(text: str, keys: Mapping[str, str]) -> None:
    """Checks that no line of a private key stands in a text."""
    assert "PRIVATE KEY" not in text
    for name, pem in keys.items():
        for line in pem.splitlines()[1:-1]:
            assert line not in text, name


async def test_an_intermediate_is_renewed_through_the_admin_api_across_a_crash(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    async with start_control(tmp_path / "east") as control:
        await join(root, control)
        address = free_address()
        control.write("cart.yaml", pod("cart-1", "cart", address), service("cart"), export("cart"))
        async with (
            control.client() as client,
            start_proxy(control, root, CART, address=address, account="cart") as envoy,
        ):
            before = await until(client.trust, lambda report: report.own.renewed == 1)
            assert before.own.trusting == before.own.enforcing == before.own.proxies == 1
            assert before.warnings == ()
            first = await until(lambda: chain_of(envoy), bool)

            wanted = root.require_renewal(EAST, now=datetime.now(UTC))
            await client.deliver([wanted])
            asking = await until(client.trust, lambda report: report.own.request is not None)
            assert asking.own.request is not None
            assert (asking.own.request.generation, signs_generation(asking)) == (2, 1)

            await control.kill()
            keys = {file.name: file.read_text() for file in control.data.glob("ca-*-key.pem")}
            assert len(keys) == 2
            await control.start()
            again = await until(client.trust, lambda report: report.own.request is not None)
            assert again.own.request == asking.own.request

            grant = root.renew(asking.own.request, now=datetime.now(UTC))
            forged = msgspec.structs.replace(grant, generation=3)
            with pytest.raises(ControlRefused, match="signature") as refused:
                await client.deliver(grants=[forged])
            assert refused.value.status == 409
            switched = await client.deliver(grants=[grant])
            assert signs_generation(switched) == 2
            await until(client.trust, is_renewed)
            renewed = await chain_of(envoy)
            assert renewed != first
            assert renewed.endswith(grant.certificate.encode())
            assert signs_generation(await client.deliver(grants=[grant])) == 2  # the grant was thought lost

            retired = await until(client.trust, lambda report: len(report.own.authorities) == 1)
            assert signs_generation(retired) == 2
            assert [file.name for file in control.data.glob("ca-*-key.pem")] == ["ca-2-key.pem"]
            answers = [await client.trust(), await client.status(), await client.member(), await client.proxies()]
            check_no_secret(msgspec.json.encode(answers).decode(), keys)
            check_no_secret(control.log, keys)
            check_no_secret(await everything_in_etcd(control), keys)
            trail = (control.data / "audit-control-1.jsonl").read_text()
            check_no_secret(trail, keys)
            kinds = [json.loads(line)["kind"] for line in trail.splitlines()]
            assert {"issued", "bundle-taken", "granted", "rotated"} <= set(kinds)


async def test_documents_are_taken_whole_or_not_at_all_and_served_to_proxies(tmp_path: Path) -> None:
    root, stranger = make_root(tmp_path / "root"), make_root(tmp_path / "stranger")
    async with start_control(tmp_path / "east") as control, start_replica(control) as other:
        await join(root, control)
        address = free_address()
        control.write("cart.yaml", pod("cart-1", "cart", address), service("cart"), export("cart"))
        async with (
            control.client() as client,
            other.client() as second,
            start_proxy(control, root, CART, address=address, account="cart"),
        ):
            await until(second.status, lambda status: status.is_ready)
            await until(client.trust, lambda report: report.own.trusting == 1)
            theirs = stranger.announce(now=datetime.now(UTC))
            with pytest.raises(ControlRefused, match="is not signed by a root that is trusted here") as refused:
                await client.deliver([theirs])
            assert refused.value.status == 409
            assert (await client.trust()).bundle == root.documents()[-1]

            both = root.announce(now=datetime.now(UTC))
            assert len(both.roots) == 2
            taken = await client.deliver([both])
            assert taken.bundle == both
            trusted = (control.data / TRUST_BUNDLE_FILE).read_text()
            assert all(root_pem in json.dumps(json.loads(trusted)).replace("\\n", "\n") for root_pem in both.roots)
            for one in (client, second):  # replicas share the directory
                report = await until(one.trust, lambda report: report.own.bundle == bundle_digest(both))
                assert report.bundle == both
                await until(one.trust, lambda report: report.own.trusting == report.own.proxies == 1)

            signing = root.sign_with_next(now=datetime.now(UTC))
            await second.deliver([signing])
            asking = await until(client.trust, lambda report: report.own.request is not None)
            assert asking.own.request is not None
            await second.deliver(grants=[root.renew(asking.own.request, now=datetime.now(UTC))])
            for one in (client, second):
                await until(one.trust, is_renewed)


async def test_a_cluster_whose_authority_has_expired_starts_and_says_what_to_do(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    async with start_control(tmp_path / "east") as control, control.client() as client:
        short = root.grant(await client.join_request(), now=datetime.now(UTC), lifetime=timedelta(seconds=2))
        await client.join(short)
        await control.kill()
        expires = load_certificate(short.certificate.encode()).not_valid_after_utc
        await asyncio.sleep(max(0.0, (expires - datetime.now(UTC)).total_seconds()) + 0.1)
        await control.start()
        report = await until(client.trust, lambda report: bool(report.warnings))
        assert any("authority of east (generation 1) expired at" in one for one in report.warnings)
        assert any("isthmus trust rotate intermediate east" in one for one in report.warnings)
        status = await client.status()
        assert (status.is_ready, status.certificate_expires) == (False, None)

        await client.deliver([root.require_renewal(EAST, now=datetime.now(UTC))])
        asking = await until(client.trust, lambda report: report.own.request is not None)
        assert asking.own.request is not None
        await client.deliver(grants=[root.renew(asking.own.request, now=datetime.now(UTC))])
        await until(client.status, lambda status: status.is_ready)
        assert not any("expired" in one for one in (await client.trust()).warnings)


async def test_a_grant_for_another_member_is_passed_on(tmp_path: Path) -> None:
    root, stranger = make_root(tmp_path / "root"), make_root(tmp_path / "stranger")
    async with start_control(tmp_path / "east") as control:
        await join(root, control)
        async with control.client() as client, EtcdClient((control.etcd,)) as etcd:
            grant = grant_for(root, "west")
            await client.deliver(grants=[grant])
            assert await etcd.get(grant_key(ClusterName("west"))) is not None
            with pytest.raises(ControlRefused):
                await client.deliver(grants=[grant_for(stranger, "south")])
            assert await etcd.get(grant_key(ClusterName("south"))) is None
