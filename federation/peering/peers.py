"""Listens to the other clusters: receives what they offer and keeps it in this cluster's etcd. The leader's task.

A peer's silence, reset or empty answer deletes nothing: an import goes when its owner says so, on a stream or among the
differences after a reconnect. What cannot be believed is refused with a reason and shown, and disturbs nothing else.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import uniform

import msgspec
from envoy.config.core.v3.base_pb2 import Node

from federation import names
from federation.etcd import EtcdClient, EtcdRefused, EtcdUnavailable
from federation.etcd.election import Leadership
from federation.model import ClusterSettings, Freshness, GatewayAddress, Liveness, MemberCluster
from federation.peering import exports
from federation.peering.allowance import Allowance, weigh
from federation.peering.dialing import PeerUnavailable, open_channel
from federation.peering.exports import Malformed
from federation.peering.freshness import is_worth_telling, judge
from federation.peering.listening import listen
from federation.peering.membership import check_membership
from federation.peering.news import News
from federation.peering.offer import INTRODUCTION
from federation.peering.records import keep_member, write_records
from federation.peering.replica import Replica
from federation.store import MeshStore
from federation.xds.client import Received
from federation.xds.resources import TypeUrl
from trust.certificates import CertificateRefused
from trust.issuance import IssuanceRefused, X509Svid
from trust.spiffe import ClusterName

log = logging.getLogger(__name__)

_FIRST_BACK_OFF = timedelta(milliseconds=100)
_MAX_BACK_OFF = timedelta(seconds=2)
_LOOK_EVERY = timedelta(milliseconds=500)
"""How often silence is measured."""
_MOST_REJECTIONS = 32
"""Of one peer, shown and told to it: a hostile one could invent names without end."""
_LONGEST_TOLD = 300  # characters of what is shown of a refusal
_SHORTEST_LIFE = timedelta(seconds=30)
"""Of a connection, however near the renewal of the certificate it was made with."""


class PeerRejection(msgspec.Struct, frozen=True, order=True):
    """Something that a peer said and that was refused. `resource` is `Kind name`."""

    resource: str
    message: str
    since: datetime


class PeerStatus(msgspec.Struct, frozen=True):
    """One peer as the leader hears it. `via` is the gateway it is heard through now, empty when it is not.

    `problem` says why the last attempt to hear it ended; empty while it is heard. `exports` counts what it offers.
    """

    peer: ClusterName
    state: Liveness
    since: datetime | None
    heard: datetime | None
    via: str
    exports: int
    rejections: tuple[PeerRejection, ...] = ()
    problem: str = ""


@dataclass
class _Hearing:
    """What this leader knows of one peer by listening. `heard_at` and `began_at` are in seconds of the loop's clock."""

    began_at: float
    verdict: Freshness | None
    heard: datetime | None = None
    heard_at: float | None = None
    gateway: GatewayAddress | None = None
    problem: str = ""
    rejections: dict[str, PeerRejection] = field(default_factory=dict)
    news: News = field(default_factory=News)


class Peers:
    """One stream to each known peer, while this replica leads."""

    def __init__(
        self,
        settings: ClusterSettings,
        member: MemberCluster,
        *,
        store: MeshStore,
        etcd: EtcdClient,
        replica: Replica,
        identity: Callable[[], X509Svid],
        trust_bundle: Callable[[], bytes],
    ) -> None:
        """`identity` gives this control plane's certificate, `trust_bundle` the roots (PEM); asked at each connection.

        `member` is this cluster's own record: it introduces us to the peer.
        """
        self._settings = settings
        self._member = member
        self._store = store
        self._etcd = etcd
        self._replica = replica
        self._identity = identity
        self._trust_bundle = trust_bundle
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
                snapshot = await self._store.wait_ready()
                while True:
                    for peer in sorted(snapshot.members.keys() - self._hearings.keys() - {self._settings.name}):
                        now = asyncio.get_running_loop().time()
                        hearing = self._hearings[peer] = _Hearing(now, snapshot.freshness.get(peer))
                        tasks.create_task(self._attend(peer, hearing, leadership))
                        tasks.create_task(self._watch(peer, hearing, leadership))
                    snapshot = await self._store.wait_newer(snapshot.revision)
        finally:
            self._hearings.clear()

    async def _attend(self, peer: ClusterName, hearing: _Hearing, leadership: Leadership) -> None:
        """Keeps a stream to one peer, gateway after gateway. Every failure is another machine's: shown and retried."""
        failures = 0
        attempts = 0
        while True:
            heard_before = hearing.heard_at
            gateways = self._gateways(peer)
            if gateways:
                hearing.gateway = gateways[attempts % len(gateways)]
                hearing.problem = await self._listen(peer, hearing, leadership)
                hearing.gateway = None
            else:
                hearing.problem = "no gateway of it is known"
            attempts += 1
            failures = failures + 1 if hearing.heard_at == heard_before else 0
            await asyncio.sleep(_back_off(failures).total_seconds())

    def _gateways(self, peer: ClusterName) -> tuple[GatewayAddress, ...]:
        member = self._store.snapshot.members.get(peer)
        return self._settings.peer_gateways.get(peer) or (member.gateways if member else ())

    async def _listen(self, peer: ClusterName, hearing: _Hearing, leadership: Leadership) -> str:
        """Listens until the stream ends and returns why it did; empty when only a newer certificate is due."""
        assert hearing.gateway is not None

        def heard() -> None:
            hearing.heard, hearing.heard_at = datetime.now(UTC), asyncio.get_running_loop().time()
            hearing.problem = ""
            hearing.news.tell()

        losses = self._replica.losses
        try:
            held, allowance = await self._held(peer)
            svid = self._identity()
        except (EtcdUnavailable, EtcdRefused, IssuanceRefused) as error:
            return str(error)

        async def keep(received: Received) -> str:
            return await self._keep(peer, received, hearing=hearing, allowance=allowance, leadership=leadership)

        async def ends() -> str:
            lifetime = max(svid.renew_at - datetime.now(UTC), _SHORTEST_LIFE)
            return await self._reason_to_begin_anew(losses, lifetime)

        try:
            async with open_channel(
                hearing.gateway,
                peer=peer,
                domain=self._settings.domain,
                svid=svid,
                trust_bundle=self._trust_bundle(),
            ) as channel:
                return await listen(channel, node=self._node(), held=held, on_sign=heard, keep=keep, ends=ends)
        except PeerUnavailable as error:
            return str(error)

    async def _reason_to_begin_anew(self, losses: int, lifetime: timedelta) -> str:
        """Waits until etcd lost records (then not all is held that the peer believes), or until a time has passed."""
        try:
            async with asyncio.timeout(lifetime.total_seconds()):
                while self._replica.losses == losses:
                    await self._replica.news.wait_newer(self._replica.news.count)
        except TimeoutError:
            return ""
        return "etcd lost data"

    def _node(self) -> Node:
        node = Node(id=self._settings.name)
        node.metadata.update({INTRODUCTION: exports.encode(self._member).decode()})
        return node

    async def _held(self, peer: ClusterName) -> tuple[Mapping[TypeUrl, Mapping[str, str]], Allowance]:
        """Returns the versions that this cluster holds of what `peer` said, in the picture, or only in etcd yet; and
        what it may have kept besides.

        A name left out here would never be taken back by the peer, so etcd itself is asked: the picture may be behind.
        """
        picture = self._store.snapshot
        offers = {key: exported for (cluster, key), exported in picture.imports.items() if cluster == peer}
        weights = {
            names.export_key(peer, key): weigh(exported, size=len(exports.encode(exported)))
            for key, exported in offers.items()
        }
        for item in (await self._etcd.list(names.export_prefix(peer))).items:
            try:
                exported = exports.decode_export(item.value)
            except Malformed:
                weights[item.key] = weigh(None, size=len(item.value))
                continue  # not held, so it comes again
            offers[exported.key] = exported
            weights[item.key] = weigh(exported, size=len(item.value))
        members = {
            str(name): exports.member_resource(msgspec.structs.replace(member, introduced_by="")).version
            for name, member in picture.members.items()
            # Of the peer itself hearsay is not enough: it must come again, to be believed.
            if name != peer or not member.introduced_by
        }
        versions = {str(key): exports.export_version(exported) for key, exported in offers.items()}
        return {TypeUrl.EXPORT: versions, TypeUrl.MEMBER: members}, Allowance(weights.items())

    async def _keep(
        self,
        peer: ClusterName,
        received: Received,
        *,
        hearing: _Hearing,
        allowance: Allowance,
        leadership: Leadership,
    ) -> str:
        """Writes what a peer said into etcd and returns what was refused of it, and why.

        The good part of a response that is refused is kept all the same: it is true, and comes again.
        """
        match received.type_url:
            case TypeUrl.EXPORT:
                refused = await self._keep_exports(peer, received, allowance, leadership)
            case TypeUrl.MEMBER:
                refused = await self._keep_members(peer, received, leadership)
            case _:
                refused = {}
        kind = "Export" if received.type_url is TypeUrl.EXPORT else "Member"
        for name in (*(resource.name for resource in received.upserts), *received.removed):
            hearing.rejections.pop(f"{kind} {_printable(name)}", None)
        told = [(f"{kind} {_printable(name)}", _printable(message)) for name, message in refused.items()]
        room = _MOST_REJECTIONS - len(hearing.rejections)
        for resource, message in told[:room]:
            hearing.rejections[resource] = PeerRejection(resource, message, datetime.now(UTC))
            log.warning("refused what a peer said", extra={"peer": peer, "resource": resource, "why": message})
        if len(told) > room:
            log.warning("refused more of what a peer said", extra={"peer": peer, "resources": len(told) - room})
        rest = f"; and {len(told) - _MOST_REJECTIONS} more" if len(told) > _MOST_REJECTIONS else ""
        return "; ".join(f"{resource}: {message}" for resource, message in told[:_MOST_REJECTIONS]) + rest

    async def _keep_exports(
        self, peer: ClusterName, received: Received, allowance: Allowance, leadership: Leadership
    ) -> dict[str, str]:
        puts, refused = {}, {}
        # Joined to the peer's own prefix, the name of a removal can reach nothing of anybody else.
        deletes = {names.export_prefix(peer) + name for name in received.removed}
        deletes = {key for key in deletes if key in allowance}
        for key in deletes:
            allowance.drop(key)
        for resource in received.upserts:
            try:
                exported = exports.read_export(resource.name, resource.body, peer)
            except Malformed as error:
                refused[resource.name] = str(error)
                continue
            key, body = names.export_key(peer, exported.key), exports.encode(exported)
            if excess := allowance.take(key, weigh(exported, size=len(body))):
                refused[resource.name] = excess
            else:
                puts[key] = body
        await write_records(self._etcd, leadership.guard, puts=puts, deletes=sorted(deletes - puts.keys()))
        if puts or deletes:
            log.info("peer synced", extra={"peer": peer, "written": len(puts), "removed": len(deletes)})
        return refused

    async def _keep_members(self, peer: ClusterName, received: Received, leadership: Leadership) -> dict[str, str]:
        refused = {}
        for resource in received.upserts:
            try:
                said = exports.read_member(resource.name, resource.body, peer)
                if said.introduced_by:
                    check_membership(said, self._trust_bundle(), domain=self._settings.domain, now=datetime.now(UTC))
            except (Malformed, CertificateRefused) as error:
                refused[resource.name] = str(error)
                continue
            if said.name != self._settings.name and await keep_member(self._etcd, said, guard=leadership.guard):
                log.info("member learnt", extra={"member": said.name, "said_by": peer})
        # Removals are not heeded: nobody takes a member out of the mesh by forgetting it.
        return refused

    async def _watch(self, peer: ClusterName, hearing: _Hearing, leadership: Leadership) -> None:
        """Judges how fresh a peer is, and tells etcd when that is worth a write."""
        key = names.freshness_key(peer)
        told = hearing.verdict
        while True:
            seen = hearing.news.count
            before = hearing.verdict
            hearing.verdict = verdict = judge(
                before, heard=hearing.heard, silence=_silence(hearing), now=datetime.now(UTC)
            )
            if before is None or before.state is not verdict.state:
                log.info("peer changed", extra={"peer": peer, "state": verdict.state.value, "problem": hearing.problem})
            if key not in self._replica.records or is_worth_telling(told, verdict):
                try:
                    await self._etcd.put(key, exports.encode(verdict), guard=leadership.guard)
                    told = verdict
                except (EtcdUnavailable, EtcdRefused):
                    pass  # told at the next look; who waits for etcd says so
            try:
                async with asyncio.timeout(_LOOK_EVERY.total_seconds()):
                    await hearing.news.wait_newer(seen)
            except TimeoutError:
                continue

    def _status(self, peer: ClusterName, hearing: _Hearing) -> PeerStatus:
        is_heard = hearing.gateway is not None and not hearing.problem and hearing.heard is not None
        gateway = hearing.gateway
        return PeerStatus(
            peer=peer,
            state=hearing.verdict.state if hearing.verdict else Liveness.UNKNOWN,
            since=hearing.verdict.since if hearing.verdict else None,
            heard=hearing.heard or (hearing.verdict.heard if hearing.verdict else None),
            via=names.host_port(gateway.address, gateway.port) if gateway and is_heard else "",
            exports=sum(cluster == peer for cluster, _ in self._store.snapshot.imports),
            rejections=tuple(sorted(hearing.rejections.values())),
            problem=hearing.problem,
        )


def _printable(text: str) -> str:
    """Returns what a peer said as one short line: it ends in logs and terminals."""
    short = text if len(text) <= _LONGEST_TOLD else text[:_LONGEST_TOLD] + "..."
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in short)


def _silence(hearing: _Hearing) -> timedelta:
    since = hearing.began_at if hearing.heard_at is None else hearing.heard_at
    return timedelta(seconds=asyncio.get_running_loop().time() - since)


def _back_off(failures: int) -> timedelta:
    """Returns the wait before the next attempt, with jitter: the members of a mesh do not come back in step."""
    longest: timedelta = min(_MAX_BACK_OFF, _FIRST_BACK_OFF * 2 ** min(failures, 10))
    return timedelta(seconds=uniform(0.5, 1.0) * longest.total_seconds())  # noqa: S311 - no secret
