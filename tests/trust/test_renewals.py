"""The next authority of a cluster is granted to who holds the present one, and to nobody else."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from tests.support.operators import Operator, keys_in, member, refused
from tests.support.trust import DOMAIN, EAST, WEST, init_root, is_anchored, make_authorities
from trust import joining
from trust.bundle import (
    make_revocation,
)
from trust.certificates import new_key
from trust.joining import continue_from, make_join_request
from trust.root import Root
from trust.spiffe import ClusterName

NOW = datetime.now(UTC)
SOUTH = ClusterName("south")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return init_root(tmp_path / "root", now=NOW)


@pytest.fixture
def east(tmp_path: Path, root: Root) -> Operator:
    return member(tmp_path, EAST, root, now=NOW)


@pytest.fixture
def west(tmp_path: Path, root: Root) -> Operator:
    return member(tmp_path, WEST, root, now=NOW)


def test_a_renewal_that_another_member_makes_is_refused(
    tmp_path: Path, root: Root, east: Operator, west: Operator
) -> None:
    root.require_renewal(WEST, now=NOW)
    west.hear(root)
    honest, mine = west.ask_again(), east.member.active
    forged = make_join_request(new_key(), west.about, domain=DOMAIN, now=NOW, generation=2)
    refused(tmp_path, lambda: root.renew(forged, now=NOW), "does not show that its present authority")
    by_east = continue_from(forged, mine.certificate, mine.key)
    refused(tmp_path, lambda: root.renew(by_east, now=NOW), "not the one that holds it")
    with_wests = continue_from(forged, west.member.active.certificate, mine.key)
    refused(tmp_path, lambda: root.renew(with_wests, now=NOW), "not signed by the authority")
    stuck_on = msgspec.structs.replace(forged, continuity=honest.continuity)
    refused(tmp_path, lambda: root.renew(stuck_on, now=NOW), "not signed by the authority")
    other = make_authorities(WEST, now=NOW)[WEST]
    of_another_mesh = continue_from(forged, other.certificate, other.key)
    refused(tmp_path, lambda: root.renew(of_another_mesh, now=NOW), "not the one that holds it")
    assert west.enrolment.accept(root.renew(honest, now=NOW), now=NOW).active.generation == 2


def test_nobody_renews_what_was_not_asked_for(tmp_path: Path, root: Root, west: Operator) -> None:
    held = west.member.active

    def request(generation: int) -> joining.JoinRequest:
        made = make_join_request(new_key(), west.about, domain=DOMAIN, now=NOW, generation=generation)
        return continue_from(made, held.certificate, held.key)

    refused(tmp_path, lambda: root.renew(request(1), now=NOW), "has its authority of generation 1")
    refused(tmp_path, lambda: root.renew(request(2), now=NOW), "asks for generation 2, and the trust bundle for 1")
    refused(tmp_path, lambda: root.grant(request(2), now=NOW), "not to join")
    root.require_renewal(WEST, now=NOW)
    refused(tmp_path, lambda: root.renew(request(3), now=NOW), "asks for generation 3, and the trust bundle for 2")
    same = make_join_request(held.key, west.about, domain=DOMAIN, now=NOW, generation=2)
    same = continue_from(same, held.certificate, held.key)
    refused(tmp_path, lambda: root.renew(same, now=NOW), "with the key of the old one")
    south = msgspec.structs.replace(west.about, name=SOUTH)
    stranger = make_join_request(new_key(), south, domain=DOMAIN, now=NOW, generation=2)
    stranger = continue_from(stranger, held.certificate, held.key)
    refused(tmp_path, lambda: root.renew(stranger, now=NOW), "no member of this mesh")
    refused(tmp_path, lambda: root.require_renewal(SOUTH, now=NOW), "no member of this mesh")


def test_a_grant_that_was_lost_is_made_anew_until_it_is_in_use(tmp_path: Path, root: Root, west: Operator) -> None:
    before = west.member.active
    root.require_renewal(WEST, now=NOW)
    west.hear(root)
    asked = west.ask_again()
    lost = root.renew(asked, now=NOW)
    later = NOW + timedelta(days=2)
    found = root.renew(asked, now=later)
    refused(west.directory, lambda: west.enrolment.accept(lost, now=later), "the grant expired")
    active = west.enrolment.accept(found, now=later).active
    # The one that was lost comes after all: it is for the same key, and changes nothing.
    assert west.enrolment.accept(lost, now=later).active.certificate == active.certificate
    root.confirm(WEST, before.fingerprint)
    root.renew(asked, now=NOW)
    root.confirm(WEST, active.fingerprint)
    root.confirm(SOUTH, active.fingerprint)
    refused(tmp_path, lambda: root.renew(asked, now=NOW), "not the one that holds it")

    root.require_renewal(WEST, now=NOW)
    stolen = make_join_request(new_key(), west.about, domain=DOMAIN, now=NOW, generation=3)
    stolen = continue_from(stolen, before.certificate, before.key)
    refused(tmp_path, lambda: root.renew(stolen, now=NOW), "not the one that holds it")
    west.hear(root)
    assert west.renew(root).active.generation == 3


def test_a_key_that_was_lost_before_its_grant_came_does_not_lock_the_member_out(
    tmp_path: Path, root: Root, west: Operator
) -> None:
    root.require_renewal(WEST, now=NOW)
    west.hear(root)
    first = west.ask_again()
    grant = root.renew(first, now=NOW)
    west.custody.destroy("ca-2")
    second = west.ask_again()
    assert second.id != first.id
    refused(west.directory, lambda: west.enrolment.accept(grant, now=NOW), "waits for")
    assert west.renew(root).active.generation == 2


def test_a_member_asks_anew_when_still_more_is_asked_of_it(root: Root, west: Operator) -> None:
    root.require_renewal(WEST, now=NOW)
    west.hear(root)
    first = west.ask_again()
    root.renew(first, now=NOW)
    root.require_renewal(WEST, now=NOW)
    west.hear(root)
    second = west.ask_again()
    assert (first.generation, second.generation) == (2, 3)
    assert keys_in(west.directory) == ["ca-1", "ca-2"]
    assert west.renew(root).active.generation == 3


def test_a_grant_by_a_root_that_is_gone_is_refused(tmp_path: Path, root: Root, west: Operator) -> None:
    root.require_renewal(WEST, now=NOW)
    west.hear(root)
    grant = root.renew(west.ask_again(), now=NOW)
    root.announce(now=NOW)
    root.sign_with_next(now=NOW)
    root.retire(now=NOW)
    west.hear(root)
    refused(west.directory, lambda: west.enrolment.accept(grant, now=NOW), "a root that is not in the trust bundle")
    assert not is_anchored(west.member)
    assert is_anchored(west.renew(root))


def test_a_revoked_cluster_gets_nothing_and_is_introduced_to_nobody(
    tmp_path: Path, root: Root, east: Operator, west: Operator
) -> None:
    root.require_renewal(WEST, now=NOW)
    west.hear(root)
    asked = west.ask_again()
    stolen = make_revocation("west", at=NOW, reason="stolen")
    bundle = root.revoke(stolen, now=NOW)
    assert bundle.revoked == (stolen,)
    assert root.revoke(make_revocation("west", at=NOW + timedelta(hours=1), reason="stolen"), now=NOW) == bundle
    refused(tmp_path, lambda: root.renew(asked, now=NOW), "west is revoked")
    refused(tmp_path, lambda: root.require_renewal(WEST, now=NOW), "west is revoked")
    again = Operator(tmp_path / "again", WEST, now=NOW)
    request = again.ask()
    refused(tmp_path, lambda: root.grant(request, now=NOW, replace=True), "west is revoked")
    assert member(tmp_path, SOUTH, root, now=NOW).member.introductions == (east.about,)
    assert root.revoke(msgspec.structs.replace(stolen, sever=True), now=NOW).revoked[0].sever
    refused(tmp_path, lambda: root.restore("shop/cart", now=NOW), "not revoked by the root")
    assert root.restore("west", now=NOW).revoked == ()
    assert root.renew(asked, now=NOW).generation == 2
