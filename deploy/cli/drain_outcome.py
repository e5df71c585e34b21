"""What a drain and its undoing end in: the values that `-o json` prints and the tables are made of."""

from datetime import datetime

import msgspec

from deploy.cli.draining import Errors
from deploy.cli.survey import Silent


class Reached(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How far a drain is: `weight` percent, `calls` a second to the member (None: not known yet), what is `open` at it,
    and the `errors` of the last seconds among the calls that others answer instead."""

    weight: int
    at: datetime
    calls: float | None
    open: int
    errors: Errors


class Remainder(msgspec.Struct, frozen=True, order=True, rename="camel"):
    """What a member still carries: the callers of one member, to one service. `calls` came since its weight is 0."""

    caller: str
    service: str
    open: int
    calls: int


class DrainOutcome(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How a drain of `cluster`, or of its `service`, ended.

    `is_empty` when the counters of all that were reached show nothing open and no new call; `is_done` when also nothing
    is left unknown, or that was to be accepted (`--force`). `aborted` says why it was undone. `told` names who was
    told for itself alone; empty when the drained member told all. `kept` are services that stay: only this member
    offers them. `not_reached` are members and replicas whose counters are missing, `uncounted` says what else is.
    """

    cluster: str
    service: str
    weight: int
    is_done: bool
    is_empty: bool
    at: datetime
    seconds: float
    steps: tuple[Reached, ...] = ()
    was_drained: bool = False
    severed: bool = False
    aborted: str = ""
    told: tuple[str, ...] = ()
    refused: tuple[Silent, ...] = ()
    remaining: tuple[Remainder, ...] = ()
    kept: tuple[str, ...] = ()
    not_reached: tuple[Silent, ...] = ()
    uncounted: tuple[str, ...] = ()


class MemberWeight(msgspec.Struct, frozen=True, rename="camel"):
    """Which weight the drained member has for the callers of one member."""

    cluster: str
    weight: int


class UndrainOutcome(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How an undoing ended: `is_done` when the weights are restored in all members, and all were reached.

    `was_drained` is False when there was nothing to undo; `still` names drains of other services of the member, or of
    all, that stay in force. `refused` are those who would not, or could not be told.
    """

    cluster: str
    service: str
    is_done: bool
    was_drained: bool
    weights: tuple[MemberWeight, ...] = ()
    still: tuple[str, ...] = ()
    refused: tuple[Silent, ...] = ()
    not_reached: tuple[Silent, ...] = ()
