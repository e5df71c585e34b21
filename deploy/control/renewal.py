"""What the leader of a cluster does about its authority, and when. Pure."""

from datetime import timedelta
from enum import StrEnum

from trust.enrolment import Membership
from trust.rotation import signs_as_asked
from trust.statements import TrustStatement

_LEAST_AFTER_SWITCH = timedelta(seconds=10)
"""Until an old key may be destroyed: by then the other replicas sign with the new one, and know of their proxies."""


class Duty(StrEnum):
    """What the leader does about the authority of its cluster."""

    RENEW = "renew"
    RETIRE = "retire"


def duty(
    membership: Membership, statement: TrustStatement, *, in_force_for: timedelta, is_own_renewed: bool
) -> Duty | None:
    """Returns what is to be done now; None when nothing is. Pure.

    `in_force_for` is how long the active authority has signed here; `is_own_renewed` says whether it has signed the
    control plane's own certificate.
    """
    active = statement.active
    if active is None:
        return None
    if not signs_as_asked(membership.bundle, statement.cluster, statement):
        least = max(membership.wanted, active.generation + 1)
        is_asking = membership.pending is not None and membership.pending.generation >= least
        return None if is_asking else Duty.RENEW
    is_proven = statement.renewed == statement.proxies and is_own_renewed and in_force_for >= _LEAST_AFTER_SWITCH
    return Duty.RETIRE if len(statement.authorities) > 1 and is_proven else None
