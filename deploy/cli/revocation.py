"""Drives a revocation, or its undoing, and tells of each member when it came into force and who holds it up.

With the root it is signed and reaches all members through any one. Without, every control plane that is reached decides
for its own cluster, and those that are not reached know nothing of it.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from difflib import get_close_matches
from enum import StrEnum

import msgspec

from deploy.admin_client import AdminClient, ControlRefused
from deploy.cli.copies import check_newest
from deploy.cli.survey import ReachedMesh, Seen, Silent, Survey, put_together, reasons_of
from deploy.failures import CommandFailed
from federation.reports import TrustReport
from trust.bundle import make_revocation
from trust.root import Root
from trust.spiffe import ClusterName
from trust.statements import Waiting

_POLL = 0.2  # seconds between two looks at the mesh
_CONFLICT = 409  # HTTP: what a control plane answers that cannot do as it is told
_REPEAT = 5.0  # seconds after which a document is handed over again: it may have been lost on its way


class State(StrEnum):
    """How far a member is with what it was told."""

    IN_FORCE = "in-force"
    WAITING = "waiting"
    REFUSED = "refused"
    NOT_REACHED = "not-reached"


class MemberAnswer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a member made of it. `since` and `seconds` (after it was decided) are those of the last proxy that took it;
    of an undoing, when all of them were first seen to have taken it.

    Of its `proxies`, `enforcing` have taken it; `waiting` names others. `reason` says why it refused or is not reached.
    """

    cluster: str
    state: State
    since: datetime | None = None
    seconds: float | None = None
    proxies: int = 0
    enforcing: int = 0
    waiting: tuple[Waiting, ...] = ()
    reason: str = ""


class RevocationOutcome(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How far the revocation of `subject` is, or its undoing. `signed` by the root, or decided by each member alone.

    `is_done` when everybody who can be reached has it in force; without the root also everybody who was to be told.
    """

    subject: str
    is_undone: bool
    signed: bool
    at: datetime
    is_done: bool
    members: tuple[MemberAnswer, ...]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done: revoke `subject`, or believe it again (`undo`)."""

    subject: str
    undo: bool = False
    reason: str = ""
    sever: bool = False

    @property
    def cluster(self) -> str:
        """The cluster that is meant as a whole; empty when it is a workload. It is not asked about itself."""
        return self.subject if "/" not in self.subject else ""


def judge(
    order: Order,
    survey: Survey,
    expected: Collection[ClusterName],
    *,
    at: datetime,
    signed: bool,
    live: Collection[str] = (),
    refused: Sequence[Silent] = (),
) -> RevocationOutcome:
    """Says of each expected member how far it is. `at` is when it was decided.

    `live` names members that others hear now: with the root they are told through these. `refused` are those that said
    no when they were told.
    """
    answers = [
        _answer(
            order,
            seen := survey.members.get(cluster),
            cluster,
            at=at,
            is_heard=cluster in {*survey.reached, *live},
            late=_late(order, seen, survey, signed=signed),
        )
        for cluster in sorted(expected)
    ]
    reasons = {one.cluster: one.reason for one in (*survey.silent, *refused)}
    no = {one.cluster: State.NOT_REACHED if one.is_away else State.REFUSED for one in refused}
    explained = []
    for answer in answers:
        if answer.state is State.WAITING and answer.cluster in no:
            answer = msgspec.structs.replace(answer, state=no[answer.cluster], waiting=())
        if answer.state in (State.REFUSED, State.NOT_REACHED) and answer.cluster in reasons:
            answer = msgspec.structs.replace(answer, reason=reasons[answer.cluster])
        explained.append(answer)
    unfinished = {State.WAITING, State.REFUSED} | (set() if signed else {State.NOT_REACHED})
    return RevocationOutcome(
        subject=order.subject,
        is_undone=order.undo,
        signed=signed,
        at=at,
        is_done=not any(answer.state in unfinished for answer in explained),
        members=tuple(explained),
    )


def timed(outcome: RevocationOutcome, restored: dict[str, datetime], now: datetime) -> RevocationOutcome:
    """Says of an undoing when each member was first seen to have taken it, which is noted in `restored`.

    A member that denies nobody tells no time since when.
    """
    members = []
    for one in outcome.members:
        if one.state is State.IN_FORCE and outcome.is_undone:
            since = restored.setdefault(one.cluster, now)
            seconds = max(0.0, round((since - outcome.at).total_seconds(), 1))
            one = msgspec.structs.replace(one, since=since, seconds=seconds)
        members.append(one)
    return msgspec.structs.replace(outcome, members=tuple(members))


def near_matches(name: str, known: Collection[str]) -> tuple[str, ...]:
    """Returns names that somebody who wrote `name` may have meant."""
    return tuple(get_close_matches(name, sorted(known), n=3))


@dataclass
class Telling:
    """What a revocation is carried out with. `watch` is shown each state of things; `wait` bounds the whole."""

    mesh: ReachedMesh
    wait: timedelta
    clock: Callable[[], datetime]
    watch: Callable[[RevocationOutcome], None]


async def by_root(order: Order, root: Root, telling: Telling) -> RevocationOutcome:
    """Signs it with the root and hands it to all that are reached. Raises CommandFailed and trust's Refusals.

    A member that is away hears of it from the others when it is back.
    """
    at = telling.clock()
    if order.undo and _is_undone_but_not_everywhere(order, root, await telling.mesh.look()):
        pass  # it was signed before, and the command was interrupted
    elif order.undo:
        root.restore(order.subject, now=at)
    else:
        said = root.revoke(make_revocation(order.subject, at=at, reason=order.reason, sever=order.sever), now=at)
        decided = next(one.at for one in said.revoked if one.subject == order.subject)
        at = at if decided == at.replace(microsecond=0) else decided  # it was signed before, in just these words
    survey = await telling.mesh.deliver(root.documents(), ())
    if not survey.reached:
        message = f"it is signed (trust bundle {root.bundle.sequence}), but nobody was told: {reasons_of(survey)}"
        raise CommandFailed(message, "run the same command where one control plane is reached: it tells the others")
    # Nobody follows what an older copy says. Not asked before: who is to be revoked could hold that up by silence.
    check_newest(root.documents(), survey, now=at, without=order.cluster)
    expected = [member.name for member in root.members() if member.name != order.cluster]
    return await _follow(order, telling, expected, at=at, root=root)


def _is_undone_but_not_everywhere(order: Order, root: Root, survey: Survey) -> bool:
    if any(one.subject == order.subject for one in root.bundle.revoked):
        return False
    return any(order.subject in seen.statement.revoked for seen in survey.members.values())


async def by_each(order: Order, telling: Telling) -> RevocationOutcome:
    """Tells every control plane that is reached to decide so for its own cluster, before anything else is asked.

    Raises CommandFailed when nobody did it.
    """
    at = telling.clock()

    async def tell(client: AdminClient) -> TrustReport:
        if order.undo:
            if any(one.subject == order.subject for one in await client.restore(order.subject)):
                message = f"the root revoked {order.subject} too: undo that with --root DIR"
                raise ControlRefused(message, "", _CONFLICT)
        else:
            await client.revoke(order.subject, reason=order.reason, sever=order.sever)
        return await client.trust()

    answers = await telling.mesh.each(tell, without=[order.cluster] if order.cluster else [])
    if not answers:
        raise CommandFailed(
            f"only {order.subject} itself is reached here, and no cluster revokes itself",
            "name the control planes of the others with --contexts or --admin, or sign it with --root DIR",
        )
    survey = put_together(answers)
    if not survey.reached:
        hint = "sign it with --root DIR: then the root undoes it" if order.undo else "sign it with --root DIR, for all"
        raise CommandFailed(f"nobody did it: {reasons_of(survey)}", hint)
    # Behind --admin stands a control plane whose cluster we learn from its answer.
    expected = [answer.own.cluster if isinstance(answer, TrustReport) else name for name, answer in answers.items()]
    return await _follow(order, telling, [ClusterName(name) for name in expected], at=at, refused=survey.silent)


async def _follow(
    order: Order,
    telling: Telling,
    expected: Collection[ClusterName],
    *,
    at: datetime,
    root: Root | None = None,
    refused: Sequence[Silent] = (),
) -> RevocationOutcome:
    loop = asyncio.get_running_loop()
    deadline, handed = loop.time() + telling.wait.total_seconds(), loop.time()
    live = await telling.mesh.live()
    restored: dict[str, datetime] = {}
    while True:
        survey = await telling.mesh.look()
        outcome = judge(order, survey, expected, at=at, signed=root is not None, live=live, refused=refused)
        outcome = timed(outcome, restored, telling.clock())
        telling.watch(outcome)
        # Without the root, who refused or was not told is not told again: there is nothing to wait for.
        waits = any(one.state is State.WAITING for one in outcome.members)
        if outcome.is_done or not waits or loop.time() >= deadline:
            return outcome
        if root is not None and loop.time() - handed >= _REPEAT:
            await telling.mesh.deliver(root.documents(), ())
            live, handed = await telling.mesh.live(), loop.time()
        await asyncio.sleep(_POLL)


def _late(order: Order, seen: Seen | None, survey: Survey, *, signed: bool) -> str:
    """Returns why a control plane may not have taken an order."""
    follows_all = seen is not None and survey.bundle is not None and seen.statement.sequence >= survey.bundle.sequence
    if signed and order.undo and follows_all:
        return "revoked it by itself too: undo that without --root"
    return "has not taken it yet"


def _answer(
    order: Order, seen: Seen | None, cluster: ClusterName, *, at: datetime, is_heard: bool, late: str
) -> MemberAnswer:
    if seen is None:
        return MemberAnswer(cluster=cluster, state=State.NOT_REACHED, reason="nothing was ever heard of it")
    said = seen.statement
    has_it = (order.subject in said.revoked) is not order.undo
    enforcing = said.enforcing if has_it else 0
    if has_it and enforcing >= said.proxies:
        since = said.enforced_since
        # The clocks of members differ: it did not come into force before it was decided.
        seconds = None if since is None else max(0.0, round((since - at).total_seconds(), 1))
        return MemberAnswer(
            cluster=cluster,
            state=State.IN_FORCE,
            since=since,
            seconds=seconds,
            proxies=said.proxies,
            enforcing=enforcing,
        )
    if not is_heard:
        return MemberAnswer(cluster=cluster, state=State.NOT_REACHED, reason="is not heard now", proxies=said.proxies)
    waiting = said.waiting if has_it else (Waiting("the control plane", late),)
    return MemberAnswer(
        cluster=cluster, state=State.WAITING, proxies=said.proxies, enforcing=enforcing, waiting=waiting
    )
