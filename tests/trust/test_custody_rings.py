"""Every kind of ring keeps the same promises: files, a Kubernetes Secret, a token."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from tests.support.secret_api import MemorySecret
from tests.support.softhsm import SoftHsm, soft_hsm
from trust.certificates import check_request, key_fingerprint, make_intermediate, make_request, make_root
from trust.custody import Custody, CustodyRefused, FileCustody, KeyExists, KeyMissing, load_or_create, open_custody
from trust.secret_custody import SecretCustody
from trust.spiffe import ClusterName, MeshDomain

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
ECDSA = ec.ECDSA(hashes.SHA256())

Opener = Callable[[], Custody]
"""Opens one and the same ring, as another process would."""


@pytest.fixture(scope="module")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftHsm]:
    with soft_hsm(tmp_path_factory.mktemp("softhsm")) as made:
        yield made


@pytest.fixture(params=["files", "encrypted files", "secret", "encrypted secret", "token"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    match request.param:
        case "files":
            return lambda: FileCustody(tmp_path / "data")
        case "encrypted files":
            return lambda: FileCustody(tmp_path / "data", b"correct horse")
        case "secret":
            api = MemorySecret()
            return lambda: SecretCustody(api)
        case "encrypted secret":
            api = MemorySecret()
            return lambda: SecretCustody(api, b"correct horse")
        case _:
            token = request.getfixturevalue("hsm").token()
            return lambda: open_custody(token.uri(), directory=tmp_path)


def test_a_key_is_made_once_found_again_and_destroyed(opened: Opener) -> None:
    ring = opened()
    assert ring.names() == ()
    made = {name: ring.create(name).public_key() for name in ("root-2", "root-1", "ca-10")}
    assert opened().names() == ("ca-10", "root-1", "root-2")
    assert len({key_fingerprint(public) for public in made.values()}) == 3
    for name, public in made.items():
        assert opened().load(name).public_key() == public
    ring.destroy("root-1")
    assert opened().names() == ("ca-10", "root-2")
    with pytest.raises(KeyMissing, match=r"no key .*root-1") as refusal:
        opened().load("root-1")
    assert refusal.value.hint
    ring.destroy("root-1")  # an interrupted step is done again
    assert ring.create("root-1").public_key() not in made.values(), "the name is free again"
    assert opened().load("root-2").public_key() == made["root-2"]


def test_a_key_is_never_overwritten(opened: Opener) -> None:
    made = opened().create("ca-1")
    with pytest.raises(KeyExists, match=r"ca-1.* already") as refusal:
        opened().create("ca-1")
    assert refusal.value.hint
    assert opened().load("ca-1").public_key() == made.public_key()


@pytest.mark.parametrize("name", ["", "../ca", "a/b", "CA", "-ca", "ca-", "x" * 64, "ca\n", "ca-1\0", "cä", "*"])
def test_a_name_that_is_no_name_is_refused_before_anything_is_asked(opened: Opener, name: str) -> None:
    ring = opened()
    for ask in (ring.create, ring.load, ring.destroy):
        with pytest.raises(CustodyRefused, match="not a name for a key"):
            ask(name)


def test_a_key_signs_what_its_public_half_verifies(opened: Opener) -> None:
    made = opened().create("ca-1")
    again = opened().load("ca-1")
    for key in (made, again):
        assert isinstance(key.curve, ec.SECP256R1)
        assert key.key_size == 256
        key.public_key().verify(key.sign(b"some words", ECDSA), b"some words", ECDSA)
        digest = hashes.Hash(hashes.SHA256())
        digest.update(b"some words")
        signature = key.sign(digest.finalize(), ec.ECDSA(Prehashed(hashes.SHA256())))
        key.public_key().verify(signature, b"some words", ECDSA)
        with pytest.raises(InvalidSignature):
            key.public_key().verify(signature, b"other words", ECDSA)


def test_certificates_and_requests_are_signed_by_the_keys_of_a_ring(opened: Opener) -> None:
    east, domain = ClusterName("east"), MeshDomain("mesh.example")
    root_key, key = opened().create("root-1"), opened().create("ca-1")
    root = make_root(root_key, domain, now=NOW, lifetime=timedelta(days=3650))
    root.verify_directly_issued_by(root)
    public = check_request(make_request(key, east, domain, "statement"), east, domain, "statement")
    made = make_intermediate(
        root, root_key, public_key=public, cluster=east, domain=domain, now=NOW, lifetime=timedelta(days=365)
    )
    made.verify_directly_issued_by(root)
    assert made.public_key() == key.public_key()


def test_of_many_that_make_a_key_at_once_at_most_one_succeeds(opened: Opener) -> None:
    made: list[ec.EllipticCurvePrivateKey] = []
    start = threading.Barrier(6)

    def make() -> None:
        ring = opened()
        start.wait()
        with contextlib.suppress(KeyExists):
            made.append(ring.create("ca-1"))

    _all_at_once(make, 6)
    assert len(made) <= 1
    if made:
        assert opened().load("ca-1").public_key() == made[0].public_key()


def test_all_that_load_or_create_at_once_get_one_key(opened: Opener) -> None:
    found: list[str] = []
    start = threading.Barrier(4)

    def ask() -> None:
        ring = opened()
        start.wait()
        found.append(key_fingerprint(load_or_create(ring, "ca-1").public_key()))

    _all_at_once(ask, 4)
    assert len(found) == 4
    assert len(set(found)) == 1
    assert opened().names() == ("ca-1",)


def test_keys_sign_in_many_threads(opened: Opener) -> None:
    keys = [opened().create("ca-1"), opened().load("ca-1"), opened().create("ca-2")]
    signed: list[bytes] = []

    def sign(key: ec.EllipticCurvePrivateKey) -> None:
        for _ in range(25):
            signature = key.sign(b"some words", ECDSA)
            key.public_key().verify(signature, b"some words", ECDSA)
            signed.append(signature)

    threads = [threading.Thread(target=sign, args=(key,)) for key in keys for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(signed)) == 150


def test_what_is_printed_of_a_ring_and_its_keys_holds_no_secret(opened: Opener) -> None:
    ring = opened()
    printed = f"{ring!r} {ring} {ring.where} {ring.create('ca-1')!r}"
    assert "horse" not in printed
    assert "PRIVATE" not in printed


def _all_at_once(work: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
