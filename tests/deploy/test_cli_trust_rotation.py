"""Rotations as their commands drive them: staged, on proof, resumable; with a real root and real authorities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from deploy.cli.rotation import Tools, rotate_intermediate, rotate_root
from deploy.cli.rotation_stages import RotationReport, Stage
from deploy.cli.survey import Survey
from deploy.failures import CommandFailed
from tests.support import virtual_time
from tests.support.model_members import ModelMember, ModelMesh
from tests.support.trust import is_anchored
from trust.bundle import make_revocation
from trust.custody import FileCustody
from trust.root import Root
from trust.rotation import Holdup, RootStage
from trust.spiffe import ClusterName, MeshDomain

EAST, SOUTH, WEST = (ClusterName(name) for name in ("east", "south", "west"))
WAIT = timedelta(seconds=8)


class Interrupted(Exception):
    """Somebody pressed Ctrl-C."""


@dataclass
class Drive:
    """A mesh of three members, its root, and what was said while a rotation was driven."""

    directory: Path
    members: dict[ClusterName, ModelMember]
    mesh: ModelMesh
    lines: list[str] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)

    @property
    def root(self) -> Root:
        """The root as a new process opens it."""
        return Root.open(self.directory, custody=FileCustody(self.directory), now=datetime.now(UTC))

    def tools(
        self,
        *,
        force: Callable[[str, Sequence[Holdup]], bool] | None = None,
        tell: Callable[[str], None] | None = None,
        mesh: ModelMesh | None = None,
    ) -> Tools:
        return Tools(
            root=self.root,
            mesh=mesh or self.mesh,
            wait=WAIT,
            clock=lambda: datetime.now(UTC),
            tell=tell or self.lines.append,
            watch=lambda stage, _: self.stages.append(stage),
            force=force,
        )

    def rotate_root(self, **tools: object) -> RotationReport:
        return virtual_time.run(rotate_root(self.tools(**tools)))  # type: ignore[arg-type]

    def rotate(self, cluster: ClusterName, **tools: object) -> RotationReport:
        return virtual_time.run(rotate_intermediate(self.tools(**tools), cluster))  # type: ignore[arg-type]

    @property
    def fingerprint(self) -> str:
        return self.root.bundle.roots[0]


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    directory = tmp_path / "root"
    root = Root.init(
        directory,
        MeshDomain("mesh.test"),
        custody=FileCustody(directory),
        now=datetime.now(UTC) - timedelta(hours=1),
        lifetime=timedelta(days=3650),
    )
    members = {name: ModelMember.join(tmp_path, name, root) for name in (EAST, SOUTH, WEST)}
    return Drive(directory, members, ModelMesh(tuple(members.values())))


def all_follow(drive: Drive) -> bool:
    """Says whether everybody follows the newest document and signs below its root."""
    newest = drive.root.bundle
    return all(
        member.membership.bundle == newest
        and is_anchored(member.membership)
        and member.statement().renewed == member.statement().trusting == len(member.proxies)
        for member in drive.members.values()
    )


def test_a_root_is_rotated_and_every_member_signs_below_the_new_one(drive: Drive) -> None:
    before = drive.fingerprint
    report = drive.rotate_root()
    assert (report.is_done, report.stage, report.holdups, report.forced) == (True, Stage.DONE, (), ())
    assert report.granted == (EAST, SOUTH, WEST)
    assert report.sequence == drive.root.bundle.sequence == 4
    assert drive.root.stage is RootStage.IDLE
    assert drive.fingerprint != before
    assert drive.root.bundle.roots == (drive.fingerprint,)
    assert all_follow(drive)
    assert all(len(member.keys) == 1 for member in drive.members.values())


def test_every_step_is_told_and_every_stage_that_waits_is_shown(drive: Drive) -> None:
    drive.rotate_root()
    assert [line for line in drive.lines if line.startswith("Trust bundle")] == [
        "Trust bundle 2: a new root is announced beside the old one.",
        "Trust bundle 3: the new root signs, and every member renews its authority.",
        "Trust bundle 4: the old root is trusted no longer.",
    ]
    assert "Granted west its authority of generation 2." in drive.lines
    assert drive.lines[-1] == "The key of the old root is destroyed."
    stages = list(dict.fromkeys(drive.stages))
    assert stages == [Stage.ANNOUNCED, Stage.SIGNING, Stage.RETIRING]


@pytest.mark.parametrize("step", range(1, 8))
def test_a_rotation_that_was_interrupted_anywhere_goes_on(drive: Drive, step: int) -> None:
    """Each line that is told follows something that was written down: there, the command dies."""

    def tell(line: str) -> None:
        drive.lines.append(line)
        if len(drive.lines) == step:
            raise Interrupted

    with pytest.raises(Interrupted):
        drive.rotate_root(tell=tell)
    is_over = drive.root.stage is RootStage.IDLE and drive.root.bundle.sequence == 4
    report = None if is_over else drive.rotate_root()
    assert report is None or report.is_done
    assert drive.root.bundle.sequence == 4
    assert all_follow(drive)


def test_a_rotation_that_was_interrupted_while_it_handed_over_goes_on(drive: Drive) -> None:
    class Dying(ModelMesh):
        async def deliver(self, bundles: Sequence[object], grants: Sequence[object]) -> Survey:
            raise Interrupted

    for _ in range(3):
        with pytest.raises(Interrupted):
            drive.rotate_root(mesh=Dying(self_members(drive)))
        assert drive.root.stage is RootStage.ANNOUNCED
    report = drive.rotate_root()
    assert report.is_done
    assert report.caught_up == (EAST, SOUTH, WEST)
    assert drive.root.bundle.sequence == 4


def self_members(drive: Drive) -> tuple[ModelMember, ...]:
    return tuple(drive.members.values())


def test_a_grant_that_was_lost_is_given_again(drive: Drive) -> None:
    class Losing(ModelMesh):
        async def deliver(self, bundles: Sequence[object], grants: Sequence[object]) -> Survey:
            if grants:
                raise Interrupted
            return await super().deliver(bundles, grants)  # type: ignore[arg-type]

    for _ in range(2):
        with pytest.raises(Interrupted):
            drive.rotate(WEST, mesh=Losing(self_members(drive)))
    assert drive.rotate(WEST).is_done
    assert drive.members[WEST].keys == {2}


@pytest.mark.parametrize("cluster", [EAST, WEST])
def test_a_proxy_that_takes_nothing_holds_the_rotation_up_by_name(drive: Drive, cluster: ClusterName) -> None:
    late = f"{cluster}/shop/cart-1"
    drive.members[cluster].stuck = {late}
    report = drive.rotate_root()
    assert (report.is_done, report.stage) == (False, Stage.ANNOUNCED)
    [holdup] = report.holdups
    assert holdup.cluster == cluster
    assert holdup.reason == "1 of 2 proxies has not acknowledged the roots"
    assert [one.node for one in holdup.proxies] == [late]
    assert drive.root.stage is RootStage.ANNOUNCED, "a stage without proof advanced"
    drive.members[cluster].stuck = set()
    assert drive.rotate_root().is_done


def test_a_member_that_is_away_holds_the_rotation_up_and_it_goes_on_when_it_is_back(drive: Drive) -> None:
    drive.mesh.heard[WEST] = drive.members[WEST].statement()
    drive.members[WEST].is_away = True
    report = drive.rotate_root()
    assert (report.is_done, report.stage) == (False, Stage.ANNOUNCED)
    assert [one.cluster for one in report.holdups] == [WEST]
    assert report.holdups[0].reason.endswith("not reached from here: Connection refused")
    assert [one.cluster for one in report.not_reached] == [WEST]
    drive.members[WEST].is_away = False
    report = drive.rotate_root()
    assert report.is_done
    assert "Going on with the rotation that is under way: it is announced." in drive.lines
    assert all_follow(drive)


def test_a_member_that_was_never_heard_holds_the_rotation_up(drive: Drive) -> None:
    drive.members[WEST].is_away = True
    [holdup] = drive.rotate_root().holdups
    assert holdup.cluster == WEST
    assert holdup.reason.startswith("nothing was ever heard of its trust")


def test_one_control_plane_that_is_reached_is_enough(drive: Drive) -> None:
    for name in (EAST, SOUTH):
        drive.members[name].is_reached = False
    report = drive.rotate_root()
    assert report.is_done
    assert [one.cluster for one in report.not_reached] == [EAST, SOUTH]
    assert all_follow(drive)


def test_a_revoked_cluster_holds_nothing_up(drive: Drive) -> None:
    drive.root.revoke(make_revocation("west", at=datetime.now(UTC)), now=datetime.now(UTC))
    drive.members[WEST].is_away = True
    assert drive.rotate_root().is_done


def test_force_asks_once_says_what_breaks_and_advances_one_stage(drive: Drive) -> None:
    drive.members[WEST].stuck = {"west/shop/cart-0"}
    asked: list[tuple[str, list[str]]] = []

    def force(breaks: str, holdups: Sequence[Holdup]) -> bool:
        asked.append((breaks, [one.cluster for one in holdups]))
        return True

    report = drive.rotate_root(force=force)
    assert asked == [
        ("Proxies that do not trust the new root will refuse whoever shows a certificate below it", [WEST])
    ]
    assert report.forced == (Stage.ANNOUNCED,)
    assert (report.is_done, report.stage) == (False, Stage.SIGNING), "force is good for one stage"
    assert drive.root.stage is RootStage.SIGNING


def test_force_that_is_not_confirmed_changes_nothing(drive: Drive) -> None:
    drive.members[WEST].stuck = {"west/shop/cart-0"}
    report = drive.rotate_root(force=lambda *_: False)
    assert (report.stage, report.forced) == (Stage.ANNOUNCED, ())
    assert drive.root.stage is RootStage.ANNOUNCED


def test_force_is_not_asked_for_where_there_is_proof(drive: Drive) -> None:
    def force(*_: object) -> bool:
        raise AssertionError("nothing had to be forced")

    assert drive.rotate_root(force=force).is_done


def test_who_was_left_behind_is_handed_what_it_missed_and_no_new_rotation_begins(drive: Drive) -> None:
    drive.mesh.heard[WEST] = drive.members[WEST].statement()
    drive.members[WEST].is_away = True
    for _ in range(3):
        assert drive.rotate_root(force=lambda *_: True).forced
        if drive.root.stage is RootStage.IDLE:
            break
    assert drive.root.stage is RootStage.IDLE, "three stages can be forced, one in each run"
    sequence = drive.root.bundle.sequence
    drive.members[WEST].is_away = False
    report = drive.rotate_root()
    assert (report.is_done, report.was_begun) == (True, False)
    assert report.caught_up == (WEST,)
    assert drive.root.bundle.sequence == sequence
    assert all_follow(drive)
    assert drive.rotate_root().sequence > sequence, "the next one is a new rotation"


def test_an_older_copy_of_the_root_directory_is_not_worked_with(drive: Drive, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(drive.directory, tmp_path / "backup")
    drive.rotate_root()
    backup = Drive(tmp_path / "backup", drive.members, drive.mesh)
    with pytest.raises(CommandFailed, match="the mesh follows the trust bundle 4") as refused:
        backup.rotate_root()
    assert "newest copy" in refused.value.hint


def test_nobody_reached_is_an_error_that_changes_nothing(drive: Drive) -> None:
    for member in drive.members.values():
        member.is_reached = False
    with pytest.raises(CommandFailed, match="no control plane was reached: east: Connection refused"):
        drive.rotate_root()
    assert drive.root.stage is RootStage.IDLE


def test_an_intermediate_is_rotated_and_no_other(drive: Drive) -> None:
    report = drive.rotate(WEST)
    assert (report.is_done, report.granted) == (True, (WEST,))
    assert {name: member.keys for name, member in drive.members.items()} == {EAST: {1}, SOUTH: {1}, WEST: {2}}
    stages = list(dict.fromkeys(drive.stages))
    assert stages == [Stage.TRUSTING, Stage.ASKED, Stage.RENEWING, Stage.OUTLIVING]
    assert drive.rotate(WEST).is_done
    assert drive.members[WEST].keys == {3}, "the command begins a new rotation when the last is over"


@pytest.mark.parametrize("step", [1, 2])
def test_an_intermediate_rotation_that_was_interrupted_goes_on(drive: Drive, step: int) -> None:
    def tell(line: str) -> None:
        drive.lines.append(line)
        if len(drive.lines) == step:
            raise Interrupted

    with pytest.raises(Interrupted):
        drive.rotate(WEST, tell=tell)
    assert drive.rotate(WEST).is_done
    assert drive.members[WEST].keys == {2}, "it went on, and began no other"


def test_an_old_key_is_kept_until_the_last_proxy_has_renewed(drive: Drive) -> None:
    drive.members[WEST].stuck = {"west/shop/cart-0"}
    for line in ("west is asked", "Going on with the rotation of west"):
        report = drive.rotate(WEST, force=lambda *_: True)
        assert (report.is_done, report.stage, report.forced) == (False, Stage.RENEWING, ())
        assert report.goes_on
        assert [one.node for one in report.holdups[0].proxies] == ["west/shop/cart-0"]
        assert drive.members[WEST].keys == {1, 2}
        assert any(line in said for said in drive.lines)
    drive.members[WEST].stuck = set()
    drive.members[WEST].settle()
    assert drive.members[WEST].keys == {2}, "the cluster ends it by itself"


def test_an_intermediate_of_somebody_away_waits_for_it(drive: Drive) -> None:
    drive.mesh.heard[WEST] = drive.members[WEST].statement()
    drive.members[WEST].is_away = True
    report = drive.rotate(WEST)
    assert (report.is_done, report.stage) == (False, Stage.ASKED)
    assert "not reached from here" in report.holdups[0].reason
    drive.members[WEST].is_away = False
    assert drive.rotate(WEST).is_done
    assert drive.members[WEST].keys == {2}


def test_an_intermediate_can_be_rotated_while_a_root_rotation_stands(drive: Drive) -> None:
    drive.mesh.heard[SOUTH] = drive.members[SOUTH].statement()
    drive.members[SOUTH].is_away = True
    assert drive.rotate_root().stage is Stage.ANNOUNCED
    assert drive.rotate(WEST).is_done
    drive.members[SOUTH].is_away = False
    assert drive.rotate_root().is_done
    assert all_follow(drive)


@pytest.mark.parametrize(("name", "hint"), [("wset", "did you mean west?"), ("mars", "members are: east, south, west")])
def test_a_cluster_that_is_no_member_is_refused_with_near_matches(drive: Drive, name: str, hint: str) -> None:
    with pytest.raises(CommandFailed, match=f"{name} is no member") as refused:
        drive.rotate(ClusterName(name))
    assert refused.value.hint == hint


def test_a_revoked_cluster_gets_no_new_authority(drive: Drive) -> None:
    drive.root.revoke(make_revocation("west", at=datetime.now(UTC)), now=datetime.now(UTC))
    with pytest.raises(CommandFailed, match="west is revoked"):
        drive.rotate(WEST)


def test_a_report_is_json_that_names_stage_and_holdups(drive: Drive) -> None:
    drive.members[WEST].stuck = {"west/shop/cart-0"}
    printed = msgspec.to_builtins(drive.rotate_root())
    assert printed["stage"] == "announced"
    assert printed["isDone"] is False
    assert printed["holdups"][0]["cluster"] == "west"
    assert printed["holdups"][0]["proxies"][0]["node"] == "west/shop/cart-0"
    assert {"rotation", "sequence", "granted", "caughtUp", "forced", "notReached", "wasBegun"} <= printed.keys()
