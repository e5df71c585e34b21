"""A running lab: all its processes and links, what may be done to them, and their end.

async with TaskGroup                                    lives as long as any process: reaps them
  └─ async with TaskGroup                               links, kubelet, guard's watch, API, bring-up
       ... until `end` is called, or anything fails
  └─ stop all processes
"""

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from deploy.contexts import Context
from deploy.failures import CommandFailed
from deploy.lab import commands
from deploy.lab.addresses import Addresses, Instance
from deploy.lab.kubelet import Kubelet
from deploy.lab.links import LinkState
from deploy.lab.plan import Plan
from deploy.lab.processes import Child, Command, Guard, Memory, StartFailed, State, memory
from deploy.lab.reports import (
    Action,
    ActionReport,
    ClusterReport,
    EnvironmentReport,
    LabReport,
    LinkReport,
    Phase,
    ProcessReport,
)
from deploy.lab.state import Folder
from deploy.lab.targets import Kind, ProcessId, UnknownTarget, all_processes, select
from deploy.lab.wiring import Wiring

Service = Callable[[], Coroutine[None, None, None]]
"""Something that runs as long as the lab does."""

_GRACE = timedelta(seconds=3)  # between SIGTERM and SIGKILL when the lab ends


class GuardLost(CommandFailed):
    """The guard ended: from here on a crash would leave processes behind, so the lab ends too."""


class _Ended(Exception):
    """Leaves the group of services in the ordinary way."""


class Lab:
    """One lab. `source` is the lab file, whose folder is where its relative paths and its programs start."""

    def __init__(
        self,
        plan: Plan,
        addresses: Addresses,
        *,
        folder: Folder,
        source: Path,
        environ: Mapping[str, str],
    ) -> None:
        self.plan = plan
        self.addresses = addresses
        self.folder = folder
        self._source = source
        self._environ = commands.base_environment(environ)
        self._processes = all_processes(plan)
        self._instances = {str(process): self._instance(process) for process in self._processes if process.workload}
        apps = {str(each): self._instances[str(each)] for each in self._processes if each.kind is Kind.APP}
        self._kubelet = Kubelet(
            apps,
            {cluster.name: folder.of(cluster.name, "pods") for cluster in plan.clusters},
            lambda name: name in self.children and self.children[name].is_alive,
        )
        self._wiring = Wiring(plan, addresses)
        self.children: dict[str, Child] = {}
        self._phase = Phase.STARTING
        self._events: list[str] = []
        self._ending = asyncio.Event()
        self._reapers: asyncio.TaskGroup | None = None
        self._guard_pid = 0

    async def run(self, bring_up: Callable[[Self], Awaitable[None]], *services: Service) -> None:
        """Brings the lab up by `bring_up` and keeps it until `end` is called; all processes are gone when this returns.

        `services` run beside it and are cancelled at the end. Raises what made the start fail (CommandFailed), or
        GuardLost.
        """
        try:
            async with Guard() as guard, asyncio.TaskGroup() as self._reapers:
                self._guard_pid = guard.pid
                self.children = {str(process): self._child(process, guard) for process in self._processes}
                try:
                    await self._serve(guard, bring_up, services)
                finally:
                    self._phase = Phase.STOPPING
                    await self._stop_all()
        except BaseExceptionGroup as group:
            expected, bugs = group.split(CommandFailed)
            if expected is None or bugs is not None:
                raise
            raise _first(expected) from None

    def end(self) -> None:
        """Makes `run` stop everything and return."""
        self._ending.set()

    def tell(self, event: str) -> None:
        """Notes what happened while the lab starts."""
        self._events.append(event)

    async def start_process(self, process: ProcessId) -> None:
        """Starts a process unless it runs. Raises CommandFailed."""
        if self._reapers is None:
            raise RuntimeError("the lab does not run")
        try:
            await self.children[str(process)].start(self._reapers)
        except StartFailed as error:
            raise CommandFailed(str(error), "look at its command in the lab file") from error

    async def act(self, action: Action, target: str) -> ActionReport:
        """Does something to all processes that a target means, at once. Raises CommandFailed."""
        chosen = self.select(target)
        before = {process: self.children[str(process)].state for process in chosen}
        match action:
            case Action.KILL:
                await self._kill(chosen)
            case Action.WIPE:
                self._check_wipe(chosen)
                await self._kill(chosen)
                for process in chosen:
                    await asyncio.to_thread(shutil.rmtree, self.folder.etcd(process), ignore_errors=True)
            case Action.START:
                for process in chosen:
                    await self.start_process(process)
            case Action.PAUSE:
                for process in chosen:
                    self.children[str(process)].pause()
            case Action.RESUME:
                for process in chosen:
                    self.children[str(process)].resume()
        is_wipe = action is Action.WIPE  # it changes also what was dead before
        changed = [each for each in chosen if is_wipe or self.children[str(each)].state is not before[each]]
        return ActionReport(
            changed=tuple(map(str, changed)),
            unchanged=tuple(str(process) for process in chosen if process not in changed),
            ended=datetime.now(UTC),
        )

    async def set_link(self, one: str, other: str, state: LinkState) -> LinkReport:
        """Cuts or heals what is between two clusters, or a control plane and its etcd. Raises CommandFailed."""
        return await self._wiring.set(one, other, state)

    def select(self, target: str) -> tuple[ProcessId, ...]:
        """Returns the processes that a target means. Raises CommandFailed."""
        try:
            return select(target, self._processes)
        except UnknownTarget as error:
            raise CommandFailed(error.message, error.hint) from error

    def environment(self, target: str) -> EnvironmentReport:
        """Returns the surroundings of the first process of a target; of a workload, those of its app."""
        chosen = self.select(target)
        process = next((each for each in chosen if each.kind is Kind.APP), chosen[0])
        if process.workload:
            variables = commands.app_environment(self._instances[str(process)], self._environ)
        else:
            variables = self._environ | commands.exec_environment(process, self.addresses, self.folder)
        return EnvironmentReport(target=str(process), folder=str(self._source.parent), variables=variables)

    def address(self, process: ProcessId) -> str:
        """Returns where a process listens."""
        mine = self.addresses.clusters[process.cluster]
        match process.kind:
            case Kind.ETCD:
                return mine.etcd[max(process.number - 1, 0)]
            case Kind.CONTROL:
                return mine.control[process.number - 1]
            case Kind.GATEWAY:
                return mine.gateways[process.number - 1]
            case Kind.SIDECAR | Kind.APP:
                return mine.pods[process.namespace, process.pod]

    def is_ready(self, process: ProcessId) -> bool:
        """Says whether an app is ready."""
        return self._kubelet.is_ready(str(process))

    def instance(self, process: ProcessId) -> Instance:
        """Returns the workload instance of an app or sidecar."""
        return self._instances[str(process)]

    async def report(self, *, with_memory: bool = False) -> LabReport:
        """Returns everything about the lab; measuring memory takes some milliseconds a process."""
        sizes: dict[str, Memory] = {}
        if with_memory:
            sizes = await asyncio.to_thread(self._memory)
        total = sum(sizes.values(), Memory())
        return LabReport(
            name=self.folder.name,
            phase=self._phase,
            file=str(self._source),
            domain=self.plan.domain,
            pid=os.getpid(),
            addresses=f"127.{self.addresses.slot}.0.0/16",
            folder=str(self.folder.path),
            events=tuple(self._events),
            clusters=tuple(self._cluster_report(cluster.name) for cluster in self.plan.clusters),
            processes=tuple(self._process_report(each, sizes.get(str(each), Memory())) for each in self._processes),
            links=self._wiring.report(),
            etcd_links=self._wiring.report_etcd(),
            resident_bytes=total.resident,
            proportional_bytes=total.proportional,
        )

    def contexts(self) -> dict[str, Context]:
        """Returns where the control planes are, for the command line."""
        return {
            name: Context(mine.admin_urls[0], str(commands.admin_token_file(self.folder, name)), mine.admin_urls[1:])
            for name, mine in self.addresses.clusters.items()
        }

    async def _serve(
        self, guard: Guard, bring_up: Callable[[Self], Awaitable[None]], services: Sequence[Service]
    ) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch(guard))
                await asyncio.to_thread(self._kubelet.write_all)
                group.create_task(self._kubelet.run())
                for link in self._wiring.links:
                    group.create_task(link.run())
                for service in services:
                    group.create_task(service())
                group.create_task(self._bring_up(bring_up))
                await self._ending.wait()
                raise _Ended
        except* _Ended:
            pass

    async def _bring_up(self, bring_up: Callable[[Self], Awaitable[None]]) -> None:
        for link in self._wiring.links:
            await link.wait_listening()
        await bring_up(self)
        self._phase = Phase.UP

    async def _watch(self, guard: Guard) -> None:
        await guard.watch()
        raise GuardLost("the guard of this lab has ended, so the lab ends too", "start the lab again")

    async def _kill(self, chosen: Sequence[ProcessId]) -> None:
        async with asyncio.TaskGroup() as group:
            for process in chosen:
                group.create_task(self.children[str(process)].kill())

    def _check_wipe(self, chosen: Sequence[ProcessId]) -> None:
        """Refuses to wipe what keeps no data, and one node of three: the others would not take it back."""
        for process in chosen:
            if process.kind is not Kind.ETCD:
                raise CommandFailed(f"{process} keeps no data that can be wiped", f"such as {process.cluster}/etcd")
            if not set(self.select(f"{process.cluster}/etcd")) <= set(chosen):
                raise CommandFailed(f"{process} is one node of three", f"wipe them together: {process.cluster}/etcd")

    async def _stop_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for child in self.children.values():
                group.create_task(child.stop(_GRACE))

    def _instance(self, process: ProcessId) -> Instance:
        [cluster] = [each for each in self.plan.clusters if each.name == process.cluster]
        [workload] = [
            each for each in cluster.workloads if (each.namespace, each.name) == (process.namespace, process.workload)
        ]
        return Instance(cluster=cluster, workload=workload, number=process.number, address=self.address(process))

    def _child(self, process: ProcessId, guard: Guard) -> Child:
        name = str(process)
        if process.kind is Kind.APP:
            return Child(self._command(process), guard, lambda: self._kubelet.wake(name))
        return Child(self._command(process), guard)

    def _command(self, process: ProcessId) -> Command:
        [cluster] = [each for each in self.plan.clusters if each.name == process.cluster]
        env: Mapping[str, str] = self._environ
        work = self.folder.path
        match process.kind:
            case Kind.ETCD:
                argv = commands.etcd_command(process, self.addresses, self.folder.etcd(process))
                env = {name: value for name, value in env.items() if not name.startswith("ETCD_")}
            case Kind.CONTROL:
                manifests = (*(self._source.parent / each for each in cluster.manifests),)
                argv = commands.control_command(
                    self.plan,
                    cluster,
                    number=process.number,
                    addresses=self.addresses,
                    folder=self.folder,
                    manifests=(*manifests, self.folder.of(cluster.name, "pods")),
                )
            case Kind.GATEWAY | Kind.SIDECAR:
                argv = commands.envoy_command(self.folder.proxy(process))
            case Kind.APP:
                argv = commands.app_command(self._instances[str(process)])
                env = commands.app_environment(self._instances[str(process)], env)
                work = self._source.parent
        return Command(argv=argv, env=env, folder=work, log=self.folder.log(process))

    def _memory(self) -> dict[str, Memory]:
        alive = {name: child.pid for name, child in self.children.items() if child.pid is not None}
        sizes = {name: memory(pid) for name, pid in alive.items()}
        # our own children are these processes, already counted, and the guard
        sizes["lab"] = memory(os.getpid(), with_children=False) + memory(self._guard_pid)
        return sizes

    def _process_report(self, process: ProcessId, size: Memory) -> ProcessReport:
        child = self.children.get(str(process))
        return ProcessReport(
            target=str(process),
            cluster=process.cluster,
            kind=process.kind,
            zone=self._instances[str(process)].zone if process.workload else "",
            state=child.state if child else State.NEW,
            address=self.address(process),
            log=str(self.folder.log(process)),
            pid=child.pid if child else None,
            exit_code=child.exit_code if child else None,
            ready=self.is_ready(process) if process.kind is Kind.APP else None,
            started=child.started if child else None,
            resident_bytes=size.resident,
            proportional_bytes=size.proportional,
        )

    def _cluster_report(self, name: str) -> ClusterReport:
        [cluster] = [each for each in self.plan.clusters if each.name == name]
        mine = self.addresses.clusters[name]
        return ClusterReport(
            name=name,
            region=cluster.region,
            zones=cluster.zones,
            cloud=cluster.cloud,
            network=cluster.network,
            admin=mine.admin_urls[0],
            admin_token_file=str(commands.admin_token_file(self.folder, name)),
            etcd=mine.etcd_urls,
            gateways=mine.gateways,
        )


def _first(group: BaseExceptionGroup[CommandFailed]) -> CommandFailed:
    """Returns one of the errors that ended the lab: the others are its consequences or say the same."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, CommandFailed)
    return error
