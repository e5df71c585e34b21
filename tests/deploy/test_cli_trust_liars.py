"""Members that lie to whoever holds the root, copies of the root directory that are old, and members that come late."""

import asyncio
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import msgspec
import pytest

from deploy.cli.copies import check_newest
from deploy.cli.revocation import Order, Telling, by_root
from deploy.cli.rotation import Tools, rotate_root
from deploy.cli.rotation_stages import RotationReport, Stage
from deploy.cli.survey import ReachedMesh, Silent, put_together
from deploy.failures import CommandFailed
from federation.reports import TrustReport
from tests.support import virtual_time
from tests.support.model_members import ModelMember, ModelMesh
from tests.support.trust import is_anchored
from trust.bundle import make_revocation
from trust.custody import FileCustody
from trust.root import Root
from trust.rotation import Holdup
from trust.spiffe import ClusterName, MeshDomain
from trust.statements import TrustStatement

EAST, SOUTH, WEST = (ClusterName(name) for name in ("east", "south", "west"))
HIGHEST = (1 << 53) - 1


class Liar(ModelMember):
    """A member that says what `lie` makes of the truth."""

    lie: Callable[[TrustStatement], TrustStatement] = staticmethod(lambda said: said)

    def statement(self) -> TrustStatement:
        return self.lie(super().statement())


def open_root(directory: Path) -> Root:
    return Root.open(directory, custody=FileCustody(directory), now=datetime.now(UTC))


@pytest.fixture
def root(tmp_path: Path) -> Root:
    directory = tmp_path / "root"
    now = datetime.now(UTC) - timedelta(hours=1)
    return Root.init(directory, MeshDomain("mesh.test"), custody=FileCustody(directory), now=now)


@pytest.fixture
def mesh(tmp_path: Path, root: Root) -> ModelMesh:
    """East, south, and a west that may lie."""
    honest = [ModelMember.join(tmp_path, name, root) for name in (EAST, SOUTH)]
    return ModelMesh([*honest, Liar.join(tmp_path, WEST, root)])


Watch = Callable[[Stage, Sequence[Holdup]], None]


def rotate(root: Root, mesh: ModelMesh, watch: Watch = lambda _stage, _holdups: None) -> RotationReport:
    wait = timedelta(seconds=8)
    tools = Tools(root=root, mesh=mesh, wait=wait, clock=lambda: datetime.now(UTC), tell=lambda _: None, watch=watch)
    return virtual_time.run(rotate_root(tools))


def far_ahead(said: TrustStatement) -> TrustStatement:
    return msgspec.structs.replace(said, sequence=HIGHEST)


def test_who_says_that_it_is_far_ahead_is_named_and_blocks_nothing_once_it_is_revoked(
    root: Root, mesh: ModelMesh
) -> None:
    west = mesh.members[-1]
    assert isinstance(west, Liar)
    west.lie = far_ahead
    with pytest.raises(CommandFailed, match=f"west says: it follows the trust bundle {HIGHEST}") as refused:
        rotate(root, mesh)
    assert "isthmus revoke" in refused.value.hint
    root.revoke(make_revocation(WEST, at=datetime.now(UTC)), now=datetime.now(UTC))
    assert rotate(root, mesh).is_done


def test_a_made_up_document_of_one_member_says_nothing_of_the_copy_of_the_root_directory(
    root: Root, mesh: ModelMesh
) -> None:
    survey = asyncio.run(mesh.look())
    made_up = msgspec.structs.replace(root.bundle, sequence=HIGHEST, domain=MeshDomain("other.test"))
    lied_to = msgspec.structs.replace(survey, bundle=made_up, bundles={**survey.bundles, WEST: made_up})
    check_newest(root.documents(), lied_to, now=datetime.now(UTC))
    documents = root.documents()
    newer = root.require_renewal(EAST, now=datetime.now(UTC))
    proven = msgspec.structs.replace(survey, bundles={**survey.bundles, WEST: newer})
    with pytest.raises(CommandFailed, match="the mesh follows the trust bundle 2"):
        check_newest(documents, proven, now=datetime.now(UTC))


def test_an_old_copy_of_the_root_directory_revokes_nobody_in_vain(root: Root, mesh: ModelMesh, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(tmp_path / "root", old)
    assert rotate(root, mesh).is_done
    told = Telling(
        mesh=cast(ReachedMesh, mesh), wait=timedelta(seconds=1), clock=lambda: datetime.now(UTC), watch=lambda _: None
    )
    for revoked in (SOUTH, WEST):
        with pytest.raises(CommandFailed, match="the mesh follows the trust bundle 4") as refused:
            asyncio.run(by_root(Order(subject=revoked), open_root(old), told))
        assert "work with the newest copy" in refused.value.hint


def test_a_control_plane_that_answers_in_the_name_of_another_is_not_believed(mesh: ModelMesh) -> None:
    truth = {str(member.name): TrustReport(member.membership.bundle, member.statement()) for member in mesh.members}
    lie = msgspec.structs.replace(truth[EAST].own, renewed=0)
    survey = put_together(truth | {WEST: TrustReport(truth[WEST].bundle, lie)})
    assert survey.members[EAST].statement == truth[EAST].own
    assert (survey.reached, survey.silent) == (
        (EAST, SOUTH),
        (Silent(WEST, "says that it is east: check its address"),),
    )


@pytest.mark.parametrize("stage", [Stage.ANNOUNCED, Stage.SIGNING, Stage.RETIRING])
def test_who_joins_while_a_rotation_runs_is_not_left_behind(
    root: Root, mesh: ModelMesh, tmp_path: Path, stage: Stage
) -> None:
    north = ClusterName("north")
    joined: list[ModelMember] = []

    def watch(waits: Stage, _holdups: Sequence[Holdup]) -> None:
        if waits is stage and not joined:
            joined.append(ModelMember.join(tmp_path, north, open_root(tmp_path / "root")))
            mesh.members = [*mesh.members, *joined]

    report = rotate(root, mesh, watch)
    assert report.is_done
    assert is_anchored(joined[0].membership), "its authority is below a root that nobody trusts any more"
