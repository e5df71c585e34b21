"""What a member may not see is never told to it: its etcd has never held a trace of it."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from federation import names
from federation.model import (
    EPOCH,
    ClusterSettings,
    MemberCluster,
    MemberSelector,
    NetworkName,
    ServiceExport,
    ServiceKey,
)
from federation.peering import exports
from federation.peering.exports import own_member
from federation.peering.visibility import CLUSTER_LABEL, REGION_LABEL, Shares, labels_of, may_see, seen_by
from federation.snapshot import EMPTY, Change, Section, apply
from federation.xds.resources import make_resource
from tests.support.federation import CART, SHOP, exported_service, pod, start_cluster
from tests.support.history import history
from tests.support.trust import EAST, WEST, make_issuers
from tests.support.waiting import eventually
from trust.spiffe import ClusterName, MeshDomain

SECRET = ServiceKey(SHOP, "secret")
GOLD = MemberSelector(label="tier", value="gold")
SETTINGS = ClusterSettings(WEST, MeshDomain("mesh.test"), NetworkName("west"), "us")


def member(name: str, *labels: tuple[str, str], introduced_by: str = "") -> MemberCluster:
    return MemberCluster(ClusterName(name), NetworkName(name), "eu", (), labels=labels, introduced_by=introduced_by)


def export(*selectors: MemberSelector) -> ServiceExport:
    return ServiceExport(SECRET, selectors)


def exported_to(*selectors: MemberSelector) -> Change:
    return Change(Section.EXPORTS, SECRET, export(*selectors))


def test_a_member_cannot_give_itself_what_follows_from_what_it_is() -> None:
    found = labels_of(member("east", ("tier", "gold"), (REGION_LABEL, "us"), (CLUSTER_LABEL, "west")))
    assert found["tier"] == "gold"
    assert found[REGION_LABEL] == "eu"
    assert found[CLUSTER_LABEL] == "east"


@pytest.mark.parametrize(
    ("selectors", "expected"),
    [
        ((), True),
        ((MemberSelector("east"),), True),
        ((MemberSelector("north"),), False),
        ((MemberSelector("north"), GOLD), True),
        ((MemberSelector(label="tier", value="tin"),), False),
        ((MemberSelector(label=REGION_LABEL, value="eu"),), True),
        ((MemberSelector(),), False),
    ],
)
def test_one_selector_that_fits_is_enough(selectors: tuple[MemberSelector, ...], expected: bool) -> None:
    assert may_see(export(*selectors), member("east", ("tier", "gold"))) is expected


def test_labels_that_others_tell_of_a_member_count_for_nothing() -> None:
    hearsay = member("east", ("tier", "gold"), introduced_by="north")
    assert not may_see(export(GOLD), hearsay)
    assert not may_see(export(MemberSelector(label=REGION_LABEL, value="eu")), hearsay)
    assert may_see(export(MemberSelector("east")), hearsay)


def test_who_sees_an_export_is_known_at_the_source() -> None:
    members = [member("east", ("tier", "gold")), member("north"), own_member(SETTINGS)]
    picture = apply(EMPTY, [Change(Section.MEMBERS, one.name, one) for one in members])
    assert seen_by(picture, SETTINGS, SECRET) == frozenset()
    assert seen_by(apply(picture, [exported_to()]), SETTINGS, SECRET) is None
    assert seen_by(apply(picture, [exported_to(GOLD)]), SETTINGS, SECRET) == {"east"}


def test_members_that_see_the_same_share_one_mapping() -> None:
    offers = {name: make_resource(name, b"") for name in ("all", "gold", "north")}
    shares = Shares(offers, {"gold": (GOLD,), "north": (MemberSelector("north"),)})
    assert shares.of(member("east")).keys() == {"all"}
    assert shares.of(member("south")) is shares.of(member("east"))
    assert shares.of(member("north", ("tier", "gold"))) is offers
    assert shares.of(member("north")).keys() == {"all", "north"}


async def test_what_a_member_may_not_see_is_not_in_its_etcd_at_any_time(tmp_path: Path) -> None:
    issuers = make_issuers(EAST, WEST, now=datetime.now(UTC))
    async with start_cluster(tmp_path, issuers[EAST]) as east_cluster, start_cluster(tmp_path, issuers[WEST]) as west:
        offer = [*exported_service(), *exported_service("secret"), exported_to(GOLD), pod("cart-1")]
        offer.append(pod("secret-2", app="secret"))
        async with west.control(*offer) as speaker:
            async with east_cluster.control(*exported_service(), labels=(("tier", "tin"),)) as listener:
                await listener.introduce(speaker.member)
                await eventually(lambda: listener.addresses(WEST) == ["10.0.0.1"] and speaker.is_live(EAST))
                # What changes meanwhile is not told either, and what is told after it has come.
                speaker.store.apply([pod("secret-3", app="secret"), exported_to(GOLD, MemberSelector("north"))])
                speaker.store.apply([pod("cart-4")])
                await eventually(lambda: listener.addresses(WEST) == ["10.0.0.1", "10.0.0.4"])
                told = await history(east_cluster.etcd.url)
                assert told
                assert not [one for one in told if b"secret" in (one.item.value if one.item else b"")]
                assert not [one for one in told if "secret" in one.key]
                speaker.store.apply([exported_to(MemberSelector("east"))])
                await eventually(lambda: listener.addresses(WEST, SECRET) == ["10.0.0.2", "10.0.0.3"])
                speaker.store.apply([exported_to(GOLD)])
                await eventually(lambda: (WEST, SECRET) not in listener.picture.imports)
            async with east_cluster.control(*exported_service(), labels=(("tier", "gold"),)) as listener:
                await eventually(lambda: listener.addresses(WEST, SECRET) == ["10.0.0.2", "10.0.0.3"])
                assert speaker.picture.members[EAST].labels == (("tier", "gold"),)


async def test_what_peers_would_refuse_is_shown_and_what_is_still_true_stays_offered(tmp_path: Path) -> None:
    issuers = make_issuers(WEST, now=datetime.now(UTC))
    async with start_cluster(tmp_path, issuers[WEST]) as cluster, cluster.control(*exported_service()) as west:
        west.store.apply([pod("cart-1"), pod("cart-2")])
        await eventually(lambda: CART in west.offer.exports and len(west.offer.exports[CART].endpoints) == 2)
        since = west.offer.exports[CART].exported_at
        bad = pod("cart-3").value
        west.store.apply([Change(Section.PODS, bad.key, msgspec.structs.replace(bad, address="0.0.0.0"))])
        await eventually(lambda: bool(west.offer.unoffered))
        west.store.apply([pod("cart-2", ready=False)])
        await eventually(lambda: len(west.offer.exports[CART].endpoints) == 1)
        [(key, reason, first)] = west.offer.unoffered
        assert key == CART
        assert "nobody can have" in reason
        west.store.apply([Change(Section.PODS, bad.key, None)])
        await eventually(lambda: not west.offer.unoffered)
        assert west.offer.exports[CART].exported_at == since > EPOCH
        assert first > since
        key_in_etcd = names.export_key(WEST, CART)
        await eventually(lambda: key_in_etcd in west.replica.records)
        assert exports.decode_export(west.replica.records[key_in_etcd]).exported_at == since
