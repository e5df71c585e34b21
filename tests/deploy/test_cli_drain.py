"""`isthmus drain` as it is driven: whom it tells, what it counts, when it ends."""

import msgspec
import pytest

from deploy.cli.drain_display import line_of, render_drain
from deploy.cli.drain_outcome import Reached
from deploy.cli.draining import Scope, parse_abort_rule
from deploy.failures import CommandFailed
from tests.support.drain_drive import Drive, text
from tests.support.model_callers import CART, REDIS, ModelCallers, Stream

RULE = parse_abort_rule("error-rate>1%")


class Interrupted(Exception):
    """Somebody pressed Ctrl-C."""


@pytest.fixture
def drive() -> Drive:
    return Drive(ModelCallers("east", "south", "west"))


def test_a_drain_tells_the_drained_member_and_ends_when_the_counters_show_nothing(drive: Drive) -> None:
    done = drive.drain()
    assert {name for name, _ in drive.mesh.told} == {"west"}, "the others hear it from west"
    assert [order.weight for _, order in drive.mesh.told] == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]
    assert (done.is_done, done.is_empty, done.weight, done.aborted) == (True, True, 0, "")
    assert [step.weight for step in done.steps] == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]
    assert done.steps[0].calls
    assert done.steps[-1].calls == 0.0
    assert 9 + 2 <= done.seconds < 20, "two fresh reports of each caller after the last step"
    assert "10 steps of 1 s" in drive.said
    assert "west carries nothing, after" in text(render_drain(done, "isthmus undrain west"))


def test_at_once_is_one_step(drive: Drive) -> None:
    done = drive.drain(over=0)
    assert done.is_done
    assert [order.weight for _, order in drive.mesh.told] == [0]
    assert "begins: at once" in drive.said


def test_its_own_callers_stay_unless_told_to_leave(drive: Drive) -> None:
    drive.mesh.streams = [Stream("west")]
    assert drive.drain(over=0).is_done
    left = drive.drain(Scope(cluster="west", clients=True), over=0, grace=3)
    assert not left.is_done
    assert [(one.caller, one.service, one.open) for one in left.remaining] == [("west", CART, 1)]
    assert drive.mesh.told[-1][1].clients, "asked again, though the weight was 0 before"
    assert "svc.cluster.local" in text(render_drain(left, ""))


def test_a_stream_that_ends_within_the_grace_is_waited_for(drive: Drive) -> None:
    drive.mesh.streams = [Stream("east", ends=18.0)]
    done = drive.drain(over=0)
    assert done.is_done
    assert 18 < done.seconds < 25
    assert any(found.open == 1 and found.weight == 0 for found in drive.seen)


def test_what_outlives_the_grace_is_named(drive: Drive) -> None:
    drive.mesh.streams = [Stream("east"), Stream("east"), Stream("south")]
    left = drive.drain(over=0, grace=5)
    assert (left.is_done, left.is_empty, left.severed) == (False, False, False)
    assert [(one.caller, one.service, one.open, one.calls) for one in left.remaining] == [
        ("east", CART, 2, 0),
        ("south", CART, 1, 0),
    ]
    assert 5 <= left.seconds < 8
    assert "--sever cuts it" in text(render_drain(left, ""))


def test_what_outlives_the_grace_is_severed_on_demand(drive: Drive) -> None:
    drive.mesh.streams = [Stream("east")]
    done = drive.drain(over=0, grace=5, sever=True)
    assert (done.is_done, done.severed) == (True, True)
    assert [order.sever for _, order in drive.mesh.told] == [False, True]
    assert f"1 from east to {CART}" in drive.said


def test_what_was_opened_since_is_severed_by_the_next_run(drive: Drive) -> None:
    drive.mesh.streams = [Stream("east")]
    drive.drain(over=0, grace=2, sever=True)
    drive.mesh.severed = False
    drive.mesh.told.clear()
    assert drive.drain(over=0, grace=2, sever=True).severed
    assert [order.sever for _, order in drive.mesh.told] == [False, True]


def test_nothing_is_severed_for_a_member_that_is_gone(drive: Drive) -> None:
    drive.mesh.members["west"].is_reached = False
    drive.mesh.streams = [Stream("east")]
    left = drive.drain(over=0, grace=2, sever=True)
    assert (left.is_done, left.severed) == (False, False)
    assert "only west itself ends what is open" in drive.said


def test_nothing_is_severed_that_ended_by_itself(drive: Drive) -> None:
    assert not drive.drain(over=0, grace=5, sever=True).severed


def test_a_service_that_nobody_else_offers_stays_and_is_named(drive: Drive) -> None:
    drive.mesh.offers[REDIS] = ("west",)
    left = drive.drain(over=0, grace=5)
    assert (left.is_done, left.is_empty, left.kept) == (False, True, (REDIS,))
    assert [(one.caller, one.service) for one in left.remaining] == [("east", REDIS), ("south", REDIS)]
    assert f"these stay, nobody else offers them: {REDIS}" in drive.said
    assert "--force accepts that" in text(render_drain(left, ""))
    assert drive.drain(over=0, grace=5, force=True).is_done


def test_of_one_service_only_its_calls_leave(drive: Drive) -> None:
    drive.mesh.offers[REDIS] = ("west", "east")
    done = drive.drain(Scope(cluster="west", service=CART), over=0)
    assert (done.is_done, done.service, done.kept) == (True, CART, ())
    assert drive.mesh.told[0][1].service == CART


def test_a_member_whose_control_plane_is_gone_is_drained_by_each_for_itself(drive: Drive) -> None:
    drive.mesh.members["west"].is_reached = False
    done = drive.drain(over=2)
    assert [(name, order.weight) for name, order in drive.mesh.told] == [
        *(("east", 50), ("south", 50)),
        *(("east", 0), ("south", 0)),
    ]
    assert (done.is_done, done.told) == (True, ("east", "south"))
    assert "the control plane of west is not reached: each member is told for itself (gone)" in drive.said


def test_a_member_that_is_lost_in_the_middle_is_drained_by_the_others_from_there(drive: Drive) -> None:
    def lose(found: Reached) -> None:
        if found.weight == 50:
            drive.mesh.members["west"].is_reached = False

    drive.on_look = lose
    done = drive.drain()
    assert done.is_done
    assert ("east", 40) in [(name, order.weight) for name, order in drive.mesh.told]


def test_who_does_not_hear_the_drained_member_is_told_for_itself(drive: Drive) -> None:
    drive.mesh.members["south"].hears = False
    done = drive.drain(over=0)
    assert (done.is_done, done.told) == (True, ("south",))
    assert "south did not hear of it from west" in drive.said


def test_a_member_that_is_not_reached_is_named_and_fails_it(drive: Drive) -> None:
    drive.mesh.members["south"].is_reached = False
    left = drive.drain(over=0, grace=3)
    assert (left.is_done, left.is_empty) == (False, True)
    assert [(one.cluster, one.reason) for one in left.not_reached] == [("south", "gone")]
    assert "south is not reached, and not counted: gone; it hears of the drain from west" in drive.said
    assert drive.drain(over=0, force=True).is_done


def test_who_left_the_mesh_is_neither_told_nor_counted(drive: Drive) -> None:
    drive.mesh.left.add("south")
    drive.mesh.members["south"].hears = False
    drive.mesh.members["south"].silent = ("south/shop/client",)
    done = drive.drain(over=0)
    assert (done.is_done, done.told) == (True, ())


@pytest.mark.parametrize(("silent", "unled"), [(("east/shop/client",), 0), ((), 2)])
def test_proxies_that_nobody_counts_are_named(drive: Drive, silent: tuple[str, ...], unled: int) -> None:
    drive.mesh.members["east"].silent, drive.mesh.members["east"].unled = silent, unled
    left = drive.drain(over=0, grace=3)
    assert not left.is_done
    assert "east" in left.uncounted[0]
    assert drive.drain(over=0, force=True).is_done


def test_a_proxy_that_reports_to_another_replica_is_counted(drive: Drive) -> None:
    east = drive.mesh.members["east"]
    east.silent = east.visitors = ("east/shop/client",)
    assert drive.drain(over=0).is_done


def test_too_many_errors_elsewhere_restore_the_weight(drive: Drive) -> None:
    def sicken(found: Reached) -> None:
        if found.weight == 60:
            drive.mesh.members["east"].failing = 0.2

    drive.on_look = sicken
    aborted = drive.drain(over=100, abort_on=RULE)
    assert not aborted.is_done
    assert aborted.aborted.startswith("error-rate>1%: ")
    assert (aborted.weight, drive.mesh.undone) == (100, ["west"])
    assert aborted.steps[-1].weight in (50, 60)
    assert "Aborted: west has weight 100 % again. error-rate>1%" in text(render_drain(aborted, ""))


def test_errors_of_the_drained_member_itself_abort_nothing(drive: Drive) -> None:
    for one in drive.mesh.members.values():
        one.failing = 0.0
    assert drive.drain(abort_on=RULE).is_done


def test_errors_are_watched_for_a_while_at_weight_zero(drive: Drive) -> None:
    def sicken(found: Reached) -> None:
        if found.weight == 0:
            drive.mesh.members["south"].failing = 1.0

    drive.on_look = sicken
    assert drive.drain(over=0, abort_on=RULE).aborted


def test_an_interrupted_drain_goes_on_from_the_weight_in_force(drive: Drive) -> None:
    def interrupt(found: Reached) -> None:
        if found.weight == 60:
            raise Interrupted

    drive.on_look = interrupt
    with pytest.raises(Interrupted):
        drive.drain()
    assert drive.mesh.members["west"].asked["west", ""].weight == 60
    drive.on_look = lambda _: None
    drive.mesh.told.clear()
    assert drive.drain().is_done
    assert [order.weight for _, order in drive.mesh.told] == [50, 40, 30, 20, 10, 0]
    assert "goes on from 60 %" in drive.said


def test_a_drain_that_is_done_is_looked_at_again(drive: Drive) -> None:
    drive.drain(over=0)
    drive.mesh.told.clear()
    again = drive.drain()
    assert (again.is_done, again.was_drained) == (True, True)
    assert drive.mesh.told == []
    assert "west is at 0 % already" in drive.said
    assert "carries nothing, still" in text(render_drain(again, ""))


def test_a_caller_with_a_lower_weight_keeps_it(drive: Drive) -> None:
    drive.mesh.members["west"].is_reached = False
    drive.drain(over=0)
    del drive.mesh.members["south"].asked["west", ""]
    drive.mesh.told.clear()
    assert drive.drain(over=2).is_done
    assert drive.mesh.told == [("south", drive.mesh.told[0][1]), ("south", drive.mesh.told[1][1])]


def test_a_replica_that_restarts_is_counted_on(drive: Drive) -> None:
    def restart(found: Reached) -> None:
        if found.weight == 40:
            drive.mesh.restart("east")

    drive.on_look = restart
    assert drive.drain().is_done


def test_a_refusal_of_the_drained_member_ends_it(drive: Drive) -> None:
    drive.mesh.members["west"].refuses = "etcd takes no writes"
    with pytest.raises(CommandFailed, match="west refuses: etcd takes no writes"):
        drive.drain()


def test_nobody_told_is_an_error(drive: Drive) -> None:
    drive.mesh.members["west"].is_reached = False
    for name in ("east", "south"):
        drive.mesh.members[name].refuses = "no"
    with pytest.raises(CommandFailed, match="nobody did it: east: no; south: no"):
        drive.drain()


def test_one_refusal_of_several_is_named_and_fails_it(drive: Drive) -> None:
    drive.mesh.members["west"].is_reached = False
    drive.mesh.members["south"].refuses = "no"
    left = drive.drain(over=0, grace=3)
    assert not left.is_done
    assert [(one.cluster, one.reason) for one in left.refused] == [("south", "no")]
    assert left.weight == 100, "the highest that somebody still has"


@pytest.mark.parametrize(
    ("scope", "message", "hint"),
    [
        (Scope(cluster="wset"), "nobody here knows a cluster wset", "did you mean west"),
        (Scope(cluster="mars"), "nobody here knows a cluster mars", "known are: east, south, west"),
        (Scope(cluster="west", service="shop/crat"), "nobody here knows a service shop/crat", "did you mean shop/cart"),
    ],
)
def test_what_nobody_knows_is_refused_before_anybody_is_told(
    drive: Drive, scope: Scope, message: str, hint: str
) -> None:
    with pytest.raises(CommandFailed) as refused:
        drive.drain(scope)
    assert message in refused.value.message
    assert hint in refused.value.hint
    assert drive.mesh.told == []


def test_the_only_member_is_not_drained() -> None:
    with pytest.raises(CommandFailed, match="the only member"):
        Drive(ModelCallers("west")).drain()


def test_nobody_reached_is_an_error(drive: Drive) -> None:
    for one in drive.mesh.members.values():
        one.is_reached = False
    with pytest.raises(CommandFailed, match="no control plane was reached: gone"):
        drive.drain()


def test_an_outcome_is_json_with_its_steps(drive: Drive) -> None:
    printed = msgspec.to_builtins(drive.drain(over=0))
    assert {"isDone", "isEmpty", "weight", "steps", "remaining", "kept", "notReached", "aborted"} <= printed.keys()
    assert printed["steps"][-1].keys() == {"weight", "at", "calls", "open", "errors"}


def test_a_state_is_one_line(drive: Drive) -> None:
    drive.drain()
    line = line_of(drive.seen[-1])
    assert "0 %" in line
    assert "calls/s" in line
    assert len(line) < 100
