"""`isthmus undrain` as it is driven: whom it tells, and when the weights count as restored."""

import pytest

from deploy.cli.drain_display import render_undrain
from deploy.cli.draining import Scope
from deploy.failures import CommandFailed
from tests.support.drain_drive import Drive, text
from tests.support.model_callers import CART, ModelCallers


@pytest.fixture
def drive() -> Drive:
    return Drive(ModelCallers("east", "south", "west"))


def test_undrain_restores_at_once(drive: Drive) -> None:
    drive.drain(over=0)
    done = drive.undrain()
    assert (done.is_done, done.was_drained) == (True, True)
    assert {(one.cluster, one.weight) for one in done.weights} == {("east", 100), ("south", 100), ("west", 100)}
    assert "full weight again in all members" in text(render_undrain(done))


def test_undrain_climbs_step_by_step(drive: Drive) -> None:
    drive.drain(Scope(cluster="west", clients=True), over=0)
    drive.mesh.told.clear()
    assert drive.undrain(over=4).is_done
    assert [order.weight for _, order in drive.mesh.told] == [25, 50, 75]
    assert all(order.clients for _, order in drive.mesh.told), "whose callers leave does not change on the way"


def test_undrain_reaches_those_that_were_told_for_themselves(drive: Drive) -> None:
    drive.mesh.members["west"].is_reached = False
    drive.drain(over=0)
    done = drive.undrain()
    assert done.is_done, "the control plane of west has nothing to undo"
    assert drive.mesh.undone == ["east", "south"]


def test_undrain_says_when_the_one_that_was_asked_is_gone(drive: Drive) -> None:
    drive.drain(over=0)
    drive.mesh.members["west"].is_reached = False
    left = drive.undrain()
    assert not left.is_done
    assert [one.cluster for one in left.not_reached] == ["west"]
    assert "Not finished" in text(render_undrain(left))


def test_undrain_asks_once_though_the_picture_shows_it_for_a_moment(drive: Drive) -> None:
    drive.drain(over=0)
    drive.mesh.lag = 1
    assert drive.undrain().is_done
    assert drive.mesh.undone == ["west"]


def test_undrain_names_who_refuses(drive: Drive) -> None:
    drive.drain(over=0)
    drive.mesh.members["west"].refuses = "no"
    left = drive.undrain()
    assert (left.is_done, [one.reason for one in left.refused]) == (False, ["no"])


def test_undrain_of_one_service_leaves_the_others(drive: Drive) -> None:
    drive.drain(Scope(cluster="west", service=CART), over=0)
    nothing = drive.undrain()
    assert (nothing.was_drained, nothing.still) == (False, (f"{CART} at 0 %",))
    assert "not drained: there is nothing to undo" in text(render_undrain(nothing))
    assert drive.undrain(Scope(cluster="west", service=CART)).is_done


def test_undrain_of_what_nobody_knows_is_refused(drive: Drive) -> None:
    with pytest.raises(CommandFailed, match="nobody here knows a cluster mars"):
        drive.undrain(Scope(cluster="mars"))


def test_nobody_reached_is_an_error(drive: Drive) -> None:
    for one in drive.mesh.members.values():
        one.is_reached = False
    with pytest.raises(CommandFailed, match="no control plane was reached: gone"):
        drive.undrain()
