"""The assembly of a control plane: which part runs when, and how all of them end.

at once          sources and the copy of etcd fill the picture; the admin API answers
once joined      the keeper of its trust, the election: the leader publishes, and listens to the peers
once complete    ADS for the proxies, the federation stream for the peers, through one entrance
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import grpc
from aiohttp import web

from deploy.control import keeper, problems
from deploy.control.admissions import Admissions
from deploy.control.audit import Trail
from deploy.control.backend import Backend
from deploy.control.departures import Departures
from deploy.control.drain_backend import DrainBackend
from deploy.control.entrance import Entrance
from deploy.control.keeper import Keeper
from deploy.control.membership import Joining
from deploy.control.options import ControlOptions, admin_token
from deploy.control.problems import Found
from deploy.control.proxies import Compiler
from deploy.control.reports import introduced_member, issued_to, refused_because, short_type
from deploy.control.tokens import Tokens
from deploy.control.trust_backend import TrustBackend
from federation.acknowledgements import Acknowledgements
from federation.admin import admin_app
from federation.etcd import EtcdClient, EtcdUnavailable, Fenced
from federation.etcd.election import Election, Leadership
from federation.model import ADS_PORT, CONTROL_ADMIN_PORT, FEDERATION_PORT, ProxyRole, ServiceKey
from federation.names import departure_key, host_port, member_key
from federation.peering.farewells import Farewells
from federation.peering.freshness import answer_limit
from federation.peering.offer import ListenerStatus, Offer
from federation.peering.peers import Peers, PeerStatus
from federation.peering.publisher import Publisher
from federation.peering.records import keep_member
from federation.peering.replica import Replica
from federation.peering.silences import Silences
from federation.reports import LoadReport
from federation.sources.manifests import ManifestSource
from federation.store import MeshStore
from federation.telemetry import Telemetry
from federation.xds.ads import AdsServer, ProxyStatus
from federation.xds.loads import LoadServer
from federation.xds.server import SERVER_OPTIONS, patient_options
from trust.attestation import Door
from trust.audit import AuditEvent, AuditKind
from trust.enrolment import Enrolment, Membership
from trust.refusals import Refusal

log = logging.getLogger(__name__)

ORIGINS = frozenset({"source", "etcd", keeper.ORIGIN})
"""Who must have told all it has before anybody is told anything."""

_GRACE = 0.5  # seconds for streams to end when the process is told to; proxies go to another replica at once


class CannotListen(Refusal):
    """An address that the control plane should listen on is not to be had."""


async def run(options: ControlOptions, stop: asyncio.Event) -> None:
    """Runs a control plane until `stop` is set; raises a Refusal when it cannot start."""
    try:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(_run(options))
            await stop.wait()
            log.info("control plane stops", extra={"cluster": options.settings.name, "replica": options.replica})
            running.cancel()
    except BaseExceptionGroup as errors:
        raise _only(errors, (Refusal,)) from None


async def _run(options: ControlOptions) -> None:
    token = await asyncio.to_thread(admin_token, options)
    joining = await asyncio.to_thread(Joining, options)
    await asyncio.to_thread(joining.load)
    store = MeshStore(ORIGINS)
    replica = Replica(options.settings, store)
    async with EtcdClient(options.etcd, tls=options.etcd_tls) as etcd, _trail(options) as trail:
        tokens = Tokens(etcd, trail.note)
        backend = Backend(options, store=store, health=etcd.health, tokens=tokens, joining=joining, on_event=trail.note)
        async with asyncio.TaskGroup() as group:
            group.create_task(backend.run())
            group.create_task(trail.run())
            group.create_task(tokens.run())
            group.create_task(ManifestSource(options.manifests).run(store))
            group.create_task(replica.run(etcd))
            group.create_task(Silences(store).run())
            group.create_task(_serve_admin(admin_app(backend, token), options.address))
            log.info("control plane started", extra={"cluster": options.settings.name, "replica": options.replica})
            membership = await joining.wait()
            member = Member(
                options,
                joining.enrolment,
                membership,
                store=store,
                etcd=etcd,
                replica=replica,
                tokens=tokens,
                trail=trail,
                telemetry=backend.telemetry,
            )
            backend.parts = member
            await member.run()


class Member:
    """The parts of a control plane whose cluster has joined: it has an authority, an identity, proxies and peers."""

    def __init__(
        self,
        options: ControlOptions,
        enrolment: Enrolment,
        membership: Membership,
        *,
        store: MeshStore,
        etcd: EtcdClient,
        replica: Replica,
        tokens: Tokens,
        trail: Trail,
        telemetry: Telemetry,
    ) -> None:
        settings = options.settings
        self._options = options
        self._introductions = membership.introductions
        self._store = store
        self._etcd = etcd
        self._tokens = tokens
        self._trail = trail
        self._telemetry = telemetry
        self._acknowledgements = Acknowledgements(etcd)
        self._keeper = Keeper(
            settings,
            enrolment,
            membership,
            data=options.data,
            leaf_lifetime=options.leaf_lifetime,
            store=store,
            etcd=etcd,
            replica=replica,
            acknowledgements=self._acknowledgements,
            connected=lambda: {proxy.node for proxy in self._ads.proxies()},
            on_event=self._note,
        )
        self._offer = Offer(settings, self._keeper, store=store, etcd=etcd, replica=replica)
        self._publisher = Publisher(self._keeper, store=store, etcd=etcd, replica=replica, offer=self._offer)
        self._peers = Peers(settings, self._keeper, store=store, etcd=etcd, replica=replica)
        self._election = Election(etcd, options.replica)
        admissions = Admissions(settings, Door([tokens]), self._note)
        self._ads = AdsServer(
            store,
            Compiler(settings, options.control_addresses),
            admission=admissions,
            secrets=self._keeper.secrets,
            acknowledgements=self._acknowledgements,
            on_converged=telemetry.converged,
            on_pushed=lambda type_url: telemetry.pushed(short_type(type_url)),
            on_rejected=lambda type_url: telemetry.refused(short_type(type_url)),
            on_crowded=lambda role: telemetry.crowded(role.value),
            max_age=options.stream_max_age,
        )
        self.trust_backend = TrustBackend(
            self._keeper,
            store=store,
            etcd=etcd,
            replica=replica,
            proxies=self._ads.proxies,
            leaf_lifetime=options.leaf_lifetime,
            on_event=self._note,
        )
        self.drain_backend = DrainBackend(settings, store=store, etcd=etcd, on_event=self._note)
        self.departures = Departures(settings, store=store, etcd=etcd, on_event=self._note)
        self._farewells = Farewells(store=store, etcd=etcd, replica=replica, own=settings.name)
        self._loads = LoadServer(
            store,
            cluster=settings.name,
            replica=options.replica,
            admission=admissions,
            connected=lambda: {
                proxy.node for proxy in self._ads.proxies() if proxy.scope.audience.role is ProxyRole.SIDECAR
            },
            max_age=options.stream_max_age,
        )
        self._entrance = Entrance(etcd.health, [one for one in options.control_addresses if one != options.address])
        self._is_serving = False
        self._started = datetime.now(UTC)

    @property
    def is_serving(self) -> bool:
        """Says whether the ports for proxies and peers are open."""
        return self._is_serving

    @property
    def handed_over_since(self) -> datetime | None:
        """Since when proxies and peers are left to other replicas; None while they are served."""
        return self._entrance.handed_over_since

    @property
    def is_steady(self) -> bool:
        """Says whether other replicas may leave their proxies and peers to this one."""
        return self._entrance.is_steady

    @property
    def leader(self) -> str:
        """The replica that leads, empty when unknown."""
        return self._election.leader or ""

    @property
    def certificate_expires(self) -> datetime | None:
        """When the control plane's own certificate expires; None when there is none."""
        return self._keeper.identity.expires

    @property
    def missing(self) -> int:
        """How many records etcd does not hold that it should."""
        return self._publisher.missing

    @property
    def unoffered(self) -> tuple[tuple[ServiceKey, str, datetime], ...]:
        """The own exports that cannot be offered as they are, why, and since when."""
        return self._offer.unoffered

    def listeners(self) -> tuple[ListenerStatus, ...]:
        """The peers that listen to this replica."""
        return self._offer.listeners()

    def problems(self, now: datetime) -> Iterator[Found]:
        """Yields what does not work now."""
        election, unwritten = self._election, self._publisher.unwritten
        hearing = {status.peer: status.problem for status in self._peers.status()}
        refusals = ((one.peer, what, why) for one in self._offer.listeners() for what, why in one.rejections)
        yield from problems.of_handover(self._entrance.handed_over_since)
        yield from problems.of_leader(self.leader, election.vacant_since, now, campaign=election.problem)
        if unwritten is not None:
            yield from problems.of_records(unwritten.reason, unwritten.since)
        yield from problems.of_peers(self._store.snapshot, self._options.settings.name, hearing, started=self._started)
        yield from problems.of_exports(self._offer.unoffered)
        yield from problems.of_refusals(refusals)
        yield from problems.of_proxies(self._ads.proxies(), now)

    def load(self) -> LoadReport:
        """What the proxies of this replica carry."""
        return self._loads.report()

    def proxies(self) -> tuple[ProxyStatus, ...]:
        """The proxies of this replica."""
        return self._ads.proxies()

    def peers(self) -> tuple[PeerStatus, ...]:
        """The peers that this replica hears: none unless it leads."""
        return self._peers.status()

    async def run(self) -> None:
        """Runs for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keeper.run())
            group.create_task(self._acknowledgements.run())
            group.create_task(self._offer.run())
            group.create_task(self._publisher.run_helping())
            group.create_task(self._election.run(self._lead))
            group.create_task(self._loads.run())
            group.create_task(self._entrance.run())
            group.create_task(self._serve())
            group.create_task(self.trust_backend.run())

    async def _serve(self) -> None:
        """Opens the ports once the picture is whole: who asks earlier would be told that there is nothing."""
        await self._store.wait_ready()
        await self._keeper.wait_certified()
        address = self._options.address
        identity = self._keeper.identity
        ads = _server(
            (self._ads.handler, self._loads.handler),
            address,
            ADS_PORT,
            identity.server_credentials(wants_clients=False),
            self._entrance,
            SERVER_OPTIONS,
        )
        peers = identity.server_credentials(wants_clients=True)
        options = patient_options(answer_limit(self._options.settings.thresholds))
        federation = _server((self._offer.handler,), address, FEDERATION_PORT, peers, self._entrance, options)
        try:
            await ads.start()
            await federation.start()
            self._is_serving = True
            log.info("proxies and peers are served", extra={"address": address})
            await ads.wait_for_termination()
        finally:
            self._is_serving = False
            async with asyncio.TaskGroup() as group:
                group.create_task(ads.stop(_GRACE))
                group.create_task(federation.stop(_GRACE))

    async def _lead(self, leadership: Leadership) -> None:
        try:
            await self._remember_introductions(leadership)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._publisher.run(leadership))
                group.create_task(self._peers.run(leadership))
                group.create_task(self._farewells.run(leadership))
                group.create_task(self._acknowledgements.sweep(leadership, self._store))
                group.create_task(self._keeper.lead())
                group.create_task(self._tokens.run_tidying())
        except BaseExceptionGroup as errors:
            raise _only(errors, (Fenced, EtcdUnavailable)) from None

    def _note(self, event: AuditEvent) -> None:
        """Writes an event into the audit trail and counts it. Safe in any thread."""
        self._trail.note(event)
        match event.kind:
            case AuditKind.ISSUED:
                self._telemetry.issued(issued_to(event.subject))
            case AuditKind.REFUSED:
                self._telemetry.issuance_refused(refused_because(event))
            case _:
                pass

    async def _remember_introductions(self, leadership: Leadership) -> None:
        """Writes whom the root introduced, where nothing is known: an etcd that lost its data knows nobody."""
        for introduced in self._introductions:
            if introduced.name == self._options.settings.name or await self._etcd.get(departure_key(introduced.name)):
                continue
            if await self._etcd.get(member_key(introduced.name)) is None:
                await keep_member(self._etcd, introduced_member(introduced), guard=leadership.guard)


@asynccontextmanager
async def _trail(options: ControlOptions) -> AsyncIterator[Trail]:
    trail = await asyncio.to_thread(Trail.open, options.data, options.replica)
    try:
        yield trail
    finally:
        await asyncio.to_thread(trail.close)


async def _serve_admin(app: web.Application, address: str) -> None:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, address, CONTROL_ADMIN_PORT).start()
        except OSError as error:
            raise CannotListen(
                f"the admin API cannot listen on {address}:{CONTROL_ADMIN_PORT}: {error.strerror}",
                "is another control plane running there? --address names another one",
            ) from error
        await asyncio.get_running_loop().create_future()  # until cancelled
    finally:
        await runner.cleanup()


def _server(
    handlers: tuple[grpc.GenericRpcHandler, ...],
    address: str,
    port: int,
    credentials: grpc.ServerCredentials,
    entrance: Entrance,
    options: tuple[tuple[str, int], ...],
) -> grpc.aio.Server:
    server = grpc.aio.server(interceptors=[entrance], options=options)
    server.add_generic_rpc_handlers(handlers)
    where = host_port(address, port)
    try:
        server.add_secure_port(where, credentials)
    except RuntimeError as error:
        raise CannotListen(
            f"the control plane cannot listen on {where}", "is another one running there? --address names another one"
        ) from error
    return server


def _only(errors: BaseExceptionGroup[BaseException], kinds: tuple[type[Exception], ...]) -> BaseException:
    """Returns the first error of a group when all are of `kinds`, else the group: anything else is a bug."""
    expected, rest = errors.split(kinds)
    if expected is None or rest is not None:
        return errors
    first: BaseException = expected
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
