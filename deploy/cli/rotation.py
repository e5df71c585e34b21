"""Drives a rotation from beside the root: hands documents over, waits for proof, grants requests, takes the next step.

Nothing is remembered here. The root directory says how far a rotation is, the members say what they have taken, and
`trust.rotation` decides: so a rotation that was interrupted at any moment goes on when its command is run again.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from difflib import get_close_matches

import msgspec

from deploy.cli.copies import check_claims, check_newest
from deploy.cli.rotation_stages import (
    BREAKS,
    RotationReport,
    Stage,
    is_under_way,
    missed,
)
from deploy.cli.survey import Mesh, Survey, reasons_of
from deploy.failures import CommandFailed
from trust.bundle import TrustBundle
from trust.joining import Grant, JoinRequest
from trust.refusals import Refusal
from trust.root import Root
from trust.rotation import (
    Action,
    Holdup,
    RootStage,
    Statements,
    authority_holdups,
    due_requests,
    root_step,
    signs_as_asked,
    trust_holdups,
)
from trust.spiffe import ClusterName

_POLL = 0.5  # seconds between two looks at the mesh
_REPEAT = 5.0  # seconds after which what was not taken is handed over again: it may have been lost on its way


@dataclass
class Tools:
    """What a rotation is driven with. `wait` bounds each stage, `watch` is shown who holds it up.

    `force`, when there is one, is asked once when the time is over: with what will break and who holds it up; True
    advances without proof.
    """

    root: Root
    mesh: Mesh
    wait: timedelta
    clock: Callable[[], datetime]
    tell: Callable[[str], None]
    watch: Callable[[Stage, Sequence[Holdup]], None]
    force: Callable[[str, Sequence[Holdup]], bool] | None = None


@dataclass
class _Run:
    """One run of a command: the tools, and what has happened in it."""

    tools: Tools
    rotation: str
    members: tuple[ClusterName, ...] = ()
    survey: Survey = field(default_factory=Survey)
    grants: dict[str, Grant] = field(default_factory=dict)
    refused: dict[ClusterName, str] = field(default_factory=dict)
    unwilling: dict[str, str] = field(default_factory=dict)
    caught_up: list[ClusterName] = field(default_factory=list)
    forced: list[Stage] = field(default_factory=list)
    judged: set[str] = field(default_factory=set)
    confirmed: set[ClusterName] = field(default_factory=set)
    handed: float = -_REPEAT

    @property
    def statements(self) -> Statements:
        return self.survey.statements(self.members)

    async def begin(self) -> None:
        """Looks at the mesh for the first time; raises CommandFailed when the root directory is not the newest."""
        root, mesh = self.tools.root, self.tools.mesh
        self._read_members()
        if not self.members:
            raise CommandFailed("the root has no member yet", "isthmus join CLUSTER --root DIR")
        self.survey = await mesh.look()
        if not self.survey.reached:
            message = f"no control plane was reached: {reasons_of(self.survey)}"
            raise CommandFailed(message, "one is enough; name it with --admin")
        check_newest(root.documents(), self.survey, now=self.tools.clock())
        check_claims(root.bundle, self.statements)
        for name in self.survey.reached:
            follows = self.survey.members[name].statement.sequence
            if follows < root.bundle.sequence:
                self.caught_up.append(name)
                said = f"It follows the trust bundle {follows}, the newest is {root.bundle.sequence}"
                self.tools.tell(f"Handing {name} what it missed. {said}.")

    async def prove(self, stage: Stage, holdups: Callable[[TrustBundle, Statements], Sequence[Holdup]]) -> bool:
        """Waits until nobody holds a stage up; False when somebody did to the end, and the stage was not forced."""
        tools, loop = self.tools, asyncio.get_running_loop()
        deadline = loop.time() + tools.wait.total_seconds()
        self.handed = -_REPEAT
        while True:
            await self._hand_over(loop.time())
            self._confirm()
            self._read_members()
            held = self.explained(holdups(tools.root.bundle, self.statements))
            tools.watch(stage, held)
            if not held:
                return True
            if loop.time() >= deadline:
                return self._force(stage, held)
            await asyncio.sleep(_POLL)
            self.survey = await tools.mesh.look()

    def explained(self, holdups: Sequence[Holdup]) -> tuple[Holdup, ...]:
        """Adds to each holdup what we know here: that its request was refused, or that it was not reached."""
        silent = {one.cluster: one.reason for one in self.survey.silent}
        explained = []
        for holdup in holdups:
            reason = holdup.reason
            if holdup.cluster in self.refused:
                reason += f"; its request was refused: {self.refused[holdup.cluster]}"
            if holdup.cluster in self.unwilling:
                reason += f"; it refuses what it is handed: {self.unwilling[holdup.cluster]}"
            elif holdup.cluster in silent:
                reason += f"; not reached from here: {silent[holdup.cluster]}"
            explained.append(msgspec.structs.replace(holdup, reason=reason))
        return tuple(explained)

    def report(self, stage: Stage, holdups: Sequence[Holdup] = (), *, was_begun: bool = True) -> RotationReport:
        return RotationReport(
            rotation=self.rotation,
            stage=stage,
            sequence=self.tools.root.bundle.sequence,
            is_done=stage is Stage.DONE,
            holdups=self.explained(holdups),
            granted=tuple(sorted({grant.cluster for grant in self.grants.values()})),
            caught_up=tuple(self.caught_up),
            forced=tuple(self.forced),
            not_reached=self.survey.silent,
            was_begun=was_begun,
        )

    def _read_members(self) -> None:
        """Reads who is a member, anew at each look: who joins meanwhile must not be left behind."""
        self.members = tuple(member.name for member in self.tools.root.members())

    async def _hand_over(self, now: float) -> None:
        """Gives out documents and grants that somebody has not taken yet: at once what is new, the rest now and then.

        One member that is reached is enough, the others hear from it; each that is reached gets all directly.
        """
        root = self.tools.root
        fresh = [request for request in self._due() if request.id not in self.judged]
        for request in fresh:
            self._grant(request)
        newest = root.bundle.sequence
        behind = [name for name in self.members if (said := self.statements[name]) and said.sequence < newest]
        unknown = [name for name in self.members if self.statements[name] is None]
        due = [self.grants[request.id] for request in self._due() if request.id in self.grants]
        is_new = any(self.survey.members[name].statement.sequence < newest for name in self.survey.reached)
        has_new_grant = any(request.id in self.grants for request in fresh)
        if not (is_new or has_new_grant) and not ((behind or unknown or due) and now - self.handed >= _REPEAT):
            return
        self.handed = now
        await self._deliver(root.documents(), ())
        for grant in due:
            await self._deliver((), (grant,))

    async def _deliver(self, bundles: Sequence[TrustBundle], grants: Sequence[Grant]) -> None:
        answer = await self.tools.mesh.deliver(bundles, grants)
        for one in answer.silent:
            if one.cluster in self.survey.reached:
                self.unwilling[one.cluster] = one.reason
        for name in answer.reached:
            self.unwilling.pop(name, None)
        self.survey = _both(self.survey, answer)

    def _confirm(self) -> None:
        """Notes in the ledger who uses the key that it was granted last: the one before may ask for nothing more."""
        for name, said in self.statements.items():
            active = said.active if said else None
            if active and name not in self.confirmed and signs_as_asked(self.tools.root.bundle, name, said):
                self.tools.root.confirm(name, active.fingerprint)
                self.confirmed.add(name)

    def _due(self) -> tuple[JoinRequest, ...]:
        return due_requests(self.tools.root.bundle, self.statements)

    def _grant(self, request: JoinRequest) -> None:
        name = request.cluster.name
        self.judged.add(request.id)
        try:
            self.grants[request.id] = self.tools.root.renew(request, now=self.tools.clock())
        except Refusal as refusal:
            self.tools.tell(f"The request of {name} is refused: {refusal.message}")
            self.refused[name] = refusal.message
        else:
            self.refused.pop(name, None)
            self.confirmed.discard(name)
            self.tools.tell(f"Granted {name} its authority of generation {request.generation}.")

    def _force(self, stage: Stage, holdups: Sequence[Holdup]) -> bool:
        breaks = BREAKS.get(stage)
        if self.tools.force is None or self.forced or breaks is None:
            return False
        if not self.tools.force(breaks, holdups):
            return False
        self.forced.append(stage)
        return True


async def rotate_root(tools: Tools) -> RotationReport:
    """Rotates the root, or goes on with its rotation, until it is done or a stage was not proven within `wait`.

    When members missed the last rotation, hands them what they missed instead, and begins no new one. Raises
    CommandFailed and trust's Refusals.
    """
    run, root = _Run(tools, "root"), tools.root
    await run.begin()
    if root.stage is RootStage.IDLE and (missing := missed(root.bundle, run.statements)):
        tools.tell(f"{_names(missing)} missed the last rotation: it goes on for them, and no new one begins.")
        if not await run.prove(Stage.CATCHING_UP, _of(missing)):
            return run.report(Stage.CATCHING_UP, _of(missing)(root.bundle, run.statements), was_begun=False)
        if not run.forced:
            run.caught_up = sorted({*run.caught_up, *missing})
            return run.report(Stage.DONE, was_begun=False)
    if root.stage is not RootStage.IDLE:
        tools.tell(f"Going on with the rotation that is under way: it is {root.stage}.")
    while True:
        step = root_step(root.stage, root.bundle, run.statements)
        if step.action is not Action.ANNOUNCE:
            stage = Stage(root.stage.value)
            if not await run.prove(stage, lambda bundle, said: root_step(root.stage, bundle, said).holdups):
                return run.report(stage, root_step(root.stage, root.bundle, run.statements).holdups)
        match step.action:
            case Action.ANNOUNCE:
                bundle = root.announce(now=tools.clock())
                tools.tell(f"Trust bundle {bundle.sequence}: a new root is announced beside the old one.")
            case Action.SIGN:
                bundle = root.sign_with_next(now=tools.clock())
                tools.tell(
                    f"Trust bundle {bundle.sequence}: the new root signs, and every member renews its authority."
                )
            case Action.RETIRE:
                bundle = root.retire(now=tools.clock())
                tools.tell(f"Trust bundle {bundle.sequence}: the old root is trusted no longer.")
            case Action.FINISH:
                root.finish()
                tools.tell("The key of the old root is destroyed.")
                return run.report(Stage.DONE)


async def rotate_intermediate(tools: Tools, cluster: ClusterName) -> RotationReport:
    """Gives `cluster` a new authority, or goes on with that, until it is done or a stage was not proven within `wait`.

    Raises CommandFailed and trust's Refusals.
    """
    run, root = _Run(tools, f"intermediate of {cluster}"), tools.root
    await run.begin()
    check_member(cluster, run.members)
    if any(one.cluster == cluster and not one.account for one in root.bundle.revoked):
        message = f"{cluster} is revoked: it gets no new authority"
        raise CommandFailed(message, f"believe it again first: isthmus revoke {cluster} --undo --root DIR")

    is_trusted = root.stage is RootStage.ANNOUNCED  # then it is the old root that signs, which all trust
    if not is_trusted and not await run.prove(Stage.TRUSTING, trust_holdups):
        return run.report(Stage.TRUSTING, trust_holdups(root.bundle, run.statements))
    if is_under_way(root.bundle, cluster, run.statements[cluster]):
        tools.tell(f"Going on with the rotation of {cluster} that is under way.")
    else:
        bundle = root.require_renewal(cluster, now=tools.clock())
        wanted = bundle.generations[cluster]
        tools.tell(f"Trust bundle {bundle.sequence}: {cluster} is asked for an authority of generation {wanted}.")

    def asked(bundle: TrustBundle, said: Statements) -> tuple[Holdup, ...]:
        held = authority_holdups(bundle, said, only=cluster)
        return held if not signs_as_asked(bundle, cluster, said[cluster]) else ()

    def renewing(bundle: TrustBundle, said: Statements) -> tuple[Holdup, ...]:
        return authority_holdups(bundle, said, only=cluster)

    def outliving(_bundle: TrustBundle, said: Statements) -> tuple[Holdup, ...]:
        kept = said[cluster]
        older = [one for one in kept.authorities if not one.is_active] if kept else []
        if not older:
            return ()
        ends = max(one.not_after for one in older)
        return (Holdup(cluster, f"keeps the key of its old authority, which ends at {ends:%Y-%m-%d %H:%M} UTC"),)

    for stage, holdups in ((Stage.ASKED, asked), (Stage.RENEWING, renewing), (Stage.OUTLIVING, outliving)):
        if not await run.prove(stage, holdups):
            return run.report(stage, holdups(root.bundle, run.statements))
    return run.report(Stage.DONE)


def check_member(cluster: str, members: Collection[str]) -> None:
    """Raises CommandFailed, which names near matches, for a cluster that the root did not grant."""
    if cluster in members:
        return
    near = get_close_matches(cluster, members, n=1)
    hint = f"did you mean {near[0]}?" if near else f"members are: {', '.join(members)}"
    raise CommandFailed(f"{cluster} is no member of this mesh", hint)


def _of(missing: Collection[ClusterName]) -> Callable[[TrustBundle, Statements], tuple[Holdup, ...]]:
    def holdups(bundle: TrustBundle, members: Statements) -> tuple[Holdup, ...]:
        some = {name: said for name, said in members.items() if name in missing}
        found = {holdup.cluster: holdup for holdup in authority_holdups(bundle, some)}
        found |= {holdup.cluster: holdup for holdup in trust_holdups(bundle, some)}
        return tuple(found[name] for name in sorted(found))

    return holdups


def _both(before: Survey, answer: Survey) -> Survey:
    """Returns what is known after handing something over: who refused it is not silent about itself."""
    members = {**before.members, **answer.members}
    return msgspec.structs.replace(
        answer,
        bundle=answer.bundle or before.bundle,
        members=members,
        reached=tuple(sorted({*before.reached, *answer.reached})),
    )


def _names(clusters: Sequence[str]) -> str:
    return ", ".join(clusters)
