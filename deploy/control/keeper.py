"""Keeps the trust of a running control plane up to date: whom it believes, which authority signs, what it says of that.

The data directory is the truth, and replicas share it: whoever of them takes a document or a grant writes it there, and
all of them look twice a second. What is new there comes into force in this order:

    1. the file by which proxies know their control plane (file SDS)
    2. the own certificate, and what signs those of the proxies
    3. the picture, which is pushed to the proxies and offered to the peers

so that nobody meets a certificate below a root that he was not told of before.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from deploy.control.identity import OwnIdentity, ProxySecrets
from deploy.control.renewal import Duty, duty
from deploy.control.reports import introduction
from deploy.control.trust_files import Stamp, stamp_of, write_trust_file
from federation import names
from federation.acknowledgements import Acknowledgements
from federation.etcd import EtcdClient, EtcdError
from federation.model import ClusterSettings, MemberCluster, Trust
from federation.peering import exports, trust_records
from federation.peering.news import News
from federation.peering.replica import Replica
from federation.peering.statements import make_statement
from federation.snapshot import TRUST_KEY, Change, Section
from federation.store import MeshStore
from federation.xds.bootstrap import TRUST_BUNDLE_FILE
from trust.audit import AuditEvent, AuditKind
from trust.bundle import BundleRefused, TrustBundle, bundle_pem
from trust.enrolment import Enrolment, Membership
from trust.issuance import IssuanceRefused, Issuer, X509Svid
from trust.joining import Grant, JoinRequest
from trust.refusals import Refusal
from trust.spiffe import ClusterName, control_identity
from trust.statements import TrustStatement

log = logging.getLogger(__name__)

ORIGIN = "trust"
"""Name under which the store waits for the first word on whom this cluster believes."""

_LOOK = timedelta(seconds=0.5)
"""Between two looks at the data directory, and at what the proxies have acknowledged."""

_QUIET = timedelta(milliseconds=50)
"""Between two sums over what the proxies acknowledged: they all do at once."""

_ASKED_BY = "control plane"


class Keeper:
    """The TrustKeeper of one replica. Disk and keys are used in threads; all else belongs to one event loop."""

    def __init__(
        self,
        settings: ClusterSettings,
        enrolment: Enrolment,
        membership: Membership,
        *,
        data: Path,
        leaf_lifetime: timedelta,
        store: MeshStore,
        etcd: EtcdClient,
        replica: Replica,
        acknowledgements: Acknowledgements,
        connected: Callable[[], Collection[str]],
        on_event: Callable[[AuditEvent], None],
    ) -> None:
        """Issues the own certificate, if the authority has not expired.

        `data` is the directory of `enrolment`; `connected` returns the nodes that are on streams of this replica.
        """
        self._settings = settings
        self._enrolment = enrolment
        self._membership = membership
        self._data = data
        self._leaf_lifetime = leaf_lifetime
        self._store = store
        self._etcd = etcd
        self._replica = replica
        self._acknowledgements = acknowledgements
        self._connected = connected
        self._on_event = on_event
        self._issuer = self._make_issuer(membership)
        self._in_force_since = asyncio.get_running_loop().time()
        self.identity = OwnIdentity(self._issuer, control_identity(settings.name))
        self.secrets = ProxySecrets(self._issuer, revoked=lambda: store.snapshot.revoked, on_event=on_event)
        self.news = News()
        self._asked = 0
        self._answered = 0
        self._asking = asyncio.Event()
        self._looked = News()
        self._statement: TrustStatement | None = None
        self._problem = ""

    # What federation needs (TrustKeeper)

    def documents(self) -> tuple[TrustBundle, ...]:
        """Returns the documents that somebody who was away needs, by number; the last is in force here."""
        return self._membership.documents

    def statement(self) -> TrustStatement:
        """Returns what this cluster says of its own trust now. While nothing changes, it is the same value."""
        made = make_statement(
            self._settings.name,
            self._membership.bundle,
            authorities=self._membership.authorities,
            records=self._acknowledgements.records,
            pods=self._store.snapshot.pods.keys(),
            connected=self._connected(),
            revoked=self._store.snapshot.revoked,
            request=self._membership.pending,
            now=datetime.now(UTC),
        )
        if self._statement is None or made != msgspec.structs.replace(self._statement, at=made.at):
            self._statement = made
        return self._statement

    def grants_for(self, peer: ClusterName) -> tuple[Grant, ...]:
        """Returns the grants that wait here for `peer`."""
        return trust_records.grants_for(self._replica.records, peer)

    def own_member(self) -> MemberCluster:
        """Returns this cluster's own record, with the certificate of its active authority and what its admin asked."""
        snapshot, own = self._store.snapshot, self._settings.name
        said = exports.own_member(
            self._settings,
            certificate=self._issuer.intermediate_pem.decode(),
            drains=(drain for (cluster, _), drain in snapshot.drains.items() if cluster == own),
            has_left=own in snapshot.departures,
        )
        return msgspec.structs.replace(said, incarnation=self._replica.decision(names.departure_key(own)))

    def svid(self) -> X509Svid:
        """Returns the certificate of this control plane; raises IssuanceRefused when there is none."""
        return self.identity.current()

    def bundle_pem(self) -> bytes:
        """Returns the roots that are trusted now (PEM)."""
        return self.identity.bundle_pem

    async def take_bundles(self, bundles: tuple[TrustBundle, ...]) -> str:
        """Follows those documents that are newer and can be believed; returns why not. They are in force then."""
        return await _refusal(self.follow(bundles))

    async def take_grant(self, grant: Grant) -> str:
        """Takes a grant for this cluster; returns why not. Its authority signs then."""
        return await _refusal(self.accept(grant))

    async def pass_on(self, grant: Grant) -> str:
        """Keeps a grant for another member in etcd until that one has it; returns why not."""
        try:
            await trust_records.keep_grant(self._etcd, grant)
        except EtcdError as error:
            return f"etcd did not take the grant for {grant.cluster}: {error}"
        return ""

    # The rest

    @property
    def cluster(self) -> ClusterName:
        """The member whose trust is kept."""
        return self._settings.name

    @property
    def membership(self) -> Membership:
        """What makes this cluster a member: what is in force."""
        return self._membership

    async def follow(self, bundles: tuple[TrustBundle, ...]) -> None:
        """Does what `take_bundles` does; raises a Refusal."""
        await self._change(lambda: self._enrolment.take(bundles, now=datetime.now(UTC)))

    async def accept(self, grant: Grant) -> None:
        """Does what `take_grant` does; raises a Refusal."""

        def accepted() -> Membership:
            now = datetime.now(UTC)
            # The bundle in the grant may be news; if it does not follow ours, whether the grant does is seen next.
            with contextlib.suppress(BundleRefused):
                self._enrolment.take((grant.bundle,), now=now)
            return self._enrolment.accept(grant, now=now)

        before = self._membership.active.generation
        await self._change(accepted)
        if self._membership.active.generation != before:
            self._audit(AuditKind.GRANTED, reason=f"the grant for generation {grant.generation}")

    async def wait_certified(self) -> None:
        """Returns once this control plane has a certificate: with an authority that expired, when it has a new one."""
        while True:
            try:
                self.identity.current()
            except IssuanceRefused:  # logged where it was refused
                await asyncio.sleep(_LOOK.total_seconds())
            else:
                return

    async def run(self) -> None:
        """Brings into force what the data directory says, and tells of what the proxies acknowledge. For ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_directory())
            group.create_task(self._follow_proxies())

    async def lead(self) -> None:
        """Asks for a new authority when one is due, and lets an old key go once nobody needs it. For ever."""
        problem = ""
        while True:
            in_force_for = timedelta(seconds=asyncio.get_running_loop().time() - self._in_force_since)
            is_own_renewed = self.identity.authority == self._issuer.authority
            before = problem
            match duty(self._membership, self.statement(), in_force_for=in_force_for, is_own_renewed=is_own_renewed):
                case Duty.RENEW:
                    problem = await _refusal(self._change(self._renewal))
                    self._say(problem, before, "a new authority is asked for", "no new authority can be asked for")
                case Duty.RETIRE:
                    problem = await _refusal(self._change(self._retirement))
                    self._say(problem, before, "the old authority is retired", "the old authority cannot be retired")
                    if not problem:
                        self._audit(
                            AuditKind.ROTATED, reason="the keys of older authorities were destroyed: nobody needs them"
                        )
                case None:
                    problem = ""
            await asyncio.sleep(_LOOK.total_seconds())

    async def _change(self, change: Callable[[], Membership | JoinRequest]) -> None:
        """Makes a change on disk and waits until it is in force; raises a Refusal."""
        await asyncio.to_thread(change)
        self._asked += 1
        mine = self._asked
        self._asking.set()
        while self._answered < mine:
            await self._looked.wait_newer(self._looked.count)

    async def _follow_directory(self) -> None:
        # One task alone brings into force what it finds: nobody can bring back what he read before a change.
        await self._bring_into_force(self._membership)
        stamp: Stamp | None = None
        while True:
            self._asking.clear()
            asked = self._asked
            stamp = await self._look(stamp)
            self._answered = asked
            self._looked.tell()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK.total_seconds()):
                    await self._asking.wait()

    async def _follow_proxies(self) -> None:
        seen = self._acknowledgements.news.count
        told: object = None
        while True:
            says = (self.statement(), self._waiting_grants())
            if says != told:
                told = says
                self.news.tell()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK.total_seconds()):
                    seen = await self._acknowledgements.news.wait_newer(seen)
            await asyncio.sleep(_QUIET.total_seconds())

    async def _look(self, seen: Stamp | None) -> Stamp | None:
        """Brings into force what changed since `seen`; returns what is to be given next time."""
        try:
            stamp = await asyncio.to_thread(stamp_of, self._data)
            if stamp == seen:
                return seen
            found = await asyncio.to_thread(self._enrolment.load)
            if found is None or found.bundle.sequence < self._membership.bundle.sequence:
                self._problem_is(f"{self._data} holds less than is in force", "restore the newest backup of it")
                return seen
            if _said(found) != _said(self._membership):
                await self._bring_into_force(found)
        except Refusal as error:
            self._problem_is(error.message, error.hint)
            return seen
        self._problem = ""
        return stamp

    async def _bring_into_force(self, found: Membership) -> None:
        """Does it in the order that the module tells; raises a Refusal, and then what was in force stays."""
        before = self._membership
        await asyncio.to_thread(write_trust_file, self._data / TRUST_BUNDLE_FILE, bundle_pem(found.bundle))
        if _signs(found) != _signs(before):
            issuer = self._make_issuer(found)
            await asyncio.to_thread(self.identity.switch, issuer)
            self.secrets.switch(issuer)
            if issuer.authority != self._issuer.authority:
                self._in_force_since = asyncio.get_running_loop().time()
            self._issuer = issuer
        self._membership = found
        trust = Trust(self._settings.name, found.bundle, self._issuer.authority)
        self._store.apply([Change(Section.TRUST, TRUST_KEY, trust)])
        self._store.mark_listed(ORIGIN)
        self._tell_of(before, found)
        self.news.tell()

    def _tell_of(self, before: Membership, found: Membership) -> None:
        if found.bundle.sequence != before.bundle.sequence:
            said = f"{len(found.bundle.roots)} roots, {len(found.bundle.revoked)} revoked"
            log.info(
                "trust bundle in force", extra={"sequence": found.bundle.sequence, "roots": len(found.bundle.roots)}
            )
            self._audit(AuditKind.BUNDLE_TAKEN, subject=f"trust bundle {found.bundle.sequence}", reason=said)
        if found.active.generation != before.active.generation:
            log.info("another authority signs", extra={"generation": found.active.generation})
            self._audit(AuditKind.ROTATED, reason=f"generation {found.active.generation} signs")

    def _audit(self, kind: AuditKind, *, subject: str = "", reason: str) -> None:
        self._on_event(
            AuditEvent(
                kind=kind,
                at=datetime.now(UTC),
                subject=subject or f"authority of {self._settings.name}",
                asked_by=_ASKED_BY,
                authority=self._issuer.authority,
                reason=reason,
            )
        )

    def _renewal(self) -> JoinRequest:
        return self._enrolment.renewal(introduction(self._settings), now=datetime.now(UTC))

    def _retirement(self) -> Membership:
        return self._enrolment.retire(now=datetime.now(UTC))

    def _make_issuer(self, membership: Membership) -> Issuer:
        return Issuer(membership.active, membership.bundle, leaf_lifetime=self._leaf_lifetime, on_event=self._on_event)

    def _waiting_grants(self) -> tuple[tuple[str, bytes], ...]:
        prefix = names.grant_key(ClusterName(""))
        return tuple((key, body) for key, body in self._replica.own_records.items() if key.startswith(prefix))

    def _problem_is(self, message: str, hint: str) -> None:
        """Logs what keeps the data directory from coming into force, once."""
        if message != self._problem:
            self._problem = message
            log.error("trust cannot be brought up to date", extra={"reason": message, "hint": hint})

    @staticmethod
    def _say(problem: str, before: str, done: str, refused: str) -> None:
        if not problem:
            log.info(done)
        elif problem != before:
            log.error(refused, extra={"reason": problem})


async def _refusal(doing: Awaitable[None]) -> str:
    try:
        await doing
    except Refusal as error:
        return f"{error.message}: {error.hint}"
    return ""


def _said(membership: Membership) -> object:
    """Returns all that a membership says, without its keys, to be compared."""
    return (_signs(membership), membership.documents, membership.authorities, membership.pending)


def _signs(membership: Membership) -> object:
    """Returns what an issuer is made of, without its key, to be compared."""
    return (membership.bundle, membership.active.certificate)
