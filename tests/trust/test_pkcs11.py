"""Keys in a token never leave it; a token that fails is asked again, and says what is wrong."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pkcs11
import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pkcs11 import Attribute, KeyType, ObjectClass

from tests.support.softhsm import SoftHsm, SoftToken, soft_hsm
from trust.certificates import CertificateRefused, key_fingerprint
from trust.custody import Custody, CustodyRefused, KeyMissing, needs_passphrase, open_custody, remember, remembered
from trust.pkcs11 import Pkcs11Custody

ECDSA = ec.ECDSA(hashes.SHA256())


@pytest.fixture(scope="module")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftHsm]:
    with soft_hsm(tmp_path_factory.mktemp("softhsm")) as made:
        yield made


@pytest.fixture
def token(hsm: SoftHsm) -> SoftToken:
    return hsm.token()


@pytest.fixture
def ring(token: SoftToken) -> Custody:
    return Pkcs11Custody(token.uri())


def objects(token: SoftToken) -> list[dict[Attribute, object]]:
    """What the token says of its objects, asked without our code."""
    asked = (Attribute.CLASS, Attribute.LABEL, Attribute.TOKEN, Attribute.ID)
    session = pkcs11.lib(str(token.module)).get_token(token_label=token.label).open()
    try:
        return [{attribute: one[attribute] for attribute in asked} for one in session.get_objects()]
    finally:
        session.close()


def test_a_key_never_leaves_its_token(token: SoftToken, ring: Custody) -> None:
    key = ring.create("ca-1")
    library = pkcs11.lib(str(token.module))
    found = library.get_token(token_label=token.label).open().get_key(ObjectClass.PRIVATE_KEY, label="ca-1")
    assert found[Attribute.TOKEN]
    assert found[Attribute.PRIVATE]
    assert found[Attribute.SENSITIVE]
    assert found[Attribute.ALWAYS_SENSITIVE]
    assert found[Attribute.NEVER_EXTRACTABLE]
    assert not found[Attribute.EXTRACTABLE]
    assert found[Attribute.KEY_TYPE] == KeyType.EC
    assert found[Attribute.SIGN]
    assert not any(found[other] for other in (Attribute.DECRYPT, Attribute.UNWRAP, Attribute.DERIVE))
    with pytest.raises(pkcs11.AttributeSensitive):
        found[Attribute.VALUE]
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    with pytest.raises(UnsupportedAlgorithm, match="does not leave"):
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    with pytest.raises(UnsupportedAlgorithm, match="does not leave"):
        key.private_numbers()
    with pytest.raises(UnsupportedAlgorithm, match="nothing else"):
        key.exchange(ec.ECDH(), key.public_key())


@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA384(), hashes.SHA512()])
def test_a_key_signs_by_sha_256_alone(ring: Custody, algorithm: hashes.HashAlgorithm) -> None:
    with pytest.raises(UnsupportedAlgorithm, match="SHA-256"):
        ring.create("ca-1").sign(b"words", ec.ECDSA(algorithm))


def test_a_key_that_may_leave_its_token_is_refused(token: SoftToken, ring: Custody) -> None:
    assert ring.names() == ()  # logs this process in
    with pkcs11.lib(str(token.module)).get_token(token_label=token.label).open(rw=True) as session:
        curve = {Attribute.EC_PARAMS: pkcs11.util.ec.encode_named_curve_parameters("secp256r1")}
        parameters = session.create_domain_parameters(KeyType.EC, curve, local=True)
        parameters.generate_keypair(id=b"1", label="ca-1", store=True, private_template={Attribute.EXTRACTABLE: True})
    assert ring.names() == ("ca-1",)
    with pytest.raises(CustodyRefused, match="may leave the token"):
        ring.load("ca-1")


def test_a_key_of_another_curve_is_refused(token: SoftToken, ring: Custody) -> None:
    assert ring.names() == ()
    with pkcs11.lib(str(token.module)).get_token(token_label=token.label).open(rw=True) as session:
        curve = {Attribute.EC_PARAMS: pkcs11.util.ec.encode_named_curve_parameters("secp384r1")}
        parameters = session.create_domain_parameters(KeyType.EC, curve, local=True)
        parameters.generate_keypair(id=b"1", label="ca-1", store=True, private_template={Attribute.EXTRACTABLE: False})
    with pytest.raises(CustodyRefused, match="not a P-256 key"):
        ring.load("ca-1")


def test_clusters_that_share_a_token_see_their_own_keys(token: SoftToken) -> None:
    east, west, plain = (Pkcs11Custody(token.uri(extra)) for extra in (";object=east", ";object=west", ""))
    easts, wests = east.create("ca-1"), west.create("ca-1")
    assert easts.public_key() != wests.public_key()
    assert east.names() == west.names() == ("ca-1",)
    assert plain.names() == ("east-ca-1", "west-ca-1")
    east.destroy("ca-1")
    assert east.names() == ()
    assert west.load("ca-1").public_key() == wests.public_key()
    assert {one[Attribute.LABEL] for one in objects(token)} == {"west-ca-1"}


def test_two_keys_of_one_label_are_not_guessed_between(token: SoftToken, ring: Custody) -> None:
    ring.create("ca-1")
    with pkcs11.lib(str(token.module)).get_token(token_label=token.label).open(rw=True) as session:
        curve = {Attribute.EC_PARAMS: pkcs11.util.ec.encode_named_curve_parameters("secp256r1")}
        session.create_domain_parameters(KeyType.EC, curve, local=True).generate_keypair(
            id=b"1", label="ca-1", store=True, private_template={Attribute.EXTRACTABLE: False}
        )
    with pytest.raises(CustodyRefused, match="2 keys labelled ca-1"):
        Pkcs11Custody(token.uri()).load("ca-1")


def test_a_destroyed_key_signs_no_more_for_whoever_holds_it(token: SoftToken, ring: Custody) -> None:
    key = ring.create("ca-1")
    key.sign(b"words", ECDSA)
    Pkcs11Custody(token.uri()).destroy("ca-1")
    assert objects(token) == []
    with pytest.raises(KeyMissing):
        key.sign(b"words", ECDSA)


def test_a_key_that_was_made_anew_is_not_taken_for_the_old_one(ring: Custody) -> None:
    key = ring.create("ca-1")
    ring.destroy("ca-1")
    ring.create("ca-1")
    with pytest.raises(CustodyRefused, match="not the one that it was"):
        key.sign(b"words", ECDSA)


def test_a_module_that_was_started_anew_is_used_again(token: SoftToken, ring: Custody) -> None:
    """What the restart of an HSM's daemon does: every session and every number of a key is void."""
    key = ring.create("ca-1")
    other = Pkcs11Custody(token.uri()).create("ca-2")
    for _ in range(3):
        pkcs11.lib(str(token.module)).finalize()
        for one in (other, key):
            one.public_key().verify(one.sign(b"words", ECDSA), b"words", ECDSA)
    pkcs11.lib(str(token.module)).finalize()
    ring.destroy("ca-1")
    assert ring.names() == ("ca-2",)


def test_a_token_that_was_pulled_is_named_and_used_again_when_it_is_back(token: SoftToken, ring: Custody) -> None:
    key = ring.create("ca-1")
    away = token.directory.with_name("away")
    token.directory.rename(away)
    try:
        token.directory.mkdir()
        for _ in range(2):
            with pytest.raises(CustodyRefused, match=f"token {token.label}") as refusal:
                key.sign(b"words", ECDSA)
            assert refusal.value.hint
    finally:
        token.directory.rmdir()
        away.rename(token.directory)
    key.public_key().verify(key.sign(b"words", ECDSA), b"words", ECDSA)


def test_a_wrong_pin_is_tried_once_and_told_to_nobody(
    token: SoftToken, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    Pkcs11Custody(token.uri()).create("ca-1")
    pkcs11.lib(str(token.module)).finalize()  # nobody is logged in
    wrong = Pkcs11Custody(token.uri(pin=False), b"wrong-pin-1234")
    with pytest.raises(CustodyRefused, match="refuses the PIN") as refusal:
        wrong.load("ca-1")
    printed = f"{refusal.value!r} {refusal.value.hint} {wrong!r} {vars(refusal.value)} {refusal.value.__cause__!r}"
    for _ in range(20):  # a token locks itself after a few; SoftHSM does not, so count its answers
        with pytest.raises(CustodyRefused, match="not tried again") as refusal:
            wrong.load("ca-1")
        printed += f"{refusal.value!r} {refusal.value.hint}"
    assert "wrong-pin-1234" not in printed + caplog.text
    right = Pkcs11Custody(token.uri(pin=False), token.pin.encode())
    assert right.names() == ("ca-1",)
    assert token.pin not in f"{right!r} {right.where} {caplog.text}"


def test_a_pin_is_read_when_it_is_needed(token: SoftToken) -> None:
    """The file is replaced when the PIN changes: what was refused is tried again when it is another one."""
    right = token.pin_file.read_text()
    token.pin_file.write_text("wrong\n")
    ring = Pkcs11Custody(token.uri())
    with pytest.raises(CustodyRefused, match="refuses the PIN"):
        ring.names()
    token.pin_file.write_text(right)
    assert ring.names() == ()


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"", 0o600, "holds no PIN"),
        (b"\n", 0o600, "holds no PIN"),
        (b"1" * 2000, 0o600, "holds no PIN"),
        (b"\xff\xfe\n", 0o600, "not UTF-8"),
        (b"1234\n", 0o644, "open to everybody"),
        (b"1234\n", 0o602, "open to everybody"),
        (None, 0, "cannot be read"),
    ],
)
def test_a_pin_that_cannot_be_used_is_refused_with_a_hint(
    token: SoftToken, content: bytes | None, mode: int, said: str
) -> None:
    token.pin_file.unlink()
    if content is not None:
        token.pin_file.write_bytes(content)
        token.pin_file.chmod(mode)
    with pytest.raises(CustodyRefused, match=said) as refusal:
        Pkcs11Custody(token.uri()).names()
    assert refusal.value.hint
    assert "1234" not in f"{refusal.value.message}"


def test_no_pin_at_all_is_refused_with_a_hint(token: SoftToken, tmp_path: Path) -> None:
    pkcs11.lib(str(token.module)).finalize()
    with pytest.raises(CustodyRefused, match="wants a PIN") as refusal:
        Pkcs11Custody(token.uri(pin=False)).names()
    assert "pin-source" in refusal.value.hint
    assert needs_passphrase(token.uri(pin=False), directory=tmp_path)
    assert not needs_passphrase(token.uri(), directory=tmp_path)


def test_a_token_that_is_not_there_is_named(token: SoftToken) -> None:
    with pytest.raises(CustodyRefused, match="token nobody is not there") as refusal:
        Pkcs11Custody(token.uri().replace(token.label, "nobody")).names()
    assert refusal.value.hint


@pytest.mark.parametrize("content", [None, b"no library"])
def test_a_module_that_is_not_there_is_named(tmp_path: Path, content: bytes | None) -> None:
    module = tmp_path / "module.so"
    if content is not None:
        module.write_bytes(content)
    with pytest.raises(CustodyRefused, match=f"module {module} does not start") as refusal:
        Pkcs11Custody(f"pkcs11:token=x?module-path={module}", b"1234").names()
    assert refusal.value.hint


def test_without_the_library_the_extra_is_named(tmp_path: Path) -> None:
    """In a process of its own, where `import pkcs11` fails."""
    program = (
        "import sys; sys.modules['pkcs11'] = None\n"
        "from pathlib import Path\n"
        "from trust.custody import CustodyRefused, open_custody\n"
        "open_custody('', directory=Path('x'))\n"
        "try: open_custody('pkcs11:token=x?module-path=/y', directory=Path('x'))\n"
        "except CustodyRefused as error: print(error.message, error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert "python-pkcs11" in done.stdout
    assert "isthmus[pkcs11]" in done.stdout


def test_processes_that_hold_a_lock_while_they_make_keys_get_one(
    hsm: SoftHsm, token: SoftToken, tmp_path: Path
) -> None:
    """As replicas of a control plane do, that share a data directory."""
    program = (
        "import sys; from pathlib import Path\n"
        "from trust import files\n"
        "from trust.certificates import key_fingerprint\n"
        "from trust.custody import load_or_create, open_custody\n"
        "directory = Path(sys.argv[2])\n"
        "ring = open_custody(sys.argv[1], directory=directory)\n"
        "ring.names()\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for number in range(5):\n"
        "    with files.locked(directory): key = load_or_create(ring, f'ca-{number}')\n"
        "    print(key_fingerprint(key.public_key()))\n"
    )
    tmp_path.chmod(0o700)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, token.uri(), str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **hsm.environment},
        )
        for _ in range(3)
    ]
    try:
        for one in started:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        for one in started:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        answers = {one.communicate(timeout=30)[0] for one in started}
    finally:
        for one in started:
            one.kill()
    mine = Pkcs11Custody(token.uri())
    assert answers == {"".join(f"{key_fingerprint(mine.load(name).public_key())}\n" for name in mine.names())}
    assert mine.names() == tuple(f"ca-{number}" for number in range(5))


def test_the_ring_of_an_authority_is_remembered_by_its_uri(token: SoftToken, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    made = open_custody(token.uri(";object=mesh"), directory=tmp_path)
    key = made.create("root-1")
    remember(tmp_path, made.where)
    assert token.pin not in (tmp_path / "keys-in").read_text()
    again = open_custody(remembered(tmp_path), directory=tmp_path)
    assert again.load("root-1").public_key() == key.public_key()


def test_a_certificate_is_refused_as_the_token_refuses(token: SoftToken, ring: Custody) -> None:
    """The refusal comes through the library that makes certificates as it is."""
    from datetime import UTC, datetime, timedelta

    from trust.certificates import make_root
    from trust.spiffe import MeshDomain

    key = ring.create("root-1")
    ring.destroy("root-1")
    with pytest.raises((CustodyRefused, CertificateRefused)) as refusal:
        make_root(key, MeshDomain("mesh.example"), now=datetime.now(UTC), lifetime=timedelta(days=1))
    assert refusal.type is KeyMissing
