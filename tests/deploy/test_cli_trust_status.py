"""`isthmus trust status` in its pure part: every CA, who trusts what, what needs somebody."""

import json
from datetime import timedelta

import msgspec
import pytest
from rich.console import Console

from deploy.cli.progress import Progress
from deploy.cli.survey import Silent, Survey, put_together
from deploy.cli.trust_display import render_status
from deploy.cli.trust_status import MeshTrust, standing_of
from federation.model import Liveness
from federation.reports import TrustReport
from tests.support.members import (
    ANNOUNCED,
    DOMAIN,
    EAST,
    IDLE,
    NOW,
    RETIRING,
    SIGNING,
    SOUTH,
    WEST,
    YEAR,
    authority,
    document,
    statement,
    survey,
)
from trust.bundle import TrustBundle
from trust.certificates import new_key
from trust.joining import GatewayAddress, Introduction, make_join_request
from trust.rotation import RootStage
from trust.statements import HeardStatement, TrustStatement, Waiting

MONTH = timedelta(days=30)


def found(seen: Survey, bundle: TrustBundle, *, later: timedelta = timedelta(0), **root: object) -> MeshTrust:
    return standing_of(seen, bundle, now=NOW + later, warn_before=MONTH, **root)  # type: ignore[arg-type]


def test_a_mesh_at_rest_has_one_root_that_all_trust_and_nothing_to_warn_of() -> None:
    at_rest = found(survey(IDLE, statement(EAST, IDLE), statement(WEST, IDLE)), IDLE)
    [root] = at_rest.roots
    assert (root.slot, root.trusted_by, root.not_trusted_by) == ("signing", (EAST, WEST), ())
    assert root.days_left == 3650
    assert [(one.cluster, one.slot, one.root, one.days_left) for one in at_rest.authorities] == [
        (EAST, "active", "signing", 365),
        (WEST, "active", "signing", 365),
    ]
    assert at_rest.stage is RootStage.IDLE
    assert at_rest.warnings == at_rest.holdups == at_rest.revoked == ()


def test_an_announced_root_is_next_and_who_does_not_trust_it_is_named() -> None:
    late = found(survey(ANNOUNCED, statement(EAST, ANNOUNCED), statement(WEST, IDLE)), ANNOUNCED)
    assert [(one.slot, one.trusted_by, one.not_trusted_by) for one in late.roots] == [
        ("signing", (EAST, WEST), ()),
        ("next", (EAST,), (WEST,)),
    ]
    assert late.stage is RootStage.ANNOUNCED
    assert [one.cluster for one in late.holdups] == [WEST]


def test_a_root_that_signs_no_longer_is_retiring_and_its_authorities_are_told_apart() -> None:
    renewed = statement(EAST, SIGNING, authority(2, root=1), authority(1, is_active=False), renewed=3)
    under_way = found(survey(SIGNING, renewed, statement(WEST, SIGNING)), SIGNING)
    assert [one.slot for one in under_way.roots] == ["signing", "retiring"]
    assert under_way.stage is RootStage.SIGNING
    assert [(one.cluster, one.generation, one.slot, one.root) for one in under_way.authorities] == [
        (EAST, 2, "active", "signing"),
        (EAST, 1, "old", "retiring"),
        (WEST, 1, "active", "retiring"),
    ]
    assert {one.cluster for one in under_way.holdups} == {EAST, WEST}


def test_a_member_that_was_away_trusts_what_it_followed_then() -> None:
    away = statement(WEST, IDLE)
    told = found(survey(RETIRING, statement(EAST, RETIRING, authority(2, root=1)), away), RETIRING)
    assert told.stage is RootStage.RETIRING
    assert told.roots[0].not_trusted_by == (WEST,)
    knows_both = statement(WEST, SIGNING)
    documents = (IDLE, ANNOUNCED, SIGNING, RETIRING)
    told = found(survey(RETIRING, knows_both), RETIRING, documents=documents, stage=RootStage.RETIRING)
    assert told.roots[0].trusted_by == (WEST,)


def test_a_member_of_the_ledger_that_was_never_heard_is_shown() -> None:
    seen = msgspec.structs.replace(survey(IDLE, statement(EAST, IDLE)), known=(EAST, SOUTH))
    silent = found(seen, IDLE, members=[WEST])
    assert [(one.cluster, one.said) for one in silent.members] == [(EAST, NOW), (SOUTH, None), (WEST, None)]
    assert silent.roots[0].not_trusted_by == (SOUTH, WEST)


@pytest.mark.parametrize(
    ("left", "warns", "verb"), [(31, False, ""), (30, True, "expires"), (0, True, "expired"), (-1, True, "expired")]
)
def test_an_authority_that_expires_soon_or_has_expired_is_warned_of(left: int, warns: bool, verb: str) -> None:
    short = statement(WEST, IDLE, authority(ends=NOW + timedelta(days=left)))
    warnings = found(survey(IDLE, statement(EAST, IDLE), short), IDLE).warnings
    assert len(warnings) == warns
    if warns:
        assert f"the authority of west {verb} on" in warnings[0]
        assert "isthmus trust rotate intermediate west --root DIR" in warnings[0]


def test_a_root_that_expires_soon_is_warned_of_unless_it_is_on_its_way_out() -> None:
    ends = authority(2, root=1, ends=NOW + 20 * YEAR)
    members = [statement(name, SIGNING, ends) for name in (EAST, WEST)]
    late = 10 * YEAR - MONTH
    assert [one for one in found(survey(SIGNING, *members), SIGNING, later=late).warnings if "root expire" in one] == []
    members = [statement(name, IDLE, authority(ends=NOW + 20 * YEAR)) for name in (EAST, WEST)]
    [warning] = found(survey(IDLE, *members), IDLE, later=late).warnings
    assert warning.startswith("the signing root expires on ")
    assert warning.endswith("isthmus trust rotate root --root DIR")


def test_what_the_control_plane_warns_of_is_said_once() -> None:
    ends = NOW + timedelta(days=3)
    said = f"east: the authority of east (generation 1) expires at {ends:%Y-%m-%d %H:%M:%S} UTC: renew it"
    seen = survey(IDLE, statement(EAST, IDLE, authority(ends=ends)))
    told = msgspec.structs.replace(
        seen, warnings=(said.replace("the authority of east (generation 1)", "the authority of east"),)
    )
    assert len(found(seen, IDLE).warnings) == len(found(told, IDLE).warnings) == 1


def test_a_rotation_that_stands_still_needs_somebody_and_one_on_its_way_does_not() -> None:
    seen = survey(ANNOUNCED, statement(EAST, ANNOUNCED, trusting=3), statement(WEST, ANNOUNCED))
    assert found(seen, ANNOUNCED, later=timedelta(minutes=9)).warnings == ()
    [warning] = found(seen, ANNOUNCED, later=timedelta(hours=3)).warnings
    assert (
        warning
        == "the rotation of the root is announced since 3h, held up by east: isthmus trust rotate root --root DIR"
    )


def test_a_request_that_nobody_granted_and_a_member_that_missed_news_need_somebody() -> None:
    about = Introduction(name=WEST, network="net", region="eu", gateways=(GatewayAddress("10.0.0.1", 15443),))
    asks = make_join_request(new_key(), about, domain=DOMAIN, now=NOW)
    newest = document(5, 0, generation=2)
    seen = survey(newest, statement(EAST, IDLE, authority(2)), statement(WEST, newest, asks=asks))
    warnings = found(seen, newest, later=timedelta(hours=2)).warnings
    assert [one for one in warnings if "west waits for its new authority since 2h" in one]
    assert [one for one in warnings if one.startswith("east has missed news of the root") and "--deliver" in one]


def test_a_revoked_cluster_holds_nothing_up_and_is_warned_of_no_more() -> None:
    cut = document(2, 0, revoked=["west"])
    gone = statement(WEST, IDLE, authority(ends=NOW))
    there = found(survey(cut, statement(EAST, cut, revoked=["west"]), gone), cut, later=timedelta(hours=1))
    assert there.holdups == there.warnings == ()
    assert [one.is_revoked for one in there.members] == [False, True]
    [revoked] = there.revoked
    assert (revoked.subject, revoked.by_root, revoked.reason) == ("west", True, "stolen")
    assert (revoked.in_force, revoked.not_in_force) == ((EAST,), ())
    assert there.roots[0].not_trusted_by == ()


def test_a_revocation_of_one_member_alone_says_where_it_is_not_in_force() -> None:
    alone = statement(EAST, IDLE, revoked=["shop/cart"], enforcing=2)
    [revoked] = found(survey(IDLE, alone, statement(WEST, IDLE)), IDLE).revoked
    assert (revoked.by_root, revoked.at) == (False, None)
    assert (revoked.in_force, revoked.not_in_force) == ((), (EAST, WEST))


def test_a_member_itself_is_believed_before_others_and_of_others_the_newest() -> None:
    def report(own: TrustStatement, *others: TrustStatement) -> TrustReport:
        return TrustReport(IDLE, own, tuple(HeardStatement(one, NOW) for one in others), ("old",))

    older, newer = (statement(SOUTH, IDLE, at=NOW + timedelta(seconds=n), proxies=n) for n in (1, 2))
    rumour = statement(WEST, IDLE, at=NOW + YEAR, proxies=9)
    seen = put_together(
        {
            "east": report(statement(EAST, IDLE), older, rumour),
            "west": report(statement(WEST, IDLE), newer),
            "north": Silent("north", "refused"),
        }
    )
    assert {name: one.statement.proxies for name, one in seen.members.items()} == {EAST: 4, SOUTH: 2, WEST: 4}
    assert seen.members[SOUTH].via == "west"
    assert seen.reached == (EAST, WEST)
    assert seen.silent == (Silent("north", "refused"),)
    assert seen.warnings == ("east: old", "west: old")


def test_status_is_shown_to_people_and_to_programs() -> None:
    late = statement(WEST, ANNOUNCED, trusting=3, waiting=(Waiting("west/shop/cart-1", "has not answered"),))
    seen = msgspec.structs.replace(
        survey(ANNOUNCED, statement(EAST, ANNOUNCED), late), silent=(Silent("south", "Connection refused"),)
    )
    shown = found(seen, ANNOUNCED, later=timedelta(hours=1))
    console = Console(width=140, no_color=True)
    with console.capture() as captured:
        for part in render_status(shown, NOW + timedelta(hours=1)):
            console.print(part)
    text = captured.get()
    for word in ("next", "signing", "west/shop/cart-1", "has not answered", "3/4", "stale, said this 61m ago"):
        assert word in text
    assert "Connection refused" in text
    assert "warning: the rotation of the root is announced" in text
    printed = json.loads(msgspec.json.encode(shown))
    assert {"stage", "holdups", "roots", "authorities", "members", "revoked", "warnings"} <= printed.keys()
    assert {"slot", "fingerprint", "daysLeft", "trustedBy", "notTrustedBy"} <= printed["roots"][0].keys()


def test_a_root_is_known_by_its_key_and_one_of_the_past_is_told_so() -> None:
    behind = statement(WEST, SIGNING)
    ahead = statement(EAST, document(5, 1), authority(3, root=0))
    told = found(survey(RETIRING, statement(SOUTH, RETIRING, authority(2, root=1)), behind, ahead), RETIRING)
    [root] = told.roots
    above = {one.cluster: (one.root, one.root_fingerprint) for one in told.authorities}
    assert above[SOUTH] == ("signing", root.fingerprint)
    assert above[WEST] == ("retired", authority(root=0).root)
    assert above[EAST][0] == "newer"
    text = printed(told)
    assert f"signing {root.fingerprint[:8]}" in text
    assert text.count(root.fingerprint[:8]) == 2, "the same in the table of roots and in that of authorities"
    assert f"retired {authority(root=0).root[:8]}" in text


def test_a_member_that_is_live_is_said_to_be_and_one_that_is_not_said_this_some_time_ago() -> None:
    seen = survey(IDLE, statement(EAST, IDLE), statement(WEST, IDLE), statement(SOUTH, IDLE))
    seen = msgspec.structs.replace(seen, states={EAST: Liveness.LIVE, WEST: Liveness.LIVE, SOUTH: Liveness.STALE})
    told = found(seen, IDLE)
    assert [one.state for one in told.members] == [Liveness.LIVE, Liveness.STALE, Liveness.LIVE]
    states = {line.split()[0]: line.strip() for line in printed(told).splitlines() if line[:4] in ("west", "sout")}
    assert states["west"].endswith("live")
    assert states["south"].endswith("stale, said this 60s ago")


def test_on_a_terminal_whom_a_command_waits_for_is_named_when_it_takes_long() -> None:
    moments = iter([0.0, 1.0, 3.0])
    console = Console(width=80, force_terminal=True, no_color=True)
    shown = Progress(console, lambda: next(moments))
    with console.capture() as early:
        shown.wait_for("Waits for all.", "west: 1/2 proxies")
        shown.wait_for("Waits for all.", "west: 1/2 proxies")
        shown.pause()
    with console.capture() as late:
        shown.wait_for("Waits for all.", "west: 1/2 proxies")
        shown.pause()
    assert "Waits for all." in early.get()
    assert "west" not in early.get()
    assert "west: 1/2 proxies" in late.get()


def printed(told: MeshTrust) -> str:
    console = Console(width=140, no_color=True)
    with console.capture() as captured:
        for part in render_status(told, NOW):
            console.print(part)
    return captured.get()


def test_elsewhere_than_on_a_terminal_whom_a_command_waits_for_is_named_once_when_it_takes_long() -> None:
    moments = iter([0.0, 1.0, 3.0, 4.0, 5.0, 6.0])
    console = Console(width=80, force_terminal=False)
    shown = Progress(console, lambda: next(moments))
    with console.capture() as captured:
        for _ in range(4):
            shown.wait_for("Waits for all.", "west: [1/2] proxies")
        shown.wait_for("Waits for all.", "west: [2/2] proxies")
        shown.wait_for("Waits for more.", "west: [2/2] proxies")
        shown.say("Done.")
    assert captured.get().splitlines() == [
        "Waits for all.",
        "  west: [1/2] proxies",
        "  west: [2/2] proxies",
        "Waits for more.",
        "Done.",
    ]
