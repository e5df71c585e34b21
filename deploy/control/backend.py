"""What the admin API asks of a running control plane, answered: reports, joining, tokens, trust."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from deploy.control import keeper, problems
from deploy.control.departures import Departures
from deploy.control.drain_backend import DrainBackend
from deploy.control.membership import Joining
from deploy.control.options import ControlOptions
from deploy.control.problems import Found, Known
from deploy.control.reports import cluster_reports, gauges, introduction, is_in_step, proxy_report
from deploy.control.service_reports import service_reports
from deploy.control.tokens import Tokens
from deploy.control.trust_backend import TrustBackend
from federation.admin import AdminRefused, DrainOrder, RevocationOrder, TokenOrder, TrustDocuments
from federation.etcd.health import Health
from federation.model import CONTROL_ADMIN_PORT, ServiceKey
from federation.names import host_port
from federation.peering.offer import ListenerStatus
from federation.peering.peers import PeerStatus
from federation.reports import (
    ClusterReport,
    DrainReport,
    KnownTokenReport,
    LoadReport,
    ProxyReport,
    RevocationReport,
    ServiceReport,
    StatusReport,
    TokenReport,
    TrustReport,
)
from federation.store import MeshStore
from federation.telemetry import Gauges, Telemetry
from federation.xds.ads import ProxyStatus
from trust.audit import AuditEvent, AuditKind
from trust.joining import Grant, Introduction, JoinRequest

log = logging.getLogger(__name__)

_LOOK_EVERY = timedelta(seconds=1)
"""How often problems are looked for, whether somebody asks or not: it is to be known since when they last."""


class MemberParts(Protocol):
    """What only a cluster that has joined has: as the reports see it."""

    @property
    def is_serving(self) -> bool:
        """Says whether the ports for proxies and peers are open."""

    @property
    def handed_over_since(self) -> datetime | None:
        """Since when proxies and peers are left to other replicas; None while they are served."""

    @property
    def is_steady(self) -> bool:
        """Says whether other replicas may leave their proxies and peers to this one."""

    @property
    def leader(self) -> str:
        """The replica that leads, empty when unknown."""

    @property
    def certificate_expires(self) -> datetime | None:
        """When the control plane's own certificate expires; None when there is none."""

    @property
    def trust_backend(self) -> TrustBackend:
        """Answers what is asked about trust."""

    @property
    def drain_backend(self) -> DrainBackend:
        """Answers what is asked about drains."""

    @property
    def departures(self) -> Departures:
        """Answers what is asked about leaving."""

    @property
    def missing(self) -> int:
        """How many records etcd does not hold that it should."""

    def problems(self, now: datetime) -> Iterable[Found]:
        """Returns what does not work now."""

    @property
    def unoffered(self) -> tuple[tuple[ServiceKey, str, datetime], ...]:
        """The own exports that cannot be offered as they are, why, and since when."""

    def load(self) -> LoadReport: ...
    def listeners(self) -> tuple[ListenerStatus, ...]: ...
    def proxies(self) -> tuple[ProxyStatus, ...]: ...
    def peers(self) -> tuple[PeerStatus, ...]: ...


class Backend:
    """The `AdminBackend` of one replica. `parts` is None until the cluster has joined."""

    def __init__(
        self,
        options: ControlOptions,
        *,
        store: MeshStore,
        health: Health,
        tokens: Tokens,
        joining: Joining,
        on_event: Callable[[AuditEvent], None],
    ) -> None:
        self._options = options
        self._health = health
        self._problems: tuple[Known, ...] = ()
        self._store = store
        self._tokens = tokens
        self._joining = joining
        self._on_event = on_event
        self._started = datetime.now(UTC)
        self.parts: MemberParts | None = None
        self.telemetry = Telemetry(options.settings.name, options.replica, self._gauges)

    @property
    def is_ready(self) -> bool:
        """Says whether proxies are served."""
        return self.parts is not None and self.parts.is_serving and self.parts.handed_over_since is None

    @property
    def follows_etcd(self) -> bool:
        """Says whether this replica would serve the proxies of those that are cut from etcd."""
        return self.parts is not None and self.parts.is_serving and self.parts.is_steady

    async def run(self) -> None:
        """Looks for what does not work, for ever, and logs when a problem begins and ends."""
        while True:
            before, now = {one.name: one for one in self._problems}, {one.name: one for one in self._look()}
            for name in now.keys() - before.keys():
                found = now[name].found
                log.warning("problem", extra={"subject": found.subject, "problem": found.message})
            for name in before.keys() - now.keys():
                found = before[name].found
                log.info("problem over", extra={"subject": found.subject, "problem": found.message})
            await asyncio.sleep(_LOOK_EVERY.total_seconds())

    def status(self) -> StatusReport:
        """Returns the health of this replica."""
        snapshot, settings, parts = self._store.snapshot, self._options.settings, self.parts
        proxies = parts.proxies() if parts else ()
        leader = parts.leader if parts else ""
        waiting = sorted(self._store.missing) if parts else [*sorted(self._store.missing - {keeper.ORIGIN}), "join"]
        return StatusReport(
            cluster=settings.name,
            domain=settings.domain,
            replica=self._options.replica,
            replicas=tuple(f"http://{host_port(one, CONTROL_ADMIN_PORT)}" for one in self._options.control_addresses),
            is_joined=parts is not None,
            is_ready=self.is_ready,
            waiting_for=tuple(waiting or self._waits()),
            is_leader=leader == self._options.replica,
            leader=leader,
            revision=snapshot.revision,
            started=self._started,
            services=len(snapshot.services),
            exports=len(snapshot.exports.keys() & snapshot.services.keys()),
            pods=len(snapshot.pods),
            ready_pods=sum(pod.ready for pod in snapshot.pods.values()),
            imports=len(snapshot.imports),
            clusters=len(snapshot.members.keys() | {settings.name}),
            proxies=len(proxies),
            proxies_in_step=sum(map(is_in_step, proxies)),
            certificate_expires=parts.certificate_expires if parts else None,
            findings=tuple(finding for _, found in sorted(snapshot.findings.items()) for finding in found),
            warnings=parts.trust_backend.warnings() if parts else (),
            problems=problems.reports(self._problems),
        )

    def clusters(self) -> tuple[ClusterReport, ...]:
        """Returns the members of the mesh."""
        parts = self.parts
        return cluster_reports(
            self._store.snapshot,
            self._options.settings,
            peers=parts.peers() if parts else (),
            listeners=parts.listeners() if parts else (),
            drains=parts.drain_backend.drains() if parts else (),
        )

    def services(self) -> tuple[ServiceReport, ...]:
        """Returns the services known here."""
        unoffered = {key: why for key, why, _ in self.parts.unoffered} if self.parts else {}
        return service_reports(self._store.snapshot, self._options.settings, unoffered)

    def proxies(self) -> tuple[ProxyReport, ...]:
        """Returns the proxies of this replica."""
        connected = self.parts.proxies() if self.parts else ()
        return tuple(proxy_report(proxy, self._options.settings, self._options.replica) for proxy in connected)

    def member(self) -> Introduction:
        """Returns how this cluster introduces itself; raises AdminRefused before it is a member."""
        self._member("it cannot introduce anybody")
        return introduction(self._options.settings)

    def metrics(self) -> bytes:
        """Returns the metrics as Prometheus text."""
        return self.telemetry.text()

    async def join_request(self, *, fresh: bool) -> JoinRequest:
        """Returns the pending join request, or a fresh one in its place."""
        return await self._joining.request(fresh=fresh)

    async def join(self, grant: Grant) -> None:
        """Takes a grant: the first, or one for the next authority."""
        if self.parts is None:
            await self._joining.accept(grant)
            subject, said = f"cluster {grant.cluster}", f"a member of {grant.domain}"
            self._on_event(AuditEvent(kind=AuditKind.JOINED, at=datetime.now(UTC), subject=subject, reason=said))
        else:
            await self.parts.trust_backend.accept(grant)

    async def tokens(self) -> tuple[KnownTokenReport, ...]:
        """Returns the join tokens as they are kept."""
        return await self._tokens.list()

    async def create_token(self, order: TokenOrder, *, asked_by: str) -> TokenReport:
        """Makes a join token and tells it this once."""
        return await self._tokens.create(order, asked_by=asked_by)

    async def revoke_token(self, token: str, *, asked_by: str) -> KnownTokenReport:
        """Removes a join token: the proxies that it admitted are out."""
        return await self._tokens.revoke(token, asked_by=asked_by)

    def trust(self) -> TrustReport:
        """Returns whom this cluster believes, and what it and its peers say of their trust."""
        return self._trust_backend.report()

    async def take_documents(self, documents: TrustDocuments, *, asked_by: str) -> TrustReport:
        """Takes what the root signed, for this cluster or to be passed on."""
        return await self._trust_backend.take_documents(documents, asked_by=asked_by)

    def revocations(self) -> tuple[RevocationReport, ...]:
        """Returns who is believed no longer here."""
        return self._trust_backend.revocations()

    async def revoke(self, order: RevocationOrder, *, asked_by: str) -> RevocationReport:
        """Has this cluster believe somebody no longer."""
        return await self._trust_backend.revoke(order, asked_by=asked_by)

    async def restore(self, subject: str, *, asked_by: str) -> tuple[RevocationReport, ...]:
        """Undoes `revoke`."""
        return await self._trust_backend.restore(subject, asked_by=asked_by)

    def drains(self) -> tuple[DrainReport, ...]:
        """Returns which members calls are leaving."""
        return self._member("nobody calls").drain_backend.drains()

    async def drain(self, order: DrainOrder, *, asked_by: str) -> tuple[DrainReport, ...]:
        """Has calls leave a member, step by step."""
        return await self._member("nobody calls").drain_backend.drain(order, asked_by=asked_by)

    async def undrain(self, cluster: str, service: str, *, asked_by: str) -> tuple[DrainReport, ...]:
        """Undoes `drain`."""
        return await self._member("nobody calls").drain_backend.undrain(cluster, service, asked_by=asked_by)

    def load(self) -> LoadReport:
        """Returns what the proxies of this replica carry."""
        return self._member("it has no proxies").load()

    async def leave(self, *, asked_by: str) -> StatusReport:
        """Has this cluster leave the mesh."""
        await self._member("there is nothing to leave").departures.leave(asked_by=asked_by)
        return self.status()

    async def come_back(self, *, asked_by: str) -> StatusReport:
        """Has this cluster come back into the mesh that it left."""
        await self._member("it has not left any").departures.come_back(asked_by=asked_by)
        return self.status()

    async def forget(self, cluster: str, *, asked_by: str) -> tuple[ClusterReport, ...]:
        """Has this cluster forget a member."""
        await self._member("it knows nobody").departures.forget(cluster, asked_by=asked_by)
        return self.clusters()

    def _waits(self) -> list[str]:
        if self.is_ready:
            return []
        return ["etcd"] if self.parts is not None and self.parts.handed_over_since is not None else ["ports"]

    @property
    def _trust_backend(self) -> TrustBackend:
        return self._member("it has no trust of its own").trust_backend

    def _member(self, otherwise: str) -> MemberParts:
        if self.parts is None:
            name = self._options.settings.name
            raise AdminRefused(
                f"{name} is no member of a mesh yet: {otherwise}",
                f"isthmus join {name} --root DIR comes first",
                status=409,
            )
        return self.parts

    def _look(self) -> tuple[Known, ...]:
        now, parts = datetime.now(UTC), self.parts
        etcd = self._health.problems(now, missing=parts.missing if parts else 0)
        found = [*problems.of_etcd(etcd), *problems.of_files(self._store.snapshot)]
        self._problems = problems.continued(self._problems, [*found, *(parts.problems(now) if parts else ())], now)
        return self._problems

    def _gauges(self) -> Gauges:
        parts = self.parts
        return gauges(
            self._store.snapshot,
            parts.proxies() if parts else (),
            settings=self._options.settings,
            is_leading=parts is not None and parts.leader == self._options.replica,
            standing=parts.trust_backend.standing() if parts and self.is_ready else None,
            problems=problems.counts(self._problems),
            drains=parts.drain_backend.drains() if parts else (),
            loads=parts.load().loads if parts else (),
            now=datetime.now(UTC),
        )
