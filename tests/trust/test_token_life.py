"""A mesh whose root and intermediates never leave a token lives through joining, renewal and a rotation of the root."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.lifecycle import DOMAIN, EAST, Life, live
from tests.support.openssl import verify_strictly
from tests.support.softhsm import SoftHsm, SoftToken, soft_hsm
from trust.custody import CustodyRefused, open_custody, remembered
from trust.enrolment import Enrolment
from trust.issuance import IssuanceRefused, Issuer
from trust.pkcs11 import TokenKey
from trust.root import Root
from trust.spiffe import Identity
from trust.verification import check_chain

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftHsm]:
    with soft_hsm(tmp_path_factory.mktemp("softhsm")) as made:
        yield made


@pytest.fixture(scope="module")
def token(hsm: SoftHsm) -> SoftToken:
    return hsm.token()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("life")


@pytest.fixture(scope="module")
def life(token: SoftToken, directory: Path) -> Life:
    root = open_custody(token.uri(";object=root"), directory=directory / "root")
    east = open_custody(token.uri(";object=east"), directory=directory / "data")
    return live(directory, root_keys=root, cluster_keys=east, now=NOW)


def test_keys_come_and_go_in_the_token_and_none_is_ever_in_a_file(life: Life, directory: Path) -> None:
    assert life.root_keys == (("root-1",), ("root-1", "root-2"), ("root-2",))
    assert life.cluster_keys == (("ca-1",), ("ca-1", "ca-2"), ("ca-2",), ("ca-3",))
    for file in directory.rglob("*"):
        assert not file.is_file() or b"PRIVATE KEY" not in file.read_bytes()


def test_openssl_accepts_what_the_token_signed_at_every_stage(life: Life, tmp_path: Path) -> None:
    for when, chain in life.chains.items():
        said = verify_strictly(
            tmp_path, chain.leaf, root=chain.root, between=(chain.intermediate,), purpose="sslserver", at=NOW
        )
        assert said.endswith("leaf.pem: OK"), f"{when}: {said}"
        assert check_chain(*chain.certificates, domain=DOMAIN, now=NOW).cluster == EAST


def test_the_root_directory_remembers_the_token_and_not_its_pin(life: Life, token: SoftToken, directory: Path) -> None:
    root = directory / "root"
    custody = open_custody(remembered(root), directory=root)
    assert custody.where == token.uri(";object=root")
    assert Root.open(root, custody=custody, now=NOW).domain == DOMAIN
    for file in directory.rglob("*"):
        assert not file.is_file() or token.pin.encode() not in file.read_bytes()


def test_an_issuer_whose_token_is_gone_refuses_and_issues_again_when_it_is_back(
    life: Life, token: SoftToken, directory: Path
) -> None:
    custody = open_custody(token.uri(";object=east"), directory=directory / "data")
    member = Enrolment(directory / "data", custody).load()
    assert member is not None
    assert isinstance(member.active.key, TokenKey)
    issuer = Issuer(member.active, member.bundle)
    away = token.directory.with_name("away")
    token.directory.rename(away)
    try:
        with pytest.raises(IssuanceRefused, match=r"(module|token) ") as refusal:
            issuer.issue(Identity(EAST, "shop", "cart"), now=NOW)
        assert refusal.value.hint
        with pytest.raises(CustodyRefused):
            Enrolment(directory / "data", open_custody(token.uri(";object=east"), directory=directory)).load()
    finally:
        away.rename(token.directory)
    assert issuer.issue(Identity(EAST, "shop", "cart"), now=NOW).identity.cluster == EAST
