"""The root of a mesh on disk: it is made and opened whole, and asks whoever wants something of it for what it needs."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.files import tree
from tests.support.operators import Crash, CutOff, Operator, refused
from tests.support.trust import DOMAIN, EAST, init_root, open_root
from trust.bundle import root_certificates
from trust.certificates import certificate_pem
from trust.custody import FileCustody, needs_passphrase, remembered
from trust.refusals import AuthorityRefused, Refusal
from trust.root import Root
from trust.rotation import RootStage
from trust.spiffe import MeshDomain

NOW = datetime.now(UTC)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return init_root(tmp_path / "root", now=NOW)


@pytest.fixture
def east(tmp_path: Path) -> Operator:
    return Operator(tmp_path, EAST, now=NOW)


def test_a_root_is_made_and_opened(tmp_path: Path) -> None:
    made = init_root(tmp_path / "deep" / "root", now=NOW)
    opened = open_root(tmp_path / "deep" / "root", now=NOW)
    assert opened.certificate == made.certificate
    assert opened.domain == DOMAIN
    assert opened.members() == ()
    assert {path: oct(mode) for path, (mode, _) in tree(tmp_path / "deep").items()} == {
        "root": "0o40700",
        "root/root-1-key.pem": "0o100600",
        "root/root.pem": "0o100600",
        "root/bundles.json": "0o100600",
        "root/members.json": "0o100600",
    }
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["root"]


def test_an_empty_directory_may_become_a_root_and_any_other_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o755)
    init_root(tmp_path / "empty", now=NOW)
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700
    refused(tmp_path, lambda: init_root(tmp_path / "empty", now=NOW), "cannot become")
    (tmp_path / "file").write_text("mine")
    refused(tmp_path, lambda: init_root(tmp_path / "file", now=NOW), "cannot become")


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
        lambda: init_root(tmp_path / "root", MeshDomain(domain), now=NOW, lifetime=lifetime, passphrase=passphrase),
        match,
    )


def test_a_root_with_a_passphrase_opens_with_it_alone(tmp_path: Path) -> None:
    directory = tmp_path / "root"
    init_root(directory, now=NOW, passphrase=b"correct horse")
    assert needs_passphrase("", directory=directory)
    assert open_root(directory, now=NOW, passphrase=b"correct horse").domain == DOMAIN
    refused(tmp_path, lambda: open_root(directory, now=NOW), "no passphrase was given")
    refused(tmp_path, lambda: open_root(directory, now=NOW, passphrase=b"battery staple"), "does not open")


def test_a_directory_that_is_no_root_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, lambda: open_root(tmp_path / "nowhere", now=NOW), "holds no root")
    (tmp_path / "empty").mkdir(mode=0o700)
    refused(tmp_path, lambda: open_root(tmp_path / "empty", now=NOW), "holds no root")


def test_a_directory_of_a_newer_isthmus_or_a_broken_one_is_refused(tmp_path: Path, root: Root) -> None:
    directory = tmp_path / "root"
    said = (directory / "bundles.json").read_text()
    (directory / "bundles.json").write_text(said.replace('"version": 1', '"version": 2', 1))
    refused(tmp_path, lambda: open_root(directory, now=NOW), "has version 2")
    (directory / "bundles.json").write_text("{")
    refused(tmp_path, lambda: open_root(directory, now=NOW), "broken")


def test_a_root_that_lies_open_or_apart_or_broken_is_refused(tmp_path: Path, root: Root, east: Operator) -> None:
    directory = tmp_path / "root"
    other = tmp_path / "other"
    init_root(other, now=NOW)
    (directory / "root-1-key.pem").chmod(0o644)
    refused(tmp_path, lambda: open_root(directory, now=NOW), "open to others")
    (directory / "root-1-key.pem").chmod(0o600)
    (other / "root-1-key.pem").replace(directory / "root-1-key.pem")
    refused(tmp_path, lambda: open_root(directory, now=NOW), "do not belong together")
    request = east.ask()
    (directory / "members.json").write_text("{")
    refused(tmp_path, lambda: root.grant(request, now=NOW), "broken")
    (directory / "members.json").write_text('{"version": 2}')
    refused(tmp_path, lambda: root.grant(request, now=NOW), "version 2")
    (directory / "members.json").unlink()
    refused(tmp_path, lambda: root.grant(request, now=NOW), "does not exist")


def test_a_root_that_expired_signs_nobody_but_still_says_who_follows(tmp_path: Path, east: Operator) -> None:
    init_root(tmp_path / "root", now=NOW, lifetime=timedelta(days=1))
    late = NOW + timedelta(days=2)
    root = open_root(tmp_path / "root", now=late)
    request = east.ask()
    refused(tmp_path, lambda: root.grant(request, now=late), "the issuing certificate expired")
    assert root.announce(now=late).sequence == 2
    assert root.sign_with_next(now=late).sequence == 3
    assert root.grant(request, now=late).generation == 1


def test_keys_may_be_in_another_place_which_is_written_down(tmp_path: Path) -> None:
    class Elsewhere(FileCustody):
        where = "elsewhere:"

    custody = Elsewhere(tmp_path / "keys")
    Root.init(tmp_path / "root", DOMAIN, custody=custody, now=NOW)
    assert remembered(tmp_path / "root") == "elsewhere:"
    assert not [path for path in (tmp_path / "root").iterdir() if "key.pem" in path.name]
    assert Root.open(tmp_path / "root", custody=custody, now=NOW).domain == DOMAIN
    refused(
        tmp_path, lambda: Root.init(tmp_path / "other", DOMAIN, custody=custody, now=NOW), "a key of a root already"
    )


def test_an_init_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    directory = tmp_path / "root"
    for at in range(8):
        custody = CutOff(FileCustody(directory), at=at)
        with contextlib.suppress(Crash):
            Root.init(directory, DOMAIN, custody=custody, now=NOW)
            break
        with pytest.raises(Refusal):
            open_root(directory, now=NOW)
        other = MeshDomain("other.test")
        if (directory / "bundles.json").exists():
            refused(tmp_path, lambda other=other: init_root(directory, other, now=NOW), "cannot become")  # type: ignore[misc]
    assert at > 1, "there was something to cut off"
    assert open_root(directory, now=NOW).stage is RootStage.IDLE
    assert sorted(path.name for path in directory.glob("*-key.pem")) == ["root-1-key.pem"]


def test_of_those_who_make_one_root_at_once_one_succeeds(tmp_path: Path) -> None:
    def make(number: int) -> bool:
        try:
            init_root(tmp_path / "root", now=NOW)
        except AuthorityRefused:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(make, range(4))) == 1
    assert open_root(tmp_path / "root", now=NOW).bundle.sequence == 1


def test_of_those_who_announce_at_once_all_announce_one_root(tmp_path: Path, root: Root) -> None:
    with ThreadPoolExecutor(4) as pool:
        roots = [open_root(tmp_path / "root", now=NOW) for _ in range(4)]
        announced = list(pool.map(lambda one: one.announce(now=NOW), roots))
    assert announced == [root.bundle] * 4
    assert root.bundle.sequence == 2
    assert sorted(path.name for path in (tmp_path / "root").glob("*-key.pem")) == ["root-1-key.pem", "root-2-key.pem"]


def test_the_certificate_for_people_is_that_of_the_root_that_signs(tmp_path: Path, root: Root) -> None:
    root.announce(now=NOW)
    old = (tmp_path / "root" / "root.pem").read_bytes()
    assert old == certificate_pem(root.certificate)
    root.sign_with_next(now=NOW)
    assert (tmp_path / "root" / "root.pem").read_bytes() == certificate_pem(root.certificate) != old
    (tmp_path / "root" / "root.pem").write_bytes(old)  # as a crash right after the bundle leaves it
    opened = open_root(tmp_path / "root", now=NOW)
    assert (tmp_path / "root" / "root.pem").read_bytes() == certificate_pem(opened.certificate)


def test_the_next_root_lives_as_long_as_the_one_before_was_made_to_live(tmp_path: Path) -> None:
    root = init_root(tmp_path / "root", now=NOW, lifetime=timedelta(days=90))
    later = (NOW + timedelta(days=60)).replace(microsecond=0)
    _, following = root_certificates(root.announce(now=later))
    assert following.not_valid_after_utc == later + timedelta(days=90)
