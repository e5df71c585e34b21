"""Roots and enrolments on disk: each step is whole or has not happened, and a refusal changes nothing."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

import msgspec
import pytest

from tests.support.files import tree
from tests.support.trust import DOMAIN, EAST, WEST
from trust import joining
from trust.authority import AuthorityRefused, Enrolment, Root
from trust.certificates import describe
from trust.custody import CustodyRefused
from trust.issuance import Issuer
from trust.joining import GatewayAddress, Introduction, JoinRefused
from trust.refusals import Refusal
from trust.spiffe import ClusterName, MeshDomain, control_identity

NOW = datetime.now(UTC)
SOUTH = ClusterName("south")


def about(name: ClusterName = EAST, *, port: int = 15443, region: str = "eu") -> Introduction:
    gateways = (GatewayAddress(address="127.101.0.3", port=port),)
    return Introduction(name=name, network=name, region=region, gateways=gateways)


class Cluster:
    """The operator of one cluster, with its data directory."""

    def __init__(self, directory: Path, name: ClusterName) -> None:
        self.directory = directory / name
        self.enrolment = Enrolment(self.directory)
        self.about = about(name)

    def ask(self, *, fresh: bool = False) -> joining.JoinRequest:
        return self.enrolment.request(self.about, domain=DOMAIN, now=NOW, fresh=fresh)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.init(tmp_path / "root", DOMAIN, now=NOW)


@pytest.fixture
def east(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path, EAST)


@pytest.fixture
def west(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path, WEST)


def refused(directory: Path, step: Callable[[], object], match: str) -> Refusal:
    """Checks that a step is refused and has changed nothing on disk."""
    before = tree(directory)
    with pytest.raises(Refusal, match=match) as refusal:
        step()
    assert tree(directory) == before
    assert refusal.value.hint
    return refusal.value


# The root


def test_a_root_is_made_and_opened(tmp_path: Path) -> None:
    made = Root.init(tmp_path / "deep" / "root", DOMAIN, now=NOW)
    opened = Root.open(tmp_path / "deep" / "root", now=NOW)
    assert opened.certificate == made.certificate
    assert opened.domain == DOMAIN
    assert opened.members() == ()
    assert {path: oct(mode) for path, (mode, _) in tree(tmp_path / "deep").items()} == {
        "root": "0o40700",
        "root/root-key.pem": "0o100600",
        "root/root.pem": "0o100600",
        "root/members.json": "0o100600",
    }
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["root"]


def test_an_empty_directory_may_become_a_root_and_any_other_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o755)
    Root.init(tmp_path / "empty", DOMAIN, now=NOW)
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700
    refused(tmp_path, lambda: Root.init(tmp_path / "empty", DOMAIN, now=NOW), "cannot become")
    (tmp_path / "file").write_text("mine")
    refused(tmp_path, lambda: Root.init(tmp_path / "file", DOMAIN, now=NOW), "cannot become")


@pytest.mark.parametrize(
    ("domain", "lifetime", "passphrase", "match"),
    [
        ("mesh", timedelta(days=1), None, "not a mesh domain"),
        ("Mesh.test", timedelta(days=1), None, "not a mesh domain"),
        (DOMAIN, timedelta(0), None, "cannot live"),
        (DOMAIN, timedelta(days=999_999), None, "cannot live"),
        (DOMAIN, timedelta(days=1), b"", "1 to 1023 bytes"),
    ],
)
def test_a_root_that_cannot_be_leaves_nothing_behind(
    tmp_path: Path, domain: str, lifetime: timedelta, passphrase: bytes | None, match: str
) -> None:
    refused(
        tmp_path,
        lambda: Root.init(tmp_path / "root", MeshDomain(domain), now=NOW, lifetime=lifetime, passphrase=passphrase),
        match,
    )


def test_a_root_with_a_passphrase_opens_with_it_alone(tmp_path: Path) -> None:
    directory = tmp_path / "root"
    Root.init(directory, DOMAIN, now=NOW, passphrase=b"correct horse")
    assert Root.needs_passphrase(directory)
    assert Root.open(directory, now=NOW, passphrase=b"correct horse").domain == DOMAIN
    refused(tmp_path, lambda: Root.open(directory, now=NOW), "no passphrase was given")
    refused(tmp_path, lambda: Root.open(directory, now=NOW, passphrase=b"battery staple"), "does not open")


def test_a_directory_that_is_no_root_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, lambda: Root.open(tmp_path / "nowhere", now=NOW), "holds no root")
    (tmp_path / "empty").mkdir(mode=0o700)
    refused(tmp_path, lambda: Root.open(tmp_path / "empty", now=NOW), "holds no root")
    with pytest.raises(CustodyRefused):
        Root.needs_passphrase(tmp_path / "empty")


def test_a_root_that_lies_open_or_apart_or_broken_is_refused(tmp_path: Path, root: Root, east: Cluster) -> None:
    directory = tmp_path / "root"
    other = tmp_path / "other"
    Root.init(other, DOMAIN, now=NOW)
    (directory / "root-key.pem").chmod(0o644)
    refused(tmp_path, lambda: Root.open(directory, now=NOW), "open to others")
    (directory / "root-key.pem").chmod(0o600)
    (other / "root-key.pem").replace(directory / "root-key.pem")
    refused(tmp_path, lambda: Root.open(directory, now=NOW), "do not belong together")
    request = east.ask()
    (directory / "members.json").write_text("{")
    refused(tmp_path, lambda: root.grant(request, now=NOW), "broken")
    (directory / "members.json").write_text('{"version": 2}')
    refused(tmp_path, lambda: root.grant(request, now=NOW), "version 2")
    (directory / "members.json").unlink()
    refused(tmp_path, lambda: root.grant(request, now=NOW), "does not exist")


def test_a_root_that_expired_is_refused(tmp_path: Path, root: Root) -> None:
    refused(tmp_path, lambda: Root.open(tmp_path / "root", now=NOW + timedelta(days=3651)), "expired")


# Joining


def test_a_cluster_joins_and_issues(root: Root, east: Cluster) -> None:
    assert east.enrolment.load() is None
    request = joining.decode_request(joining.encode(east.ask()))
    grant = joining.decode_grant(joining.encode(root.grant(request, now=NOW)))
    authority, introduced = east.enrolment.accept(grant, now=NOW)
    assert introduced == ()
    assert (authority.cluster, authority.domain, authority.root) == (EAST, DOMAIN, root.certificate)
    assert Issuer(authority).issue(control_identity(EAST), now=NOW).identity == control_identity(EAST)
    assert root.members() == (east.about,)
    again = Enrolment(east.directory).load()
    assert again is not None
    assert again[0].certificate == authority.certificate
    assert again[0].key.public_key() == authority.key.public_key()


def test_who_comes_later_is_introduced_to_all_before(root: Root, east: Cluster, west: Cluster, tmp_path: Path) -> None:
    south = Cluster(tmp_path, SOUTH)
    for cluster in (east, west, south):
        grant = root.grant(cluster.ask(), now=NOW)
        _, introduced = cluster.enrolment.accept(grant, now=NOW)
    assert introduced == (east.about, west.about)


def test_a_member_that_speaks_for_itself_knows_better_than_the_ledger(root: Root, east: Cluster, west: Cluster) -> None:
    root.grant(east.ask(), now=NOW)
    moved, unknown = about(EAST, port=443), about(SOUTH)
    grant = root.grant(west.ask(), now=NOW, introductions=[moved, unknown, about(WEST, port=1)])
    assert grant.introductions == (moved, unknown)
    assert root.members() == (east.about, west.about), "hearsay enters no ledger"


def test_the_intermediate_ends_with_the_root(root: Root, east: Cluster) -> None:
    grant = root.grant(east.ask(), now=NOW, lifetime=timedelta(days=30_000))
    authority, _ = east.enrolment.accept(grant, now=NOW)
    assert authority.certificate.not_valid_after_utc == root.certificate.not_valid_after_utc


def test_a_request_stays_the_same_until_the_cluster_changes(east: Cluster) -> None:
    first = east.ask()
    assert east.ask() == first
    assert Enrolment(east.directory).request(east.about, domain=DOMAIN, now=NOW + timedelta(days=9)) == first
    east.about = about(EAST, region="elsewhere")
    second = east.ask()
    assert second.id != first.id
    assert second.cluster == east.about
    assert east.ask() == second
    assert east.ask(fresh=True).id != second.id


def test_a_second_use_of_a_request_is_refused(tmp_path: Path, root: Root, east: Cluster) -> None:
    request = east.ask()
    root.grant(request, now=NOW)
    for replace in (False, True):
        refused(tmp_path, lambda replace=replace: root.grant(request, now=NOW, replace=replace), "granted already")  # type: ignore[misc]
    renamed = msgspec.structs.replace(request, id="0" * 32)
    refused(tmp_path, lambda: root.grant(renamed, now=NOW), "changed after it was made")


def test_a_lost_grant_is_made_good_by_a_fresh_request(root: Root, east: Cluster) -> None:
    root.grant(east.ask(), now=NOW)
    grant = root.grant(east.ask(fresh=True), now=NOW)
    assert east.enrolment.accept(grant, now=NOW)


def test_a_name_that_another_key_holds_is_refused_unless_it_is_to_be_replaced(
    tmp_path: Path, root: Root, east: Cluster
) -> None:
    root.grant(east.ask(), now=NOW)
    impostor = Cluster(tmp_path / "other", EAST)
    request = impostor.ask()
    refusal = refused(tmp_path, lambda: root.grant(request, now=NOW), "the name east is taken by another key")
    assert "--replace" in refusal.hint
    impostor.enrolment.accept(root.grant(request, now=NOW, replace=True), now=NOW)
    refused(tmp_path, lambda: root.grant(east.ask(), now=NOW), "granted already")


def test_one_key_does_not_get_two_names(tmp_path: Path, root: Root, east: Cluster) -> None:
    root.grant(east.ask(), now=NOW)
    east.about = about(WEST)
    request = east.ask()
    refused(tmp_path, lambda: root.grant(request, now=NOW, replace=True), "belongs to the cluster east")


def test_a_request_for_another_mesh_is_refused(tmp_path: Path, root: Root, east: Cluster) -> None:
    request = east.enrolment.request(east.about, domain=MeshDomain("other.test"), now=NOW)
    refused(tmp_path, lambda: root.grant(request, now=NOW), r"this is the root of mesh\.test")


def test_a_bad_introduction_is_refused(tmp_path: Path, root: Root, east: Cluster) -> None:
    request = east.ask()
    bad = msgspec.structs.replace(about(WEST), name=ClusterName("West"))
    refused(tmp_path, lambda: root.grant(request, now=NOW, introductions=[bad]), "not a cluster name")


@pytest.mark.parametrize("kind", ["lifetime", "valid_for"])
def test_a_grant_of_no_time_is_refused(tmp_path: Path, root: Root, east: Cluster, kind: str) -> None:
    request = east.ask()
    spans = {"lifetime": timedelta(days=1), "valid_for": timedelta(days=1), kind: timedelta(0)}
    refused(tmp_path, lambda: root.grant(request, now=NOW, **spans), "from now on")  # type: ignore[arg-type]


def test_an_expired_grant_is_refused(tmp_path: Path, root: Root, east: Cluster) -> None:
    grant = root.grant(east.ask(), now=NOW, valid_for=timedelta(hours=1))
    later = NOW + timedelta(hours=1)
    refused(tmp_path, lambda: east.enrolment.accept(grant, now=later), "the grant expired")
    assert east.enrolment.load() is None


def test_a_grant_for_another_cluster_mesh_or_request_is_refused(
    tmp_path: Path, root: Root, east: Cluster, west: Cluster
) -> None:
    grant = root.grant(east.ask(), now=NOW)
    refused(tmp_path, lambda: west.enrolment.accept(grant, now=NOW), "has not asked to join")
    west.ask()
    refused(tmp_path, lambda: west.enrolment.accept(grant, now=NOW), "for the cluster east, this is west")
    east.ask(fresh=True)
    refused(tmp_path, lambda: east.enrolment.accept(grant, now=NOW), "waits for")
    other_mesh = Root.init(tmp_path / "other", MeshDomain("other.test"), now=NOW)
    stranger = Cluster(tmp_path / "stranger", EAST)
    elsewhere = stranger.enrolment.request(stranger.about, domain=MeshDomain("other.test"), now=NOW)
    foreign = other_mesh.grant(elsewhere, now=NOW)
    refused(tmp_path, lambda: east.enrolment.accept(foreign, now=NOW), r"for the mesh other\.test")


def test_the_same_grant_twice_changes_nothing_and_another_one_is_refused(
    tmp_path: Path, root: Root, east: Cluster
) -> None:
    grant = root.grant(east.ask(), now=NOW)
    other = root.grant(east.ask(fresh=True), now=NOW)
    east.enrolment.accept(other, now=NOW)
    before = tree(tmp_path)
    assert east.enrolment.accept(other, now=NOW + timedelta(days=2))[0].cluster == EAST
    assert tree(tmp_path) == before
    refused(tmp_path, lambda: east.enrolment.accept(grant, now=NOW), "a member of mesh.test already")
    refused(tmp_path, east.ask, "a member of mesh.test already")


def test_a_data_directory_that_lies_open_is_refused(tmp_path: Path, root: Root, east: Cluster) -> None:
    east.directory.mkdir(mode=0o755)
    os.chmod(east.directory, 0o755)
    refused(tmp_path, east.ask, "open to others")
    east.directory.chmod(0o700)
    east.enrolment.accept(root.grant(east.ask(), now=NOW), now=NOW)
    (east.directory / "ca-key.pem").chmod(0o640)
    refused(tmp_path, east.enrolment.load, "open to others")


def test_a_key_and_a_grant_that_do_not_belong_together_are_refused(
    tmp_path: Path, root: Root, east: Cluster, west: Cluster
) -> None:
    for cluster in (east, west):
        cluster.enrolment.accept(root.grant(cluster.ask(), now=NOW), now=NOW)
    (west.directory / "ca-key.pem").replace(east.directory / "ca-key.pem")
    refused(tmp_path, east.enrolment.load, "do not belong together")


def test_a_broken_grant_on_disk_is_refused_and_a_broken_request_is_made_anew(root: Root, east: Cluster) -> None:
    first = east.ask()
    (east.directory / "join-request.json").write_text("{")
    second = east.ask()
    assert second.id != first.id
    east.enrolment.accept(root.grant(second, now=NOW), now=NOW)
    (east.directory / "grant.json").write_text("{")
    with pytest.raises(AuthorityRefused, match=r"grant\.json"):
        east.enrolment.load()


def test_replicas_that_ask_at_once_ask_the_same(east: Cluster) -> None:
    with ThreadPoolExecutor(8) as pool:
        replicas = [Enrolment(east.directory) for _ in range(8)]
        asked = list(pool.map(lambda replica: replica.request(east.about, domain=DOMAIN, now=NOW), replicas))
    assert len({request.id for request in asked}) == 1


def _grant(directory: Path, request: joining.JoinRequest) -> str:
    try:
        return Root.open(directory, now=NOW).grant(request, now=NOW).request_id
    except JoinRefused as error:
        return error.message


def test_of_two_operators_that_grant_one_name_at_once_one_succeeds(tmp_path: Path, root: Root) -> None:
    requests = [Cluster(tmp_path / str(number), EAST).ask() for number in range(4)]
    requests += [Cluster(tmp_path, ClusterName(f"c{number}")).ask() for number in range(4)]
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        answers = list(pool.map(_grant, [tmp_path / "root"] * len(requests), requests))
    granted = [request for request, answer in zip(requests, answers, strict=True) if answer == request.id]
    assert sorted(request.cluster.name for request in granted) == ["c0", "c1", "c2", "c3", "east"]
    assert {member.name for member in root.members()} == {"c0", "c1", "c2", "c3", "east"}


def test_an_authority_can_be_described(root: Root, east: Cluster) -> None:
    authority, _ = east.enrolment.accept(root.grant(east.ask(), now=NOW), now=NOW)
    assert "CN=east" in describe(authority.certificate).subject
    assert describe(authority.certificate).is_ca
