"""Clusters that are cut off, authorities that are renewed, and handshakes that fail: real etcd, real TLS streams."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from federation import names
from federation.peering.diagnosis import explain
from federation.peering.membership import why_revoked
from federation.peering.records import encode_revocation
from tests.support.federation import (
    ClusterUnderTest,
    ControlUnderTest,
    exported_service,
    pod,
    start_cluster,
)
from tests.support.lying_peer import start_liar
from tests.support.trust import EAST, WEST
from tests.support.trust_keepers import RootUnderTest, make_mesh
from tests.support.waiting import eventually
from trust.bundle import make_revocation
from trust.issuance import Issuer
from trust.spiffe import ClusterName, control_identity

SOUTH = ClusterName("south")


@pytest.fixture
def mesh() -> tuple[RootUnderTest, Mapping[ClusterName, Issuer]]:
    """A root that has said its first word, and the members below it."""
    root, issuers = make_mesh(EAST, WEST, SOUTH, now=datetime.now(UTC))
    root.say()
    return root, issuers


@pytest.fixture
async def clusters(
    tmp_path: Path, mesh: tuple[RootUnderTest, Mapping[ClusterName, Issuer]]
) -> AsyncIterator[tuple[ClusterUnderTest, ClusterUnderTest]]:
    """East and west, without their control planes."""
    issuers = mesh[1]
    async with start_cluster(tmp_path, issuers[EAST]) as east, start_cluster(tmp_path, issuers[WEST]) as west:
        yield east, west


async def meet(one: ControlUnderTest, other: ControlUnderTest) -> None:
    await one.introduce(other.member)
    await eventually(lambda: one.is_live(other.name) and other.is_live(one.name))


def hears(listener: ControlUnderTest, speaker: ControlUnderTest) -> bool:
    is_served = listener.name in [one.peer for one in speaker.offer.listeners()]
    return is_served and bool(listener.peer(speaker.name).via)


async def test_a_cluster_that_one_member_revokes_is_cut_off_both_ways_until_it_undoes_that(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, west_cluster = clusters
    async with (
        east_cluster.control(*exported_service(), pod("cart-1")) as east,
        west_cluster.control(*exported_service(), pod("cart-2")) as west,
    ):
        await meet(east, west)
        await eventually(lambda: bool(east.addresses(WEST)) and bool(west.addresses(EAST)))
        revocation = make_revocation(WEST, at=datetime.now(UTC), reason="its key was stolen")
        await east.client.put(names.revocation_key(WEST), encode_revocation(revocation))
        await eventually(lambda: not east.offer.listeners() and not west.offer.listeners(), "the streams end")
        await eventually(lambda: east.peer(WEST).problem == "not spoken with: revoked: its key was stolen")
        await eventually(
            lambda: west.peer(EAST).problem == "east says that this cluster is revoked: its key was stolen"
        )
        assert east.peer(WEST).via == west.peer(EAST).via == ""
        assert east.addresses(WEST) == ["10.0.0.2"], "its records stay: undoing is at once"
        west.store.apply([pod("cart-4")])
        await east.client.delete(names.revocation_key(WEST))
        await eventually(lambda: hears(east, west) and hears(west, east))
        await eventually(lambda: east.addresses(WEST) == ["10.0.0.2", "10.0.0.4"])
        assert not east.peer(WEST).problem


async def test_a_cluster_that_the_root_revokes_is_not_even_contacted(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest], mesh: tuple[RootUnderTest, Mapping[ClusterName, Issuer]]
) -> None:
    root, _ = mesh
    root.say(revoked=[make_revocation(WEST, at=datetime.now(UTC))])
    east_cluster, west_cluster = clusters
    async with (
        east_cluster.control(*exported_service(), pod("cart-1"), documents=root.said) as east,
        west_cluster.control(*exported_service(), pod("cart-2"), documents=root.said[:1]) as west,
    ):
        await east.introduce(west.member)
        await west.introduce(east.member)
        await eventually(lambda: bool(east.peers.status()) and "revoked" in east.peer(WEST).problem)
        await eventually(
            lambda: bool(west.peers.status()) and "says that this cluster is revoked" in west.peer(EAST).problem
        )
        assert west.keeper.documents()[-1] == root.said[0], "who is cut off is told nothing"
        # What the root undoes comes the same way as what it did.
        assert await east.keeper.take_bundles((root.say(),)) == ""
        await eventually(lambda: hears(east, west) and hears(west, east))
        await eventually(lambda: west.keeper.documents()[-1] == root.said[-1])


async def test_a_revocation_that_etcd_lost_stays_in_force_and_is_written_again(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, _ = clusters
    async with east_cluster.control(*exported_service()) as east:
        revocation = make_revocation("shop/cart", at=datetime.now(UTC))
        await east.client.put(names.revocation_key("shop/cart"), encode_revocation(revocation))
        await east.client.put(names.revocation_key("shop/pay"), encode_revocation(revocation))
        await eventually(lambda: east.picture.revoked == (revocation,))
        await eventually(lambda: bool(east.picture.findings), "a record about another is a finding, and not in force")
        await east_cluster.etcd.kill()
        east_cluster.etcd.wipe()
        await east_cluster.etcd.start()
        await eventually(lambda: east.replica.losses == 1)
        await eventually(lambda: names.revocation_key("shop/cart") in east.replica.records)
        found = await east.client.get(names.revocation_key("shop/cart"))
        assert found is not None
        assert east.picture.revoked == (revocation,)


async def test_nothing_is_left_on_the_old_authority_once_another_signs(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest], mesh: tuple[RootUnderTest, Mapping[ClusterName, Issuer]]
) -> None:
    root, _ = mesh
    east_cluster, west_cluster = clusters
    async with (
        east_cluster.control(*exported_service(), pod("cart-1"), documents=root.said) as east,
        west_cluster.control(*exported_service(), pod("cart-2"), documents=root.said) as west,
    ):
        await meet(east, west)
        before = {each.name: [one.since for one in each.offer.listeners()] for each in (east, west)}
        old = west.member.certificate
        west.keeper.switch(root.authority(WEST, now=datetime.now(UTC)))
        assert west.member.certificate != old
        # The one that west opened, and the one that east opened to it.
        await eventually(lambda: _since(east) > max(before[EAST]), "west has connected anew")
        await eventually(lambda: _since(west) > max(before[WEST]), "east was told to connect anew")
        await eventually(lambda: east.picture.members[WEST].certificate == west.member.certificate)
        await eventually(lambda: hears(east, west) and hears(west, east))
        own = await west.client.get(names.member_key(WEST))
        assert own is not None
        assert west.member.certificate.splitlines()[1].encode() in own.value


def _since(control: ControlUnderTest) -> datetime:
    return max((one.since for one in control.offer.listeners()), default=datetime.min.replace(tzinfo=UTC))


async def test_a_peer_is_answered_once_the_own_gateways_can_know_it(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, west_cluster = clusters
    async with (
        east_cluster.control(*exported_service(), pod("cart-1")) as east,
        west_cluster.control(*exported_service(), pod("cart-2")) as west,
    ):
        await east.introduce(west.member)
        await eventually(lambda: EAST in [one.peer for one in west.offer.listeners()])
        assert EAST in west.picture.members


@pytest.mark.parametrize(
    ("shifted", "says"),
    [
        (None, "an authority unknown here: the mesh's root may have been rotated"),
        (timedelta(hours=-5), "shows a certificate that expired at"),
        (timedelta(hours=5), "valid only from"),
    ],
)
async def test_why_a_handshake_fails_is_said(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest], shifted: timedelta | None, says: str
) -> None:
    east_cluster, _ = clusters
    now = datetime.now(UTC)
    root, issuers = make_mesh(EAST, WEST, now=now - timedelta(hours=10))
    other, _ = make_mesh(WEST, now=now)
    async with AsyncExitStack() as stack:
        issuer = other.authority(WEST, now=now) if shifted is None else issuers[WEST]
        svid = issuer.issue(control_identity(WEST), now=now + (shifted or timedelta()))
        _, west = await start_liar(stack, issuer, svid)
        root.say()
        east = await stack.enter_async_context(east_cluster.control(*exported_service(), documents=root.said))
        await east.introduce(west)
        await eventually(lambda: bool(east.peers.status()) and says in east.peer(WEST).problem)
        assert east.peer(WEST).problem.startswith("west ")


def test_nothing_is_said_of_a_chain_that_is_good_or_that_nobody_showed() -> None:
    now = datetime.now(UTC)
    _, issuers = make_mesh(WEST, now=now)
    chain = x509.load_pem_x509_certificates(issuers[WEST].issue(control_identity(WEST), now=now).certificate_chain_pem)
    roots = x509.load_pem_x509_certificates(issuers[WEST].trust_bundle_pem)
    assert explain(WEST, chain, roots, now=now) == ""
    assert explain(WEST, (), roots, now=now) == ""
    assert "unknown here" in explain(WEST, chain, (), now=now)
    assert "west shows a certificate that expired" in explain(WEST, chain, roots, now=now + timedelta(days=30))


def test_only_clusters_and_control_planes_are_not_spoken_with() -> None:
    now = datetime.now(UTC)
    revoked = [make_revocation(one, at=now) for one in ("shop/cart@west", "shop/cart", "south")]
    assert why_revoked(revoked, WEST) == ""
    assert why_revoked(revoked, SOUTH) == "revoked"
    control = make_revocation("isthmus-system/control@west", at=now)
    assert why_revoked([control], WEST) == "revoked"
    assert why_revoked([control], SOUTH) == ""


async def test_a_peer_that_cannot_be_reached_is_still_that(
    clusters: tuple[ClusterUnderTest, ClusterUnderTest],
) -> None:
    east_cluster, west_cluster = clusters
    async with east_cluster.control(*exported_service()) as east, west_cluster.control() as west:
        await west_cluster.relay.cut()
        await east.introduce(west.member)
        await eventually(lambda: bool(east.peers.status()) and east.peer(WEST).problem.startswith("unavailable"))
