"""When the leader asks for a new authority of its cluster, and when it lets an old key go."""

from datetime import timedelta

import pytest

from deploy.control.renewal import Duty, duty
from tests.support.members import ANNOUNCED, DOMAIN, EAST, IDLE, NOW, RETIRING, SIGNING, authority, document, statement
from tests.support.trust import make_authorities
from trust.bundle import TrustBundle
from trust.certificates import new_key
from trust.enrolment import Membership
from trust.joining import Introduction, make_join_request
from trust.statements import TrustStatement

LONG = timedelta(minutes=1)
ACTIVE = make_authorities(EAST, now=NOW)[EAST]


def member(bundle: TrustBundle, *, asking: int = 0) -> Membership:
    about = Introduction(name=EAST, network="east", region="eu")
    return Membership(
        active=ACTIVE,
        older=(),
        bundle=bundle,
        documents=(bundle,),
        introductions=(),
        pending=make_join_request(new_key(), about, domain=DOMAIN, now=NOW, generation=asking) if asking else None,
    )


def due(membership: Membership, says: TrustStatement, *, after: timedelta = LONG, is_own: bool = True) -> Duty | None:
    return duty(membership, says, in_force_for=after, is_own_renewed=is_own)


@pytest.mark.parametrize(
    ("bundle", "generation", "root", "asking", "expected"),
    [
        (IDLE, 1, 0, 0, None),
        (ANNOUNCED, 1, 0, 0, None),  # whoever signs is the same
        (SIGNING, 1, 0, 0, Duty.RENEW),
        (SIGNING, 1, 0, 2, None),  # is asking
        (SIGNING, 2, 1, 0, None),
        (RETIRING, 2, 1, 0, None),
        (RETIRING, 1, 0, 0, Duty.RENEW),  # was away
        (document(2, 0, generation=3), 1, 0, 2, Duty.RENEW),  # asks for too little
        (document(2, 0, generation=3), 1, 0, 3, None),
        (document(4, 1, generation=2), 2, 0, 0, Duty.RENEW),  # of that generation, but below the wrong root
    ],
)
def test_a_new_authority_is_asked_for_once(
    bundle: TrustBundle, generation: int, root: int, asking: int, expected: Duty | None
) -> None:
    says = statement(EAST, bundle, authority(generation, root=root))
    assert due(member(bundle, asking=asking), says) is expected


def test_an_old_key_goes_when_it_is_proven_that_nobody_needs_it() -> None:
    both = (authority(2), authority(1, is_active=False))
    here = member(document(2, 0, generation=1))
    done = statement(EAST, here.bundle, *both, proxies=3, renewed=3)
    assert due(here, done) is Duty.RETIRE
    assert due(here, statement(EAST, here.bundle, *both, proxies=3, renewed=2)) is None
    assert due(here, done, after=timedelta(seconds=9)) is None
    assert due(here, done, is_own=False) is None
    assert due(here, statement(EAST, here.bundle, authority(2), proxies=3, renewed=3)) is None
