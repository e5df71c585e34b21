"""What the simulation asks of its workers and what they answer: one JSON document a line. Pure."""

import msgspec

from federation.model import MemberCluster
from tests.benchmarks.plan import Plan, Spec


class Start(msgspec.Struct, frozen=True, tag=True):
    """Run these members; answered with Done when each has its leader and serves."""

    plan: Plan
    specs: tuple[Spec, ...]


class Introduce(msgspec.Struct, frozen=True, tag=True):
    """Tell a member of another one, as an operator's grant does."""

    index: int
    to: MemberCluster


class AddSidecar(msgspec.Struct, frozen=True, tag=True):
    """Give a member a sidecar, for as long as it lives."""

    index: int


class AwaitWhole(msgspec.Struct, frozen=True, tag=True):
    """Wait until every member here knows and hears so many members, with so many services of theirs in all."""

    members: int
    imports: int
    seconds: float


class ChangeOne(msgspec.Struct, frozen=True, tag=True):
    """Let one endpoint of a member come or go; answered at once, with the moment of the change."""

    index: int


class AwaitTaken(msgspec.Struct, frozen=True, tag=True):
    """Wait until all members here but its origin have a change in their pictures, and their sidecars acknowledged it.

    Answered with how long that took, and as a failure when some picture lacks it for too long. A sidecar that says
    nothing for so long is left out of the answer.
    """

    origin: int
    change: float
    seconds: float


class Churn(msgspec.Struct, frozen=True, tag=True):
    """Let endpoints of the members here come and go at random moments, on average so many each second in all; answered
    when it is over."""

    rate: float
    seconds: float
    seed: int


class Measure(msgspec.Struct, frozen=True, tag=True):
    """Say what this process has used so far."""


class Converged(msgspec.Struct, frozen=True, tag=True):
    """Say how long changes took since this was asked last."""


class Digest(msgspec.Struct, frozen=True, tag=True):
    """Say what every member's picture holds."""


Command = Start | Introduce | AddSidecar | AwaitWhole | ChangeOne | AwaitTaken | Churn | Measure | Converged | Digest


class Done(msgspec.Struct, frozen=True, tag=True):
    """It is done. `at` is when, in seconds since the epoch; `changes` is how many endpoints came or went."""

    at: float
    changes: int = 0


class Usage(msgspec.Struct, frozen=True, tag=True):
    """What a process has used since it began. CPU in seconds, memory in bytes; bytes and packets of the TCP connections
    to peers that were dialled here and still live."""

    at: float
    cpu: float
    rss: int
    sent: int
    received: int
    packets: int
    streams: int


class Took(msgspec.Struct, frozen=True, tag=True):
    """Seconds that changes took. `picture` are (change, until it was in a member's picture); a change is known by the
    moment when its origin saw it, in seconds since the epoch. `sidecar` is until a sidecar acknowledged it."""

    picture: tuple[tuple[float, float], ...]
    sidecar: tuple[float, ...]


class Held(msgspec.Struct, frozen=True, tag=True):
    """A digest of what each member holds of each, by holder and origin; of its own: what it offers."""

    digests: dict[str, dict[str, str]]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It was not done."""

    reason: str


Reply = Done | Usage | Took | Held | Failed
