"""Keys of the root and of clusters are rotated on disk: whoever is believed before is believed at every step after."""

import contextlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.operators import Crash, CutOff, Operator, keys_in, member, refused
from tests.support.trust import DOMAIN, EAST, WEST, init_root, is_anchored, open_root
from trust.bundle import (
    TrustBundle,
    bundle_digest,
    make_bundle,
    make_revocation,
    root_certificates,
    root_fingerprints,
)
from trust.certificates import CertificateRefused, make_root, new_key
from trust.custody import FileCustody
from trust.enrolment import Enrolment, Intermediate
from trust.issuance import Issuer
from trust.refusals import Refusal
from trust.root import Root
from trust.rotation import RootStage
from trust.spiffe import ClusterName, control_identity
from trust.verification import check_chain

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


def is_believed(authority: Intermediate, bundle: TrustBundle) -> bool:
    """Says whether who trusts `bundle` takes a leaf that `authority` issues."""
    svid = Issuer(authority, bundle).issue(control_identity(authority.cluster), now=NOW)
    leaf, intermediate = x509.load_pem_x509_certificates(svid.certificate_chain_pem)
    for root in root_certificates(bundle):
        with contextlib.suppress(CertificateRefused):
            return check_chain(leaf, intermediate, root, domain=DOMAIN, now=NOW) == svid.identity
    return False


def check_all_believed(members: Iterable[Operator], root: Root) -> None:
    held = [operator.member for operator in members]
    for one in held:
        for other in held:
            assert is_believed(one.active, other.bundle), f"{one.active.cluster} at {other.active.cluster}"
        assert is_believed(one.active, root.bundle)


# The whole way


def test_a_root_is_rotated_and_nobody_is_ever_refused(
    tmp_path: Path, root: Root, east: Operator, west: Operator
) -> None:
    members = (east, west)
    old = root.certificate
    first = east.member.active
    assert root.stage is RootStage.IDLE

    announced = root.announce(now=NOW)
    assert root.stage is RootStage.ANNOUNCED
    assert root_certificates(announced)[0] == root.certificate == old
    for operator in members:
        check_all_believed(members, root)
        assert operator.hear(root).bundle == announced

    signing = root.sign_with_next(now=NOW)
    assert root.stage is RootStage.SIGNING
    assert root.certificate == root_certificates(signing)[0] == root_certificates(announced)[1]
    assert signing.generations == {EAST: 2, WEST: 2}
    for operator in members:
        check_all_believed(members, root)
        operator.hear(root)
        check_all_believed(members, root)
        renewed = operator.renew(root)
        assert (renewed.active.generation, renewed.active.root) == (2, root.certificate)
        assert [one.generation for one in renewed.older] == [1]
        check_all_believed(members, root)
        assert is_believed(first, root.bundle), "a leaf that a proxy still holds"

    retired = root.retire(now=NOW)
    assert root.stage is RootStage.RETIRING
    assert retired.roots == signing.roots[:1]
    for operator in members:
        check_all_believed(members, root)
        operator.hear(root)
        operator.retire()
    check_all_believed(members, root)
    assert not is_believed(first, root.bundle)
    assert keys_in(tmp_path / "root") == ["root-1", "root-2"]

    root.finish()
    assert root.stage is RootStage.IDLE
    assert keys_in(tmp_path / "root") == ["root-2"]
    assert keys_in(east.directory) == ["ca-2"]
    assert open_root(tmp_path / "root", now=NOW).certificate != old

    south = member(tmp_path, SOUTH, root, now=NOW)
    assert (south.member.active.generation, south.member.active.root) == (1, root.certificate)
    check_all_believed((*members, south), root)
    root.announce(now=NOW)
    assert keys_in(tmp_path / "root") == ["root-2", "root-3"]


def test_an_intermediate_is_rotated(root: Root, east: Operator, west: Operator) -> None:
    before = east.member.active
    bundle = root.require_renewal(EAST, now=NOW)
    assert bundle.generations == {EAST: 2}
    refused(west.directory, west.ask_again, "as it should")
    refused(east.directory, east.ask_again, "as it should")
    east.hear(root)
    asked = east.ask_again()
    assert (asked.generation, asked.cluster) == (2, east.about)
    assert east.ask_again() == asked == east.member.pending
    assert east.member.active.certificate == before.certificate
    assert keys_in(east.directory) == ["ca-1", "ca-2"]
    grant = root.renew(asked, now=NOW)
    now_active = east.enrolment.accept(grant, now=NOW).active
    assert now_active.fingerprint != before.fingerprint
    assert east.member.pending is None
    check_all_believed((east, west), root)
    assert [one.is_active for one in east.member.authorities] == [True, False]
    assert east.member.authorities[1].fingerprint == before.fingerprint
    refused(east.directory, east.ask_again, "as it should")
    assert east.retire().older == ()
    assert east.retire().active.certificate == now_active.certificate
    assert keys_in(east.directory) == ["ca-2"]
    assert root.members() == (east.about, west.about)


def test_a_renewal_tells_the_ledger_where_the_cluster_is_now(root: Root, east: Operator, west: Operator) -> None:
    root.require_renewal(EAST, now=NOW)
    east.hear(root)
    east.about = msgspec.structs.replace(east.about, region="elsewhere")
    assert east.renew(root).introductions == (west.about,)
    assert root.members() == (east.about, west.about)


# Away


def test_a_member_that_was_away_catches_up(root: Root, east: Operator, west: Operator) -> None:
    for turn in (1, 2):
        root.revoke(make_revocation("shop/cart", at=NOW, reason=str(turn)), now=NOW)
        root.announce(now=NOW)
        east.hear(root)
        root.sign_with_next(now=NOW)
        east.hear(root)
        east.renew(root)
        root.retire(now=NOW)
        east.hear(root)
        east.retire()
        root.finish()
    gone = west.member
    assert is_anchored(gone), "as far as it knows"
    assert not is_believed(gone.active, root.bundle)
    assert gone.bundle.sequence == 1

    back = west.enrolment.take(east.member.documents, now=NOW)  # from a peer: it need not be the root itself
    assert back.bundle == root.bundle
    assert not is_anchored(back)
    assert back.active.certificate == gone.active.certificate
    assert west.ask_again().generation == 3
    back = west.renew(root)
    assert is_anchored(back)
    check_all_believed((east, west), root)


def test_documents_that_do_not_follow_are_refused_and_change_nothing(
    tmp_path: Path, root: Root, east: Operator
) -> None:
    first = root.bundle
    second = root.announce(now=NOW)
    refused(
        east.directory,
        lambda: east.enrolment.take([msgspec.structs.replace(second, sequence=9)], now=NOW),
        "not signed by a root",
    )
    impostor, key = init_root(tmp_path / "impostor", now=NOW), new_key()
    impostor.announce(now=NOW)
    refused(east.directory, lambda: east.enrolment.take(impostor.documents(), now=NOW), "not signed|two different")
    own = east.member.active
    by_member = make_bundle(
        own.key,
        domain=DOMAIN,
        sequence=5,
        roots=[make_root(key, DOMAIN, now=NOW, lifetime=timedelta(days=9))],
        generations={},
        revoked=(),
        now=NOW,
    )
    # All or nothing: a good one beside a bad one.
    refused(east.directory, lambda: east.enrolment.take([second, by_member], now=NOW), "not signed by a root")
    assert east.enrolment.take([second], now=NOW).bundle == second
    assert east.enrolment.take([first], now=NOW).bundle == second, "nobody is led back"
    assert east.enrolment.take([], now=NOW).bundle == second
    root.sign_with_next(now=NOW)
    root.retire(now=NOW)
    refused(east.directory, lambda: east.enrolment.take(impostor.documents()[-1:], now=NOW), "not signed|two different")
    newest = root.documents()[-1:]
    assert east.enrolment.take(newest, now=NOW).bundle.sequence == 4, "the second trusted it already"


def test_who_is_no_member_follows_nothing(tmp_path: Path, root: Root) -> None:
    stranger = Operator(tmp_path, SOUTH, now=NOW)
    for step in (lambda: stranger.hear(root), stranger.ask_again, stranger.retire):
        refused(tmp_path, step, "no member of a mesh yet")
    stranger.ask()
    for step in (lambda: stranger.hear(root), stranger.ask_again, stranger.retire):
        refused(tmp_path, step, "no member of a mesh yet")


# Wrong stages and crashes


def test_a_step_at_the_wrong_time_is_refused(tmp_path: Path, root: Root) -> None:
    steps = {
        RootStage.IDLE: lambda: root.announce(now=NOW),
        RootStage.ANNOUNCED: lambda: root.sign_with_next(now=NOW),
        RootStage.SIGNING: lambda: root.retire(now=NOW),
        RootStage.RETIRING: root.finish,
    }
    for stage in steps:
        assert root.stage is stage
        for right, step in steps.items():
            if right is not stage and (stage, right) != (RootStage.ANNOUNCED, RootStage.IDLE):
                refused(tmp_path, step, "the root cannot .* now")
        if stage is RootStage.ANNOUNCED:
            assert root.announce(now=NOW) == root.bundle, "again, it is the same root"
        steps[stage]()
    assert root.stage is RootStage.IDLE


def test_a_rotation_that_crashes_at_any_key_is_gone_on_with(tmp_path: Path) -> None:
    directory = tmp_path / "root"
    root = init_root(directory, now=NOW)
    east = member(tmp_path, EAST, root, now=NOW)
    for at in (0, 1):
        with pytest.raises(Crash):
            Root.open(directory, custody=CutOff(FileCustody(directory), at=at), now=NOW).announce(now=NOW)
        root = open_root(directory, now=NOW)
        assert (root.stage, root.bundle.sequence) == (RootStage.IDLE, 1)
        east.hear(root)
    begun = FileCustody(directory).load("root-2").public_key()
    root.announce(now=NOW)
    assert root_certificates(root.bundle)[1].public_key() == begun
    assert keys_in(directory) == ["root-1", "root-2"]
    root.sign_with_next(now=NOW)
    root.retire(now=NOW)
    for at in (0, 1):
        with pytest.raises(Crash):
            Root.open(directory, custody=CutOff(FileCustody(directory), at=at), now=NOW).finish()
        root = open_root(directory, now=NOW)
        assert root.stage is RootStage.RETIRING
    root.finish()
    assert (root.stage, keys_in(directory)) == (RootStage.IDLE, ["root-2"])


def test_a_root_takes_up_no_key_that_it_did_not_begin(tmp_path: Path, root: Root) -> None:
    stranger = FileCustody(tmp_path / "root").create("root-2").public_key()
    root.announce(now=NOW)
    assert root_certificates(root.bundle)[1].public_key() != stranger
    root.sign_with_next(now=NOW)
    root.retire(now=NOW)
    root.finish()
    assert keys_in(tmp_path / "root") == ["root-2", "root-3"]


def test_nobody_is_told_to_follow_a_key_that_cannot_be_used(tmp_path: Path, root: Root) -> None:
    root.announce(now=NOW)
    (tmp_path / "root" / "root-2-key.pem").rename(tmp_path / "kept")
    refused(tmp_path, lambda: root.sign_with_next(now=NOW), "no key")
    FileCustody(tmp_path / "root").create("root-2")
    refused(tmp_path, lambda: root.sign_with_next(now=NOW), "do not belong together")


def test_an_enrolment_that_crashes_at_any_key_is_gone_on_with(root: Root, west: Operator) -> None:
    root.require_renewal(WEST, now=NOW)
    west.hear(root)

    def cut_off(at: int) -> Enrolment:
        return Enrolment(west.directory, CutOff(west.custody, at=at))

    for at in (0, 1):
        with pytest.raises(Crash):
            cut_off(at).renewal(west.about, now=NOW)
        assert (west.member.pending, west.member.active.generation) == (None, 1)
    west.renew(root)
    assert keys_in(west.directory) == ["ca-1", "ca-2"]
    for at in (0, 1):
        with pytest.raises(Crash):
            cut_off(at).retire(now=NOW)
        assert [one.generation for one in west.member.authorities] == [2, 1]
    assert west.retire().older == ()
    assert keys_in(west.directory) == ["ca-2"]
    assert not [path for path in west.directory.iterdir() if "-1" in path.name]


def test_an_authority_that_is_not_valid_does_not_replace_the_one_before(root: Root, west: Operator) -> None:
    root.require_renewal(WEST, now=NOW)
    west.hear(root)
    west.renew(root)
    late = NOW + timedelta(days=400)
    refused(west.directory, lambda: west.enrolment.retire(now=late), "the authority that would remain expired")


# Any order


STEPS = st.sampled_from(
    ["announce", "sign", "retire", "finish", "require", "revoke", "restore", "hear", "renew", "let go", "crash"]
)


@given(st.lists(st.tuples(STEPS, st.sampled_from([EAST, WEST])), max_size=25))
@settings(max_examples=15, deadline=None)
def test_in_whatever_order_a_proven_rotation_goes_everybody_is_believed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, ClusterName]]
) -> None:
    folder = tmp_path_factory.mktemp("mesh")
    root = init_root(folder / "root", now=NOW)
    members = {name: member(folder, name, root, now=NOW) for name in (EAST, WEST)}

    def all_trust() -> bool:
        return {bundle_digest(one.member.bundle) for one in members.values()} == {bundle_digest(root.bundle)}

    def all_renewed() -> bool:
        newest = root_fingerprints(root.bundle)[0]
        return all([state.root for state in one.member.authorities] == [newest] for one in members.values())

    def advance() -> None:
        if root.stage is RootStage.ANNOUNCED and all_trust():
            root.sign_with_next(now=NOW)
        elif root.stage is RootStage.SIGNING and all_renewed():
            root.retire(now=NOW)
        elif root.stage is RootStage.RETIRING and all_trust():
            root.finish()

    for step, name in steps:
        before = root.bundle.sequence
        with contextlib.suppress(Refusal):
            match step:
                case "announce":
                    root.announce(now=NOW)
                case "sign" | "retire" | "finish":
                    advance()
                case "require":
                    root.require_renewal(name, now=NOW)
                case "revoke":
                    root.revoke(make_revocation("shop/cart", at=NOW), now=NOW)
                case "restore":
                    root.restore("shop/cart", now=NOW)
                case "hear":
                    members[name].hear(root)
                case "renew":
                    members[name].renew(root)
                case "let go":
                    members[name].retire()
                case "crash":
                    custody = CutOff(FileCustody(folder / "root"), at=1)
                    with contextlib.suppress(Crash):
                        Root.open(folder / "root", custody=custody, now=NOW).announce(now=NOW)
        assert before <= root.bundle.sequence <= before + 1
        check_all_believed(members.values(), root)
    while root.stage is not RootStage.IDLE:
        for one in members.values():
            one.hear(root)
            with contextlib.suppress(Refusal):
                one.renew(root)
            one.retire()
        advance()
        check_all_believed(members.values(), root)
    assert len(keys_in(folder / "root")) <= 2
    assert all(len(keys_in(one.directory)) <= 2 for one in members.values())
