"""What the admin API asks about trust, answered: reports of it, documents of the root, revocations of this cluster."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from cryptography import x509

from deploy.control.keeper import Keeper
from deploy.control.reports import all_revoked, revoked_by
from deploy.control.trust_warnings import Standing, trust_warnings
from federation.admin import AdminRefused, RevocationOrder, TrustDocuments
from federation.etcd import EtcdClient, EtcdError, Put
from federation.names import revocation_key
from federation.peering.decisions import decide, take_back
from federation.peering.records import encode_revocation
from federation.peering.replica import Replica
from federation.peering.trust_records import heard_statements
from federation.reports import RevocationOrigin, RevocationReport, TrustReport
from federation.store import MeshStore
from federation.xds.ads import ProxyStatus
from trust.audit import AuditEvent, AuditKind
from trust.bundle import MOST_REVOKED, Revocation, catch_up, make_revocation, parse_subject, root_certificates
from trust.joining import Grant, JoinRefused, check_signature

log = logging.getLogger(__name__)

_LOOK = timedelta(seconds=5)
"""Between two looks at what is to be warned of."""


class TrustBackend:
    """Answers for one replica of a member."""

    def __init__(
        self,
        keeper: Keeper,
        *,
        store: MeshStore,
        etcd: EtcdClient,
        replica: Replica,
        proxies: Callable[[], tuple[ProxyStatus, ...]],
        leaf_lifetime: timedelta,
        on_event: Callable[[AuditEvent], None],
    ) -> None:
        self._keeper = keeper
        self._store = store
        self._etcd = etcd
        self._replica = replica
        self._proxies = proxies
        self._leaf_lifetime = leaf_lifetime
        self._on_event = on_event

    async def run(self) -> None:
        """Tells the log what is to be warned of, once each, for ever."""
        told: frozenset[str] = frozenset()
        await self._store.wait_ready()
        while True:
            found = self.warnings()
            for warning in found:
                if warning not in told:
                    log.warning("trust needs attention", extra={"warning": warning})
            if told and not found:
                log.info("trust needs no attention any more")
            told = frozenset(found)
            await asyncio.sleep(_LOOK.total_seconds())

    async def accept(self, grant: Grant) -> None:
        """Takes a grant for this cluster; raises a Refusal."""
        await self._keeper.accept(grant)

    def report(self) -> TrustReport:
        """Returns whom this cluster believes, and what it and its peers say of their trust."""
        return TrustReport(
            bundle=self._keeper.membership.bundle,
            own=self._keeper.statement(),
            others=heard_statements(self._replica.own_records),
            warnings=self.warnings(),
        )

    def standing(self) -> Standing:
        """Returns what warnings and metrics are made of."""
        membership = self._keeper.membership
        return Standing(
            documents=membership.documents,
            authority=membership.active.certificate,
            statement=self._keeper.statement(),
            leaf_lifetime=self._leaf_lifetime,
            own_leaf=self._keeper.identity.expires or membership.active.certificate.not_valid_after_utc,
            proxies={one.node: one.certificate_expires for one in self._proxies() if one.certificate_expires},
            peers=tuple(one.statement for one in heard_statements(self._replica.own_records)),
        )

    def warnings(self) -> tuple[str, ...]:
        """Returns what will break unless somebody does something about it."""
        return trust_warnings(self.standing(), datetime.now(UTC))

    async def take_documents(self, documents: TrustDocuments, *, asked_by: str) -> TrustReport:
        """Takes what the root signed; raises a Refusal when it cannot be believed, and then nothing has changed."""
        held, now = self._keeper.membership.bundle, datetime.now(UTC)
        offered = [*documents.bundles, *(grant.bundle for grant in documents.grants)]
        newest = (held, *catch_up(held, offered, now=now))[-1]
        for grant in documents.grants:
            _check_grant(grant, root_certificates(newest))
        log.info(
            "documents of the root are handed over",
            extra={"asked_by": asked_by, "bundles": len(documents.bundles), "grants": len(documents.grants)},
        )
        if newest is not held:
            await self._keeper.follow(tuple(offered))
        for grant in documents.grants:
            if grant.cluster == self._keeper.cluster:
                await self._keeper.accept(grant)
            elif refusal := await self._keeper.pass_on(grant):
                raise AdminRefused(refusal, "is the cluster's etcd running?", status=503)
        return self.report()

    def revocations(self) -> tuple[RevocationReport, ...]:
        """Returns who is believed no longer here, by subject."""
        return tuple(self._revocation_report(one) for one in all_revoked(self._store.snapshot))

    async def revoke(self, order: RevocationOrder, *, asked_by: str) -> RevocationReport:
        """Has this cluster believe somebody no longer. Doing it twice is doing it once."""
        now = datetime.now(UTC)
        made = make_revocation(order.subject, at=now, reason=order.reason, sever=order.sever)
        if made.subject == self._keeper.cluster:
            raise AdminRefused(
                f"{made.subject} is this cluster itself",
                "another member's admin revokes it, or the root: `isthmus revoke CLUSTER --root DIR`",
                status=409,
            )
        held = self._store.snapshot.revocations.get(made.subject)
        if held is not None and (held.reason, held.sever) == (made.reason, made.sever):
            return self._revocation_report(held)
        if held is None and len(self._store.snapshot.revocations) >= MOST_REVOKED:
            hint = "undo those of workloads that are gone, or revoke the whole cluster"
            raise AdminRefused(f"{MOST_REVOKED} are revoked here already, and no more may be", hint, status=409)
        try:
            key = revocation_key(made.subject)
            await decide(self._etcd, key, Put(key, encode_revocation(made)))
        except EtcdError as error:
            raise _etcd_away("take the revocation", error) from error
        self._audit(
            AuditEvent(kind=AuditKind.REVOKED, at=now, subject=made.subject, asked_by=asked_by, reason=made.reason)
        )
        return self._revocation_report(made)

    async def restore(self, subject: str, *, asked_by: str) -> tuple[RevocationReport, ...]:
        """Undoes `revoke`; returns who is believed no longer all the same."""
        parse_subject(subject)
        is_here = subject in self._store.snapshot.revocations
        is_roots = any(one.subject == subject for one in self._keeper.membership.bundle.revoked)
        if is_roots and not is_here:
            raise AdminRefused(
                f"the root revoked {subject}, for the whole mesh",
                f"only the root can undo it: `isthmus revoke --undo {subject} --root DIR`",
                status=409,
            )
        try:
            await take_back(self._etcd, revocation_key(subject))
        except EtcdError as error:
            raise _etcd_away("undo the revocation", error) from error
        if is_here:
            self._audit(AuditEvent(kind=AuditKind.RESTORED, at=datetime.now(UTC), subject=subject, asked_by=asked_by))
        return tuple(one for one in self.revocations() if one.subject != subject or one.origin is RevocationOrigin.ROOT)

    def _revocation_report(self, one: Revocation) -> RevocationReport:
        snapshot = self._store.snapshot
        is_known = not one.cluster or one.cluster == self._keeper.cluster or one.cluster in snapshot.members
        return RevocationReport(
            subject=one.subject,
            origin=revoked_by(snapshot, one.subject),
            at=one.at,
            reason=one.reason,
            sever=one.sever,
            warning="" if is_known else f"no cluster {one.cluster} is known here",
        )

    def _audit(self, event: AuditEvent) -> None:
        log.warning("revocation changed", extra={"what": event.kind, "subject": event.subject, "by": event.asked_by})
        self._on_event(event)


def _check_grant(grant: Grant, roots: Iterable[x509.Certificate]) -> None:
    """Checks that one of the roots signed a grant; raises JoinRefused."""
    refusal = JoinRefused("nobody signed the grant", "hand over the file that `isthmus` wrote, unchanged")
    for root in roots:
        try:
            check_signature(grant, root)
        except JoinRefused as error:
            refusal = error
        else:
            return
    raise refusal


def _etcd_away(what: str, error: EtcdError) -> AdminRefused:
    return AdminRefused(f"etcd did not {what}: {error}", "is the cluster's etcd running?", status=503)
