"""What the control planes that a command reaches say of the mesh's trust, put together; and how they are told.

Each of them knows what the others said last, so one that answers is enough to see all. Who is reached directly is
believed about itself; of the others the newest word counts.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

import msgspec

from deploy.admin_client import AdminClient, ControlRefused, ControlUnreachable
from federation.model import Liveness
from federation.reports import TrustReport
from trust.bundle import TrustBundle
from trust.joining import Grant
from trust.rotation import Statements
from trust.spiffe import ClusterName
from trust.statements import TrustStatement

_Answer = TypeVar("_Answer")


class Silent(msgspec.Struct, frozen=True, rename="camel"):
    """A control plane that did not answer (`is_away`), or refused what it was handed."""

    cluster: str
    reason: str
    is_away: bool = False


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a member said, and when it was heard: by itself just now (None), or by the member `via`."""

    statement: TrustStatement
    heard: datetime | None = None
    via: str = ""


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """The trust of the mesh, as those that answered know it. `bundle` is the newest; None when nobody answered.

    `known` names all members that they know of, also those of which nothing was heard; `states` says which of them are
    heard now, by one that was asked. `bundles` are those that the `reached` follow, as they say.
    """

    bundle: TrustBundle | None = None
    bundles: Mapping[ClusterName, TrustBundle] = {}
    members: Mapping[ClusterName, Seen] = {}
    known: tuple[ClusterName, ...] = ()
    states: Mapping[ClusterName, Liveness] = {}
    reached: tuple[ClusterName, ...] = ()
    silent: tuple[Silent, ...] = ()
    warnings: tuple[str, ...] = ()

    def statements(self, clusters: Iterable[ClusterName]) -> Statements:
        """Returns what each of `clusters` said last; None for one of which nothing was heard."""
        return {name: self.members[name].statement if name in self.members else None for name in clusters}


class Mesh(Protocol):
    """The control planes of a mesh, as many as can be reached; none of these raises because one cannot be."""

    async def look(self) -> Survey:
        """Asks all."""

    async def deliver(self, bundles: Sequence[TrustBundle], grants: Sequence[Grant]) -> Survey:
        """Hands documents and grants to all, and returns what they say then."""


def put_together(answers: Mapping[str, TrustReport | Silent]) -> Survey:
    """Makes one survey of the answers, by the name under which each control plane was asked.

    One that answers in another name than that is not believed: it would speak for somebody else.
    """
    answers = {name: _in_its_own_name(name, answer) for name, answer in answers.items()}
    reports = [answer for answer in answers.values() if isinstance(answer, TrustReport)]
    members: dict[ClusterName, Seen] = {}
    for report in reports:
        for other in report.others:
            held = members.get(other.statement.cluster)
            if held is None or held.statement.at < other.statement.at:
                seen = Seen(statement=other.statement, heard=other.heard, via=report.own.cluster)
                members[other.statement.cluster] = seen
    members |= {report.own.cluster: Seen(statement=report.own) for report in reports}
    warnings = [f"{report.own.cluster}: {warning}" for report in reports for warning in report.warnings]
    return Survey(
        bundle=max((report.bundle for report in reports), key=lambda one: one.sequence, default=None),
        bundles={report.own.cluster: report.bundle for report in reports},
        members=dict(sorted(members.items())),
        reached=tuple(sorted(report.own.cluster for report in reports)),
        silent=tuple(answer for answer in answers.values() if isinstance(answer, Silent)),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _in_its_own_name(name: str, answer: TrustReport | Silent) -> TrustReport | Silent:
    if isinstance(answer, Silent) or name in ("", answer.own.cluster):
        return answer
    return Silent(name, f"says that it is {answer.own.cluster}: check its address")


def reasons_of(survey: Survey) -> str:
    """Returns who was not reached, and why, in one line."""
    return "; ".join(f"{one.cluster}: {one.reason}" if one.cluster else one.reason for one in survey.silent)


async def ask_each(
    clusters: Iterable[str], client: Callable[[str], AdminClient], ask: Callable[[AdminClient], Awaitable[_Answer]]
) -> dict[str, _Answer | Silent]:
    """Asks control planes by name, all at once; who does not answer, or refuses, is Silent with the reason."""
    async with asyncio.TaskGroup() as group:
        asked = {name: group.create_task(ask_one(name, client, ask)) for name in clusters}
    return {name: task.result() for name, task in asked.items()}


async def ask_one(
    name: str, client: Callable[[str], AdminClient], ask: Callable[[AdminClient], Awaitable[_Answer]]
) -> _Answer | Silent:
    """Asks one control plane."""
    asked = client(name)  # a new one each time: it forgets the replicas that did not answer
    try:
        async with asked:
            return await ask(asked)
    except (ControlUnreachable, ControlRefused) as error:
        return Silent(name, error.message, is_away=isinstance(error, ControlUnreachable))


class ReachedMesh:
    """The mesh behind the admin APIs of `clusters`; `client` makes a client of one by its name."""

    def __init__(self, clusters: Collection[str], client: Callable[[str], AdminClient]) -> None:
        self._clusters = tuple(clusters)
        self._client = client

    async def look(self) -> Survey:
        """Asks all at once."""
        return put_together(await self.each(lambda client: client.trust()))

    async def glance(self) -> Survey:
        """Asks one, which knows the words of all; then only those of which it has heard nothing, or the next if it is
        silent itself."""
        states: dict[ClusterName, Liveness] = {}

        async def ask(client: AdminClient) -> TrustReport:
            for member in await client.clusters():
                if states.get(ClusterName(member.name)) is not Liveness.LIVE:
                    states[ClusterName(member.name)] = member.state
            return await client.trust()

        answers: dict[str, TrustReport | Silent] = {}
        for name in self._clusters:
            if name not in put_together(answers).members:
                answers[name] = await ask_one(name, self._client, ask)
        return msgspec.structs.replace(put_together(answers), known=tuple(states), states=states)

    async def deliver(self, bundles: Sequence[TrustBundle], grants: Sequence[Grant]) -> Survey:
        """Hands over documents and grants to all at once."""
        return put_together(await self.each(lambda client: client.deliver(bundles, grants)))

    async def live(self) -> frozenset[str]:
        """Returns the members that are reached here, or heard by one that is."""
        found: set[str] = set()

        async def ask(client: AdminClient) -> TrustReport:
            found.update(member.name for member in await client.clusters() if member.state is Liveness.LIVE)
            return await client.trust()

        return frozenset(found | set(put_together(await self.each(ask)).reached))

    async def each(
        self, ask: Callable[[AdminClient], Awaitable[TrustReport]], *, without: Collection[str] = ()
    ) -> dict[str, TrustReport | Silent]:
        """Asks all control planes but those named; who does not answer, or refuses, is Silent with the reason."""
        return await ask_each((name for name in self._clusters if name not in without), self._client, ask)
