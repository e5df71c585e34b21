"""Listens to the other clusters: receives what they offer and keeps it in this cluster's etcd. The leader's task.

A peer's silence, reset or empty answer deletes nothing: an import goes when its owner says so, on a stream or among the
differences after a reconnect. What cannot be believed is refused with a reason and shown, and disturbs nothing else.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec
from envoy.config.core.v3.base_pb2 import Node

from federation import names
from federation.etcd import EtcdClient, EtcdRefused, EtcdUnavailable
from federation.etcd.election import Leadership
from federation.model import ClusterSettings, Freshness, GatewayAddress, Liveness
from federation.peering import exports
from federation.peering.allowance import Pace
from federation.peering.beats import PACE
from federation.peering.diagnosis import diagnose
from federation.peering.dialing import PeerUnavailable, open_channel
from federation.peering.exports import short_line
from federation.peering.freshness import (
    LOOK_EVERY,
    Silence,
    answer_limit,
    beat_period,
    is_worth_telling,
    judge,
    longest_silence,
    tell_period,
)
from federation.peering.intake import Intake
from federation.peering.listening import NOT_UNDERSTOOD, listen
from federation.peering.membership import REVOKED, why_revoked
from federation.peering.news import News, pass_on
from federation.peering.offer import INTRODUCTION, REFUSAL
from federation.peering.records import write_records
from federation.peering.redials import Turns, draw
from federation.peering.rejections import PeerRejection, Rejections
from federation.peering.replica import Replica
from federation.peering.trust_keeper import TrustKeeper, issuer_of, own_issuer, spread
from federation.snapshot import Snapshot
from federation.staleness import spans_that_matter
from federation.store import MeshStore
from federation.xds.client import Received
from trust.issuance import IssuanceRefused
from trust.spiffe import ClusterName

log = logging.getLogger(__name__)

_DENIED = "permission denied: "
_SAYS_REVOKED = _DENIED + REVOKED
_SHORTEST_LIFE = timedelta(seconds=30)
"""Of a connection, however near the renewal of the certificate it was made with."""


class PeerStatus(msgspec.Struct, frozen=True):
    """One peer as the leader hears it. `via` is the gateway it is heard through now, empty when it is not.

    `problem` says why the last attempt to hear it ended; empty while it is heard.
    """

    peer: ClusterName
    state: Liveness
    since: datetime | None
    heard: datetime | None
    via: str
    rejections: tuple[PeerRejection, ...] = ()
    problem: str = ""


@dataclass
class _Hearing:
    """What this leader knows of one peer by listening. `told` is the last verdict in etcd, at first of whoever led
    before, and `known` the silence that it had measured. `is_missed`: it is spoken with, and not heard now."""

    silence: Silence
    rejections: Rejections
    told: Freshness | None
    known: timedelta
    verdict: Freshness | None = None
    heard: datetime | None = None
    gateway: GatewayAddress | None = None
    problem: str = ""
    is_missed: bool = True
    pace: Pace = field(default_factory=Pace)


class Peers:
    """One stream to each known peer, while this replica leads."""

    def __init__(
        self,
        settings: ClusterSettings,
        keeper: TrustKeeper,
        *,
        store: MeshStore,
        etcd: EtcdClient,
        replica: Replica,
    ) -> None:
        """`keeper` is asked at each connection: for our certificate, the roots, and the record that introduces us."""
        self._settings = settings
        self._keeper = keeper
        self._store = store
        self._etcd = etcd
        self._replica = replica
        self._due = News()  # something that may end a stream
        self._signs = News()  # somebody is heard who was not, or is new
        self._turns = Turns()
        self._hearings: dict[ClusterName, _Hearing] = {}

    def status(self) -> tuple[PeerStatus, ...]:
        """The peers this replica listens to, by name; empty while another replica leads."""
        return tuple(self._status(peer, hearing) for peer, hearing in sorted(self._hearings.items()))

    async def run(self, leadership: Leadership) -> None:
        """Listens to every peer of the picture for ever; to be cancelled when leadership is lost.

        Raises Fenced (in a group) when it was lost unnoticed.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                looks = News()
                tasks.create_task(pass_on(self._replica.own_news, looks))
                tasks.create_task(pass_on(self._keeper.news, looks))
                tasks.create_task(self._watch_for_ends(looks))
                snapshot = await self._store.wait_ready()
                tasks.create_task(self._judge_all(leadership))
                attending: dict[ClusterName, asyncio.Task[None]] = {}
                while True:
                    present = self._present(snapshot)
                    for peer in sorted(present - attending.keys()):
                        told = snapshot.freshness.get(peer)
                        known = told.silent if told else timedelta()
                        hearing = self._hearings[peer] = _Hearing(
                            Silence(_now()), Rejections(peer), told, known, verdict=told
                        )
                        attending[peer] = tasks.create_task(self._attend(peer, hearing, leadership))
                    for peer in sorted(attending.keys() - present):
                        attending.pop(peer).cancel()
                        del self._hearings[peer]
                        log.info("peer has left", extra={"peer": peer})
                    self._signs.tell()  # who is new is judged at once
                    revoked = snapshot.revoked
                    while self._present(snapshot) == present and snapshot.revoked is revoked:
                        snapshot = await self._store.wait_newer(snapshot.revision)
                    if snapshot.revoked is not revoked:
                        self._due.tell()
        finally:
            self._hearings.clear()

    async def _watch_for_ends(self, looks: News) -> None:
        """Wakes all streams when what may end them is another: of what comes from etcd that is nearly nothing."""
        before: tuple[object, ...] = ()
        while True:
            seen, now = looks.count, (self._replica.losses, own_issuer(self._keeper))
            if now != before:
                before = now
                self._due.tell()
            await looks.wait_newer(seen)

    def _present(self, snapshot: Snapshot) -> frozenset[ClusterName]:
        """Returns the members to listen to: nobody once this cluster itself has left."""
        own = self._settings.name
        if own in snapshot.departures:
            return frozenset()
        return frozenset(snapshot.members.keys() - snapshot.departures.keys() - {own})

    async def _attend(self, peer: ClusterName, hearing: _Hearing, leadership: Leadership) -> None:
        """Keeps a stream to one peer, gateway after gateway. Every failure is another machine's: shown and retried."""
        failures = 0
        attempts = 0
        while True:
            seen = self._due.count
            if reason := self._why_revoked(peer):
                hearing.problem, hearing.is_missed = f"not spoken with: {reason}", False
                await self._due.wait_newer(seen)
                failures, hearing.is_missed = 0, True
                continue
            heard_before = hearing.heard
            if self._gateways(peer):
                hearing.problem = short_line(await self._dial(peer, hearing, leadership, attempts))
                hearing.gateway, hearing.is_missed = None, True
            else:
                hearing.problem = "no gateway of it is known"
            attempts += 1
            is_in_vain = hearing.heard == heard_before or hearing.rejections.of_stream is not None
            failures = failures + 1 if is_in_vain else 0
            missed = sum(one.is_missed for one in self._hearings.values())
            await asyncio.sleep(draw(failures, missed))

    def _gateways(self, peer: ClusterName) -> tuple[GatewayAddress, ...]:
        member = self._store.snapshot.members.get(peer)
        return self._settings.peer_gateways.get(peer) or (member.gateways if member else ())

    async def _dial(self, peer: ClusterName, hearing: _Hearing, leadership: Leadership, attempts: int) -> str:
        """Listens as `_listen` does, when it is its turn; who is heard needs it no more."""
        async with self._turns.take(answer_limit(self._settings.thresholds)) as end_turn:
            gateways, reason = self._gateways(peer), self._why_revoked(peer)
            if reason or not gateways:
                return reason  # they are others since we wait
            hearing.gateway = gateways[attempts % len(gateways)]
            return await self._listen(peer, hearing, leadership, end_turn)

    async def _listen(
        self, peer: ClusterName, hearing: _Hearing, leadership: Leadership, end_turn: Callable[[], None]
    ) -> str:
        """Listens until the stream ends and returns why it did; empty when only a newer certificate is due."""
        assert hearing.gateway is not None

        def heard() -> None:
            end_turn()
            hearing.heard = datetime.now(UTC)
            hearing.silence.end(_now())
            hearing.problem, hearing.is_missed = "", False
            if hearing.verdict is None or hearing.verdict.state is not Liveness.LIVE:
                self._signs.tell()

        losses = self._replica.losses
        intake = Intake(
            peer,
            self._settings,
            store=self._store,
            etcd=self._etcd,
            replica=self._replica,
            keeper=self._keeper,
            leadership=leadership,
        )
        try:
            held = await intake.held()
            svid = self._keeper.svid()
        except (EtcdUnavailable, EtcdRefused, IssuanceRefused) as error:
            return str(error)

        async def keep(received: Received) -> str:
            await asyncio.sleep(hearing.pace.wait(_now().total_seconds()))
            return hearing.rejections.note(received, await intake.keep(received))

        async def ends() -> str:
            lifetime = max(svid.renew_at - datetime.now(UTC), _SHORTEST_LIFE)
            return await self._reason_to_begin_anew(peer, losses, issuer=issuer_of(svid), lifetime=lifetime)

        bundle = self._keeper.bundle_pem()
        try:
            async with open_channel(
                hearing.gateway,
                peer=peer,
                domain=self._settings.domain,
                svid=svid,
                trust_bundle=bundle,
                limit=answer_limit(self._settings.thresholds),
            ) as channel:
                problem = await listen(
                    channel,
                    node=self._node(hearing),
                    held=held,
                    silence=longest_silence(self._settings.thresholds),
                    on_sign=heard,
                    keep=keep,
                    ends=ends,
                )
        except PeerUnavailable as error:
            why = await diagnose(hearing.gateway, peer, domain=self._settings.domain, trust_bundle=bundle)
            return why or str(error)
        if problem.startswith(NOT_UNDERSTOOD):
            hearing.rejections.note_end(problem)
        if problem.startswith(_SAYS_REVOKED):
            return f"{peer} says that this cluster is {short_line(problem.removeprefix(_DENIED))}"
        return problem

    async def _reason_to_begin_anew(self, peer: ClusterName, losses: int, *, issuer: bytes, lifetime: timedelta) -> str:
        """Waits until the stream must end and returns why; empty when only the own certificate is another.

        That is: etcd lost records, and not all is held that the peer believes; the peer is revoked; another authority
        signs the own certificates; or the one of this stream is due for renewal.
        """
        try:
            async with asyncio.timeout(lifetime.total_seconds()):
                while True:
                    seen = self._due.count
                    if self._replica.losses != losses:
                        return "etcd lost data"
                    if reason := self._why_revoked(peer):
                        return reason
                    if own_issuer(self._keeper) != issuer:
                        await asyncio.sleep(spread())
                        return ""
                    await self._due.wait_newer(seen)
        except TimeoutError:
            return ""

    def _why_revoked(self, peer: ClusterName) -> str:
        return why_revoked(self._store.snapshot.revoked, peer)

    def _node(self, hearing: _Hearing) -> Node:
        node = Node(id=self._settings.name)
        pace = beat_period(self._settings.thresholds).total_seconds()
        node.metadata.update({INTRODUCTION: exports.encode(self._keeper.own_member()).decode(), PACE: pace})
        if rejection := hearing.rejections.of_stream:
            node.metadata.update({REFUSAL: rejection.message})
        return node

    async def _judge_all(self, leadership: Leadership) -> None:
        """Judges how fresh the peers are, and tells etcd when that is worth a write: of all of them in one."""
        renew_after = tell_period(self._settings.thresholds)
        while True:
            seen = self._signs.count
            spans = tuple(spans_that_matter(self._store.snapshot))
            due = {}
            for peer, hearing in self._hearings.items():
                self._judge(peer, hearing)
                is_lost = names.freshness_key(peer) not in self._replica.records
                if (verdict := hearing.verdict) is None:
                    continue
                if is_lost or is_worth_telling(hearing.told, verdict, spans=spans, renew_after=renew_after):
                    due[peer] = hearing, verdict
            try:
                puts = {names.freshness_key(peer): exports.encode(verdict) for peer, (_, verdict) in due.items()}
                await write_records(self._etcd, leadership.guard, puts=puts)
                for hearing, verdict in due.values():
                    hearing.told = verdict
            except (EtcdUnavailable, EtcdRefused):
                pass  # told at the next look; who waits for etcd says so
            try:
                async with asyncio.timeout(LOOK_EVERY.total_seconds()):
                    await self._signs.wait_newer(seen)
            except TimeoutError:
                continue

    def _judge(self, peer: ClusterName, hearing: _Hearing) -> None:
        before, silence, thresholds = hearing.verdict, hearing.silence.look(_now()), self._settings.thresholds
        is_live = before is not None and before.state is Liveness.LIVE and before.heard == hearing.heard
        if is_live and silence < thresholds.stale_after:
            return  # it has said nothing since the last look, and may be silent for as long: nearly all, nearly always
        hearing.verdict = verdict = judge(
            before,
            heard=hearing.heard,
            silence=silence,
            thresholds=thresholds,
            now=datetime.now(UTC),
            known=hearing.known,
        )
        if before is None or before.state is not verdict.state:
            log.info("peer changed", extra={"peer": peer, "state": verdict.state.value, "problem": hearing.problem})

    def _status(self, peer: ClusterName, hearing: _Hearing) -> PeerStatus:
        is_heard = hearing.gateway is not None and not hearing.problem and hearing.heard is not None
        gateway = hearing.gateway
        return PeerStatus(
            peer=peer,
            state=hearing.verdict.state if hearing.verdict else Liveness.UNKNOWN,
            since=hearing.verdict.since if hearing.verdict else None,
            heard=hearing.heard or (hearing.verdict.heard if hearing.verdict else None),
            via=names.host_port(gateway.address, gateway.port) if gateway and is_heard else "",
            rejections=hearing.rejections.shown(),
            problem=hearing.problem,
        )


def _now() -> timedelta:
    """Returns the time by the loop's clock, which nobody sets."""
    return timedelta(seconds=asyncio.get_running_loop().time())
