"""How clusters join, on disk: each step is whole or has not happened, and a refusal changes nothing."""

import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

import msgspec
import pytest

from tests.support.files import tree
from tests.support.operators import Operator, about, refused
from tests.support.trust import DOMAIN, EAST, WEST, init_root, is_anchored, make_issuer, open_root
from trust import joining
from trust.certificates import describe
from trust.enrolment import Enrolment
from trust.joining import JoinRefused
from trust.refusals import AuthorityRefused
from trust.root import Root
from trust.spiffe import ClusterName, MeshDomain, control_identity

NOW = datetime.now(UTC)
SOUTH = ClusterName("south")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return init_root(tmp_path / "root", now=NOW)


@pytest.fixture
def east(tmp_path: Path) -> Operator:
    return Operator(tmp_path, EAST, now=NOW)


@pytest.fixture
def west(tmp_path: Path) -> Operator:
    return Operator(tmp_path, WEST, now=NOW)


def test_a_cluster_joins_and_issues(root: Root, east: Operator) -> None:
    assert east.enrolment.load() is None
    request = joining.decode_request(joining.encode(east.ask()))
    grant = joining.decode_grant(joining.encode(root.grant(request, now=NOW)))
    joined = east.enrolment.accept(grant, now=NOW)
    authority = joined.active
    assert joined.introductions == ()
    assert joined.documents == (joined.bundle,) == (root.bundle,)
    assert is_anchored(joined)
    assert (authority.cluster, authority.domain, authority.root) == (EAST, DOMAIN, root.certificate)
    assert make_issuer(authority).issue(control_identity(EAST), now=NOW).identity == control_identity(EAST)
    assert root.members() == (east.about,)
    again = east.member.active
    assert again.certificate == authority.certificate
    assert again.key.public_key() == authority.key.public_key()
    assert (authority.generation, authority.fingerprint) == (1, east.member.authorities[0].fingerprint)


def test_who_comes_later_is_introduced_to_all_before(
    root: Root, east: Operator, west: Operator, tmp_path: Path
) -> None:
    south = Operator(tmp_path, SOUTH, now=NOW)
    for cluster in (east, west, south):
        grant = root.grant(cluster.ask(), now=NOW)
        introduced = cluster.enrolment.accept(grant, now=NOW).introductions
    assert introduced == (east.about, west.about)


def test_a_member_that_speaks_for_itself_knows_better_than_the_ledger(
    root: Root, east: Operator, west: Operator
) -> None:
    root.grant(east.ask(), now=NOW)
    moved, unknown = about(EAST, port=443), about(SOUTH)
    grant = root.grant(west.ask(), now=NOW, introductions=[moved, unknown, about(WEST, port=1)])
    assert grant.introductions == (moved, unknown)
    assert root.members() == (east.about, west.about), "hearsay enters no ledger"


def test_the_intermediate_ends_with_the_root(root: Root, east: Operator) -> None:
    grant = root.grant(east.ask(), now=NOW, lifetime=timedelta(days=30_000))
    authority = east.enrolment.accept(grant, now=NOW).active
    assert authority.certificate.not_valid_after_utc == root.certificate.not_valid_after_utc


def test_a_request_stays_the_same_until_the_cluster_changes(east: Operator) -> None:
    first = east.ask()
    assert east.ask() == first
    assert (
        Enrolment(east.directory, east.custody).request(east.about, domain=DOMAIN, now=NOW + timedelta(days=9)) == first
    )
    east.about = about(EAST, region="elsewhere")
    second = east.ask()
    assert second.id != first.id
    assert second.cluster == east.about
    assert east.ask() == second
    assert east.ask(fresh=True).id != second.id


def test_a_second_use_of_a_request_is_refused(tmp_path: Path, root: Root, east: Operator) -> None:
    request = east.ask()
    root.grant(request, now=NOW)
    for replace in (False, True):
        refused(tmp_path, lambda replace=replace: root.grant(request, now=NOW, replace=replace), "granted already")  # type: ignore[misc]
    renamed = msgspec.structs.replace(request, id="0" * 32)
    refused(tmp_path, lambda: root.grant(renamed, now=NOW), "changed after it was made")


def test_a_lost_grant_is_made_good_by_a_fresh_request(root: Root, east: Operator) -> None:
    root.grant(east.ask(), now=NOW)
    grant = root.grant(east.ask(fresh=True), now=NOW)
    assert east.enrolment.accept(grant, now=NOW)


def test_a_name_that_another_key_holds_is_refused_unless_it_is_to_be_replaced(
    tmp_path: Path, root: Root, east: Operator
) -> None:
    root.grant(east.ask(), now=NOW)
    impostor = Operator(tmp_path / "other", EAST, now=NOW)
    request = impostor.ask()
    refusal = refused(tmp_path, lambda: root.grant(request, now=NOW), "the name east is taken by another key")
    assert "--replace" in refusal.hint
    impostor.enrolment.accept(root.grant(request, now=NOW, replace=True), now=NOW)
    refused(tmp_path, lambda: root.grant(east.ask(), now=NOW), "granted already")


def test_one_key_does_not_get_two_names(tmp_path: Path, root: Root, east: Operator) -> None:
    root.grant(east.ask(), now=NOW)
    east.about = about(WEST)
    request = east.ask()
    refused(tmp_path, lambda: root.grant(request, now=NOW, replace=True), "belongs to the cluster east")


def test_a_request_for_another_mesh_is_refused(tmp_path: Path, root: Root, east: Operator) -> None:
    request = east.enrolment.request(east.about, domain=MeshDomain("other.test"), now=NOW)
    refused(tmp_path, lambda: root.grant(request, now=NOW), r"this is the root of mesh\.test")


def test_a_bad_introduction_is_refused(tmp_path: Path, root: Root, east: Operator) -> None:
    request = east.ask()
    bad = msgspec.structs.replace(about(WEST), name=ClusterName("West"))
    refused(tmp_path, lambda: root.grant(request, now=NOW, introductions=[bad]), "not a cluster name")


@pytest.mark.parametrize("kind", ["lifetime", "valid_for"])
def test_a_grant_of_no_time_is_refused(tmp_path: Path, root: Root, east: Operator, kind: str) -> None:
    request = east.ask()
    spans = {"lifetime": timedelta(days=1), "valid_for": timedelta(days=1), kind: timedelta(0)}
    refused(tmp_path, lambda: root.grant(request, now=NOW, **spans), "from now on")  # type: ignore[arg-type]


def test_an_expired_grant_is_refused(tmp_path: Path, root: Root, east: Operator) -> None:
    grant = root.grant(east.ask(), now=NOW, valid_for=timedelta(hours=1))
    later = NOW + timedelta(hours=1)
    refused(tmp_path, lambda: east.enrolment.accept(grant, now=later), "the grant expired")
    assert east.enrolment.load() is None


def test_a_grant_for_another_cluster_mesh_or_request_is_refused(
    tmp_path: Path, root: Root, east: Operator, west: Operator
) -> None:
    grant = root.grant(east.ask(), now=NOW)
    refused(tmp_path, lambda: west.enrolment.accept(grant, now=NOW), "has not asked to join")
    west.ask()
    refused(tmp_path, lambda: west.enrolment.accept(grant, now=NOW), "for the cluster east, this is west")
    east.ask(fresh=True)
    refused(tmp_path, lambda: east.enrolment.accept(grant, now=NOW), "waits for")
    other_mesh = init_root(tmp_path / "other", MeshDomain("other.test"), now=NOW)
    stranger = Operator(tmp_path / "stranger", EAST, now=NOW)
    elsewhere = stranger.enrolment.request(stranger.about, domain=MeshDomain("other.test"), now=NOW)
    foreign = other_mesh.grant(elsewhere, now=NOW)
    refused(tmp_path, lambda: east.enrolment.accept(foreign, now=NOW), r"for the mesh other\.test")


def test_the_same_grant_twice_changes_nothing_and_another_one_is_refused(
    tmp_path: Path, root: Root, east: Operator
) -> None:
    grant = root.grant(east.ask(), now=NOW)
    other = root.grant(east.ask(fresh=True), now=NOW)
    east.enrolment.accept(other, now=NOW)
    before = tree(tmp_path)
    assert east.enrolment.accept(other, now=NOW + timedelta(days=2)).active.cluster == EAST
    assert tree(tmp_path) == before
    refused(tmp_path, lambda: east.enrolment.accept(grant, now=NOW), "a member of mesh.test already")
    refused(tmp_path, east.ask, "a member of mesh.test already")


def test_a_data_directory_that_lies_open_is_refused(tmp_path: Path, root: Root, east: Operator) -> None:
    east.directory.mkdir(mode=0o755)
    os.chmod(east.directory, 0o755)
    refused(tmp_path, east.ask, "open to others")
    east.directory.chmod(0o700)
    east.enrolment.accept(root.grant(east.ask(), now=NOW), now=NOW)
    (east.directory / "ca-1-key.pem").chmod(0o640)
    refused(tmp_path, east.enrolment.load, "open to others")


def test_a_key_and_a_grant_that_do_not_belong_together_are_refused(
    tmp_path: Path, root: Root, east: Operator, west: Operator
) -> None:
    for cluster in (east, west):
        cluster.enrolment.accept(root.grant(cluster.ask(), now=NOW), now=NOW)
    (west.directory / "ca-1-key.pem").replace(east.directory / "ca-1-key.pem")
    refused(tmp_path, east.enrolment.load, "do not belong together")


def test_a_broken_grant_on_disk_is_refused_and_a_broken_request_is_made_anew(root: Root, east: Operator) -> None:
    first = east.ask()
    (east.directory / "request-1.json").write_text("{")
    second = east.ask()
    assert second.id != first.id
    east.enrolment.accept(root.grant(second, now=NOW), now=NOW)
    (east.directory / "grant-1.json").write_text("{")
    with pytest.raises(AuthorityRefused, match=r"grant-1\.json"):
        east.enrolment.load()


def test_replicas_that_ask_at_once_ask_the_same(east: Operator) -> None:
    with ThreadPoolExecutor(8) as pool:
        replicas = [Enrolment(east.directory, east.custody) for _ in range(8)]
        asked = list(pool.map(lambda replica: replica.request(east.about, domain=DOMAIN, now=NOW), replicas))
    assert len({request.id for request in asked}) == 1


def _grant(directory: Path, request: joining.JoinRequest) -> str:
    try:
        return open_root(directory, now=NOW).grant(request, now=NOW).request_id
    except JoinRefused as error:
        return error.message


def test_of_two_operators_that_grant_one_name_at_once_one_succeeds(tmp_path: Path, root: Root) -> None:
    requests = [Operator(tmp_path / str(number), EAST, now=NOW).ask() for number in range(4)]
    requests += [Operator(tmp_path, ClusterName(f"c{number}"), now=NOW).ask() for number in range(4)]
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        answers = list(pool.map(_grant, [tmp_path / "root"] * len(requests), requests))
    granted = [request for request, answer in zip(requests, answers, strict=True) if answer == request.id]
    assert sorted(request.cluster.name for request in granted) == ["c0", "c1", "c2", "c3", "east"]
    assert {member.name for member in root.members()} == {"c0", "c1", "c2", "c3", "east"}


def test_an_authority_can_be_described(root: Root, east: Operator) -> None:
    authority = east.join(root).active
    assert "CN=east" in describe(authority.certificate).subject
    assert describe(authority.certificate).is_ca
