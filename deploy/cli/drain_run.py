"""One run of `isthmus drain` or `undrain`: whom it reaches, what it has told them, and what it has counted since."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec

from deploy.cli import draining
from deploy.cli.drain_mesh import Look, Member, Mesh
from deploy.cli.drain_outcome import Reached, Remainder
from deploy.cli.draining import FULL, WINDOW, AbortRule, Errors, Lane, Mark, Quiet, Scope, Tally
from deploy.cli.survey import Silent
from deploy.failures import CommandFailed
from federation.admin import DrainOrder
from federation.reports import DrainReport

_POLL = 0.5  # seconds between two looks: proxies report once a second
_TRAVEL = 5.0  # seconds that a drain may take from the drained member to another, before that one is told for itself
_RESTORE = 15.0  # seconds that an undoing may take until all members show it
_CONFIRM = 15.0  # seconds after the grace in which counters that show nothing open may confirm that nothing is new
SEVERED = timedelta(seconds=20)
"""How long it takes until what is severed has ended, and proxies have said so: listeners drain for 10 s."""


@dataclass
class Tools:
    """What a drain is driven with. `tell` is handed lines that stay, `watch` what holds now and what is waited for."""

    mesh: Mesh
    clock: Callable[[], datetime]
    tell: Callable[[str], None]
    watch: Callable[[str, Reached], None]


@dataclass
class Run:
    """One run of a command: the tools, and what it has seen."""

    tools: Tools
    scope: Scope
    look: Look = field(default_factory=Look)
    weight: int = FULL
    by_itself: bool = False
    alone: set[str] = field(default_factory=set)
    refused: dict[str, Silent] = field(default_factory=dict)
    services: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    tally: Tally = field(default_factory=Tally)
    marks: tuple[Mark, ...] = ()
    at_zero: Tally = field(default_factory=Tally)

    @property
    def callers(self) -> dict[str, Member]:
        """Those whose calls are to leave, as far as they were reached; who has left the mesh calls nobody."""
        known = self.look.known()
        return {name: one for name, one in self.look.members.items() if self.scope.calls(name) and name in known}

    @property
    def own(self) -> Member | None:
        return self.look.members.get(self.scope.cluster)

    async def see(self) -> None:
        """Looks at all members, and counts on."""
        self.look = await self.tools.mesh.look()
        now = asyncio.get_running_loop().time()
        loads = [load for member in self.callers.values() for load in member.loads]
        self.tally = draining.count(self.tally, loads)
        self.marks = (*draining.recent(self.marks, now), Mark(now, self.tally))
        said = [one for member in self.callers.values() for one in member.drains if self._is_of(one)]
        if said and self.weight == 0:
            self.kept = frozenset(name for one in said for name in one.kept if self.scope.service in ("", name))

    def now(self) -> Reached:
        lanes = self.lanes()
        return Reached(
            weight=self.weight,
            at=self.tools.clock(),
            calls=draining.rate(self.marks, lanes),
            open=sum(self.tally.open.get(lane, 0) for lane in lanes),
            errors=self.errors(),
        )

    def lanes(self) -> frozenset[Lane]:
        return draining.leaving(self.scope, self.tally, kept=self.kept)

    def errors(self) -> Errors:
        return draining.errors_since(self.marks, draining.diverted(self.scope, self.tally, self.services))

    def weight_in_force(self) -> int:
        """Returns the weight that a ramp goes on from: the highest that somebody still has."""
        weights = [draining.weight_at(name, member.drains, self.scope) for name, member in self.callers.items()]
        if self.own:
            asked = [one for one in self.own.drains if one.asked_of == self.scope.cluster]
            everybody = msgspec.structs.replace(self.scope, clients=True)
            weights.append(draining.weight_at("", asked, everybody))
        return max(weights, default=FULL)

    def is_as_ordered(self) -> bool:
        """Says whether nothing is to be told: the weight is 0, and its callers leave, or stay, as they should."""
        return self.weight == 0 and all(one.clients is self.scope.clients for one in self.drains())

    def _is_of(self, drain: DrainReport) -> bool:
        return drain.cluster == self.scope.cluster and drain.service == self.scope.service

    async def lower(self, weight: int, *, sever: bool = False) -> None:
        """Tells the drained member, else each that calls it, and waits until all that were reached have it."""
        order = DrainOrder(self.scope.cluster, weight, self.scope.service, self.scope.clients, sever)
        if self.by_itself and self.own:
            [*no] = await self.tools.mesh.drain(self.look, {self.scope.cluster: order})
            if no and not no[0].is_away:
                raise CommandFailed(f"{self.scope.cluster} refuses: {no[0].reason}")
            if no:
                self._goes_on_without(no[0].reason)
        elif self.by_itself:
            self._goes_on_without("it does not answer any more")
        if not self.by_itself:
            self.alone |= self.callers.keys() - {self.scope.cluster}
        await self._tell_alone(order)
        self.weight = weight
        if not sever:
            await self._arrives(order)
        self._check_told()

    def _goes_on_without(self, reason: str) -> None:
        self.by_itself = False
        who = self.scope.cluster
        self.tools.tell(
            f"warning: the control plane of {who} is not reached ({reason}): each member is told for itself"
        )

    async def _tell_alone(self, order: DrainOrder) -> None:
        orders = {name: order for name in sorted(self.alone) if self._is_news(name, order)}
        no = await self.tools.mesh.drain(self.look, orders)
        self.refused = {name: one for name, one in self.refused.items() if name not in orders}
        self.refused |= {one.cluster: one for one in no}

    def _is_news(self, name: str, order: DrainOrder) -> bool:
        """Says whether a member is to be told: never of a weight above the one that it has, from a run before."""
        if name not in self.look.members:
            return False
        mine = self.asked(name, self.look.members[name])
        return (
            not mine
            or order.sever
            or any(one.weight > order.weight or one.clients is not order.clients for one in mine)
        )

    async def _arrives(self, order: DrainOrder) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _TRAVEL
        while True:
            await self.see()
            late = [
                name
                for name, member in self.callers.items()
                if draining.weight_at(name, member.drains, self.scope) > order.weight and name not in self.refused
            ]
            if not late:
                return
            if loop.time() >= deadline:
                break
            await asyncio.sleep(_POLL / 2)
        deaf = [name for name in late if name not in self.alone and name != self.scope.cluster]
        if deaf:
            names = ", ".join(sorted(deaf))
            self.tools.tell(f"warning: {names} did not hear of it from {self.scope.cluster}: told for itself alone")
            self.alone |= set(deaf)
            await self._tell_alone(order)

    def _check_told(self) -> None:
        if self.by_itself or not self.alone or self.alone - self.refused.keys():
            return
        raise CommandFailed(
            f"nobody did it: {'; '.join(f'{one.cluster}: {one.reason}' for one in self.refused.values())}",
            "the weights are as they were; `isthmus status` says how the control planes are",
        )

    async def hold(self, span: timedelta, rule: AbortRule | None) -> Errors | None:
        """Holds a weight for a time; returns early, with the errors, when they break the rule."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + span.total_seconds()
        while True:
            now = self.now()
            if rule is not None and rule.is_broken_by(now.errors):
                return now.errors
            left = deadline - loop.time()
            if left <= 0:
                return None
            self.tools.watch(f"the next step in {left:.0f} s", now)
            await asyncio.sleep(min(_POLL, left))
            await self.see()

    async def emptied(self, grace: timedelta, rule: AbortRule | None, *, force: bool) -> bool | Errors:
        """Waits until the counters prove that nothing is carried; False when the time is over, or the errors that break
        the rule."""
        loop = asyncio.get_running_loop()
        began, quiet = loop.time(), dict[tuple[str, str], Quiet]()
        while True:
            loads = [load for member in self.callers.values() for load in member.loads]
            quiet = dict(draining.settle(quiet, loads, self.scope, kept=self.kept))
            now, spent = self.now(), loop.time() - began
            if rule is not None and rule.is_broken_by(now.errors):
                return now.errors
            is_proven = bool(quiet) and all(one.is_proven for one in quiet.values())
            is_seen = force or not (self.not_reached() or self.uncounted())
            if is_proven and is_seen and (rule is None or spent >= WINDOW):
                return True
            over = grace.total_seconds() + (0.0 if now.open else _CONFIRM)
            if spent >= over:
                return is_proven
            what = f"until it carries nothing, up to {over - spent:.0f} s more"
            self.tools.watch(what, now)
            await asyncio.sleep(_POLL)
            await self.see()

    def not_reached(self) -> tuple[Silent, ...]:
        """Returns whose counters are missing: of the drained member only if its own callers are to leave."""
        return self.look.not_reached(without=[] if self.scope.clients else [self.scope.cluster])

    def uncounted(self) -> tuple[str, ...]:
        """Returns what the members that were reached do not know of their own callers."""
        silent = [
            f"{proxy} is connected to {name}, but does not report what it carries"
            for name, member in self.callers.items()
            for proxy in draining.unheard(member.loads)
        ]
        unled = [
            f"{member.unled} of the ready pods of {name} have no proxy that is connected to its control plane"
            for name, member in self.callers.items()
            if member.unled
        ]
        return (*silent, *unled)

    def remaining(self) -> tuple[Remainder, ...]:
        """Returns what is still carried, kept services too."""
        found = []
        for lane in sorted(draining.leaving(self.scope, self.tally)):
            calls = self.tally.issued.get(lane, 0) - self.at_zero.issued.get(lane, 0)
            if self.tally.open.get(lane, 0) or calls:
                found.append(Remainder(lane.caller, lane.service, self.tally.open.get(lane, 0), calls))
        return tuple(found)

    async def restore(self) -> tuple[Silent, ...]:
        """Ends the drain at all members that were reached and were asked for it; returns who would not."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _RESTORE
        no: dict[str, Silent] = {}
        done: set[str] = set()  # their pictures may show for a moment what etcd holds no longer
        while True:
            asked = [
                name for name, member in self.look.members.items() if self.asked(name, member) and name not in done
            ]
            told = {"cluster": self.scope.cluster, "service": self.scope.service}
            no = {one.cluster: one for one in await self.tools.mesh.undrain(self.look, asked, **told)}
            done |= set(asked) - no.keys()
            await self.see()
            if not self.drains() or loop.time() >= deadline or any(not one.is_away for one in no.values()):
                return tuple(no.values())
            await asyncio.sleep(_POLL)

    def asked(self, name: str, member: Member) -> Sequence[DrainReport]:
        """Returns the drains of this scope that were asked of a member itself."""
        return [one for one in member.drains if self._is_of(one) and one.asked_of == name]

    def drains(self) -> tuple[DrainReport, ...]:
        """Returns the drains of this scope that anybody reports."""
        return tuple(one for member in self.look.members.values() for one in member.drains if self._is_of(one))

    async def raise_to(self, weight: int) -> None:
        """Raises the weight where it is lower, at those that were asked for the drain."""
        orders = {}
        for name, member in self.look.members.items():
            for one in self.asked(name, member):
                if one.weight < weight:
                    orders[name] = DrainOrder(one.cluster, weight, one.service, one.clients)
        self.refused |= {no.cluster: no for no in await self.tools.mesh.drain(self.look, orders)}
        self.weight = weight
        await self.see()
