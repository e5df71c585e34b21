"""`isthmus revoke`: what is told of each member, what is refused, and what its words mean."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner

from deploy.admin_client import AdminClient
from deploy.cli.main import isthmus
from deploy.cli.revocation import (
    Order,
    RevocationOutcome,
    State,
    Telling,
    by_each,
    judge,
    near_matches,
    timed,
)
from deploy.cli.survey import ReachedMesh, Silent, Survey
from deploy.failures import CommandFailed
from tests.support.members import EAST, IDLE, NOW, SOUTH, WEST, document, statement, survey
from trust.statements import Waiting

CUT = document(2, 0, revoked=["west"])
ORDER = Order(subject="west")
LATER = NOW + timedelta(seconds=1.25)


def outcome(seen: Survey, order: Order = ORDER, *, signed: bool = True, **more: Sequence[object]) -> RevocationOutcome:
    return judge(order, seen, [EAST, SOUTH], at=NOW, signed=signed, **more)  # type: ignore[arg-type]


def test_it_is_done_when_every_proxy_of_every_member_denies() -> None:
    members = [statement(name, CUT, revoked=["west"], enforced_since=LATER) for name in (EAST, SOUTH)]
    done = outcome(survey(CUT, *members))
    assert done.is_done
    assert [(one.cluster, one.state, one.seconds, one.enforcing) for one in done.members] == [
        ("east", State.IN_FORCE, 1.2, 4),
        ("south", State.IN_FORCE, 1.2, 4),
    ]
    assert done.members[0].since == LATER


def test_a_proxy_that_has_not_taken_it_is_named() -> None:
    late = (Waiting("south/shop/cart-1", "has not answered"),)
    members = [
        statement(EAST, CUT, revoked=["west"], enforced_since=LATER),
        statement(SOUTH, CUT, revoked=["west"], enforcing=3, waiting=late),
    ]
    waits = outcome(survey(CUT, *members, reached=[EAST, SOUTH]))
    assert not waits.is_done
    assert (waits.members[1].state, waits.members[1].enforcing) == (State.WAITING, 3)
    assert waits.members[1].waiting == late


def test_a_member_that_has_not_heard_of_it_counts_no_proxy() -> None:
    seen = survey(CUT, statement(EAST, IDLE), statement(SOUTH, IDLE))
    waits = outcome(seen, live=["south"])
    assert [(one.state, one.enforcing, one.proxies) for one in waits.members] == [(State.WAITING, 0, 4)] * 2
    assert [one.reason for one in waits.members[0].waiting] == ["has not taken it yet"]


def test_with_the_root_somebody_who_is_away_is_named_and_hears_of_it_later() -> None:
    seen = survey(CUT, statement(EAST, CUT, revoked=["west"], enforced_since=LATER), statement(SOUTH, IDLE))
    away = outcome(seen)
    assert away.is_done
    assert (away.members[1].state, away.members[1].reason) == (State.NOT_REACHED, "is not heard now")
    assert not outcome(seen, live=["south"]).is_done, "who others hear can be reached"


def test_without_the_root_somebody_who_was_not_told_must_be_told_again() -> None:
    seen = survey(IDLE, statement(EAST, IDLE, revoked=["west"], enforced_since=LATER))
    seen = msgspec.structs.replace(seen, silent=(Silent("south", "Connection refused"),))
    alone = outcome(seen, signed=False)
    assert not alone.is_done
    assert (alone.members[1].state, alone.members[1].reason) == (State.NOT_REACHED, "Connection refused")


def test_a_control_plane_that_refuses_is_shown_with_its_reason() -> None:
    seen = survey(IDLE, statement(EAST, IDLE), statement(SOUTH, IDLE), reached=[EAST, SOUTH])
    no = outcome(seen, signed=False, refused=[Silent("south", "the root revoked it")])
    assert not no.is_done
    assert (no.members[1].state, no.members[1].reason) == (State.REFUSED, "the root revoked it")
    assert no.members[1].waiting == (), "who refused waits for nobody: the reason is what people see"


def test_a_control_plane_that_was_not_told_is_not_reached_though_others_heard_it_just_now() -> None:
    seen = survey(IDLE, statement(EAST, IDLE, revoked=["west"], enforced_since=LATER), statement(SOUTH, IDLE))
    alone = outcome(seen, signed=False, live=["south"], refused=[Silent("south", "Connection refused", is_away=True)])
    assert not alone.is_done
    assert (alone.members[1].state, alone.members[1].reason) == (State.NOT_REACHED, "Connection refused")


def test_undone_is_done_when_nobody_denies_any_more() -> None:
    undo = Order(subject="west", undo=True)
    seen = survey(CUT, statement(EAST, IDLE), statement(SOUTH, CUT, revoked=["west"], enforced_since=LATER))
    waits = outcome(seen, undo, live=["south"])
    assert [one.state for one in waits.members] == [State.IN_FORCE, State.WAITING]
    assert outcome(survey(IDLE, statement(EAST, IDLE), statement(SOUTH, IDLE)), undo).is_done
    slow = survey(IDLE, statement(EAST, IDLE, enforcing=1), statement(SOUTH, IDLE))
    assert outcome(slow, undo).members[0].state is State.WAITING


def test_undone_says_when_each_member_was_first_seen_to_believe_again() -> None:
    undo = Order(subject="west", undo=True)
    noted: dict[str, datetime] = {}
    half = outcome(survey(CUT, statement(EAST, IDLE), statement(SOUTH, CUT, revoked=["west"])), undo, live=["south"])
    timed(half, noted, LATER)
    whole = outcome(survey(IDLE, statement(EAST, IDLE), statement(SOUTH, IDLE)), undo)
    done = timed(whole, noted, LATER + timedelta(seconds=1))
    assert [(one.cluster, one.seconds) for one in done.members] == [("east", 1.2), ("south", 2.2)]


async def test_all_are_told_before_anything_is_asked() -> None:
    asked: list[tuple[str, str]] = []

    async def refuse(request: web.Request) -> web.Response:
        asked.append((request.method, request.path))
        return web.json_response({"error": "no", "hint": ""}, status=409)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    async with TestServer(app) as server:
        mesh = ReachedMesh(["east", "south", "west"], lambda _: AdminClient(str(server.make_url(""))))
        telling = Telling(mesh=mesh, wait=timedelta(0), clock=lambda: NOW, watch=lambda _: None)
        with pytest.raises(CommandFailed, match="nobody did it: east: no; south: no"):
            await by_each(ORDER, telling)
    assert asked == [("POST", "/v1/revocations")] * 2, "west is not told to revoke itself"


def test_clocks_that_differ_make_no_time_before_the_order() -> None:
    early = NOW - timedelta(minutes=5)
    members = [statement(name, CUT, revoked=["west"], enforced_since=early) for name in (EAST, SOUTH)]
    assert outcome(survey(CUT, *members)).members[0].seconds == 0.0


def test_an_outcome_is_json_that_names_each_member() -> None:
    printed = msgspec.to_builtins(outcome(survey(CUT, statement(EAST, IDLE), statement(WEST, IDLE))))
    assert {"subject", "isUndone", "signed", "at", "isDone", "members"} == printed.keys()
    assert {"cluster", "state", "since", "seconds", "proxies", "enforcing", "waiting", "reason"} == printed["members"][
        0
    ].keys()


def test_near_names_are_found() -> None:
    assert near_matches("wset", ["east", "west"]) == ("west",)
    assert near_matches("mars", ["east", "west"]) == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["West"], "'West' is not a cluster name"),
        (["cluster", "shop/cart"], "of a workload: isthmus revoke workload shop/cart"),
        (["shop/cart"], "of a workload: isthmus revoke workload shop/cart"),
        (["workload", "west"], "of a cluster: isthmus revoke cluster west"),
        (["workload", "shop/cart@"], "name a cluster"),
        (["workload", "shop/Cart_"], "is not a namespace and a service account"),
        (["west", "--undo", "--sever"], "--undo takes neither"),
        (["west", "south"], "unexpected extra argument"),
        (["--wait", "soon", "west"], "no span of time"),
    ],
)
def test_malformed_subjects_are_refused_before_anybody_is_asked(words: list[str], message: str) -> None:
    result = CliRunner().invoke(isthmus, ["revoke", *words])
    assert result.exit_code in (1, 2)
    said = result.output + str(getattr(result.exception, "message", "")) + str(getattr(result.exception, "hint", ""))
    assert message in " ".join(said.split())


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["west", "--help"], "isthmus revoke cluster"),
        (["--undo", "west", "--help"], "isthmus revoke cluster"),
        (["cluster", "workload", "--help"], "isthmus revoke cluster"),
        (["workload", "--help"], "isthmus revoke workload"),
        (["list", "--help"], "isthmus revoke list"),
        (["--help"], "isthmus revoke [OPTIONS] CLUSTER | workload"),
    ],
)
def test_a_word_that_is_no_command_is_a_cluster(words: list[str], command: str) -> None:
    result = CliRunner().invoke(isthmus, ["revoke", *words], prog_name="isthmus")
    assert result.exit_code == 0, result.output
    assert command in " ".join(result.output.split())
