"""Admin APIs of members that are made up, served over HTTP as control planes serve theirs."""

import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

import msgspec
from aiohttp.test_utils import TestServer

from federation.admin import AdminBackend, AdminRefused, DrainOrder, admin_app
from federation.reports import (
    ClusterReport,
    DrainReport,
    LoadReport,
    ProxyReport,
    ServiceReport,
    StatusReport,
)
from tests.support.model_callers import CART, cluster_report, service_report

NOW = datetime(2026, 11, 22, tzinfo=UTC)


@dataclass
class FakeMember:
    """The `AdminBackend` of a control plane that knows `members`, as far as drains and departures go."""

    name: str
    members: tuple[str, ...]
    replicas: tuple[str, ...] = ()
    ready_pods: int = 1
    sidecars: int = 1
    is_joined: bool = True
    refuses: str = ""
    left: set[str] = field(default_factory=set)
    forgot: list[str] = field(default_factory=list)
    asked: list[DrainOrder] = field(default_factory=list)
    heard: "list[FakeMember]" = field(default_factory=list)
    is_ready = True
    follows_etcd = True

    def status(self) -> StatusReport:
        return StatusReport(
            cluster=self.name,
            domain="mesh.test",
            replica="one",
            replicas=self.replicas,
            is_joined=self.is_joined,
            is_ready=True,
            waiting_for=(),
            is_leader=True,
            leader="one",
            revision=1,
            started=NOW,
            services=1,
            exports=1,
            pods=self.ready_pods,
            ready_pods=self.ready_pods,
            imports=1,
            clusters=len(self.members),
            proxies=self.sidecars,
            proxies_in_step=self.sidecars,
        )

    def clusters(self) -> tuple[ClusterReport, ...]:
        left = dict.fromkeys(self.left, NOW)
        known = [name for name in self.members if name not in self.forgot]
        return tuple(cluster_report(name, is_self=name == self.name, left=left.get(name)) for name in known)

    def services(self) -> tuple[ServiceReport, ...]:
        return (service_report(CART, *self.members),)

    def proxies(self) -> tuple[ProxyReport, ...]:
        return tuple(
            ProxyReport(f"{self.name}/shop/{number}", "sidecar", "", "one", NOW, 1, 1, NOW, True, ())
            for number in range(self.sidecars)
        )

    def load(self) -> LoadReport:
        if not self.is_joined:
            raise AdminRefused(f"{self.name} is no member of a mesh yet", "", status=409)
        return LoadReport(
            cluster=self.name,
            replica="one",
            interval=1.0,
            reporting=self.sidecars,
            silent=(),
            at=datetime.now(UTC),
            started=NOW,
            loads=(),
        )

    def drains(self) -> tuple[DrainReport, ...]:
        own = [(self.name, order) for order in self.asked]
        told = [(other.name, order) for other in self.heard for order in other.asked if order.cluster == other.name]
        return tuple(
            DrainReport(
                **msgspec.structs.asdict(order),
                since=NOW,
                asked_of=who,
            )
            for who, order in (*own, *told)
        )

    async def drain(self, order: DrainOrder, *, asked_by: str) -> tuple[DrainReport, ...]:
        self._check()
        self.asked = [one for one in self.asked if (one.cluster, one.service) != (order.cluster, order.service)]
        self.asked.append(order)
        return self.drains()

    async def undrain(self, cluster: str, service: str, *, asked_by: str) -> tuple[DrainReport, ...]:
        self._check()
        self.asked = [one for one in self.asked if (one.cluster, one.service) != (cluster, service)]
        return self.drains()

    async def leave(self, *, asked_by: str) -> StatusReport:
        self._check()
        for other in self.heard:
            if self in other.heard:
                other.left.add(self.name)
        return self.status()

    async def forget(self, cluster: str, *, asked_by: str) -> tuple[ClusterReport, ...]:
        self._check()
        self.forgot.append(cluster)
        return self.clusters()

    def _check(self) -> None:
        if self.refuses:
            raise AdminRefused(self.refuses, "", status=409)


def fake_members(*names: str) -> dict[str, FakeMember]:
    """Makes members that all hear each other."""
    members = {name: FakeMember(name, names) for name in names}
    for one in members.values():
        one.heard = [other for other in members.values() if other is not one]
    return members


@contextlib.asynccontextmanager
async def served(members: Iterable[FakeMember]) -> AsyncIterator[dict[str, str]]:
    """Serves admin APIs; gives their URLs by member."""
    async with contextlib.AsyncExitStack() as stack:
        urls = {}
        for member in members:
            app = admin_app(cast(AdminBackend, member), "secret")
            server = await stack.enter_async_context(TestServer(app))
            urls[member.name] = str(server.make_url("")).rstrip("/")
        yield urls
