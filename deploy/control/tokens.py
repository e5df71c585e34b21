"""The join tokens of a cluster: made, listed, revoked, and checked. Their records stand in etcd.

This is the `Attestor` of join tokens. It follows the records, so that it knows at once when one is revoked, and still
knows those that it has seen while etcd is away. What is asked of etcd is asked anew for each proxy that comes: what is
remembered counts only when there is no answer.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import msgspec

from federation.admin import AdminRefused, TokenOrder
from federation.etcd import Delete, EtcdClient, EtcdError, Event, Get, KeyValue, Listing, Put, Unchanged
from federation.names import TOKENS_PREFIX, token_key
from federation.reports import KnownTokenReport, TokenReport
from trust import join_tokens
from trust.attestation import HINT, AttestationRefused, AttestationUnavailable, Proof
from trust.audit import AuditEvent, AuditKind
from trust.join_tokens import HOW, TokenId, TokenRecord

log = logging.getLogger(__name__)

_ANSWER_LIMIT = timedelta(seconds=2)  # of etcd, until what is remembered counts; a proxy waits five at most
_ATTEMPTS = 5  # to write what others write too
_LONGEST_WAIT = timedelta(hours=1)  # for an expiry; then the clock is read again
_TIDY_EVERY = timedelta(hours=1)
_REVOKED_REMEMBERED = 1024


class _Known(msgspec.Struct, frozen=True):
    """A record as etcd holds it; None when it could not be read."""

    digest: str
    record: TokenRecord | None
    revision: int

    @classmethod
    def of(cls, item: KeyValue) -> "_Known":
        digest = item.key.removeprefix(TOKENS_PREFIX)
        try:
            record = join_tokens.decode_record(item.value)
        except AttestationRefused as error:
            log.warning("record of a token is broken", extra={"token": digest[:12], "reason": error.message})
            record = None
        return cls(digest, record, item.mod_revision)


class Tokens:
    """The join tokens of one cluster, as one replica knows them. `run` follows them; used from one event loop."""

    def __init__(self, etcd: EtcdClient, on_event: Callable[[AuditEvent], None]) -> None:
        self._etcd = etcd
        self._on_event = on_event
        self._known: dict[TokenId, _Known] = {}
        self._waiting: dict[TokenId, set[asyncio.Event]] = {}
        # What was revoked since the start: an etcd that lost its last writes would bring it back.
        self._revoked: dict[TokenId, None] = {}

    async def run(self) -> None:
        """Follows the records for ever."""
        async with aclosing(self._etcd.follow(TOKENS_PREFIX)) as changes:
            async for change in changes:
                match change:
                    case Listing():
                        await self._take_listing(change)
                    case Event(key=key, item=None):
                        self._forget(join_tokens.token_id(key.removeprefix(TOKENS_PREFIX)))
                    case Event(item=KeyValue() as item):
                        await self._take(_Known.of(item))

    async def run_tidying(self) -> None:
        """Removes records that expired more than a day ago, for ever: the leader's duty."""
        while True:
            now = datetime.now(UTC)
            for known in list(self._known.values()):
                if known.record is not None and join_tokens.is_forgotten(known.record, now=now):
                    try:
                        await self._etcd.transact(
                            [Unchanged(token_key(known.digest), known.revision)], [Delete(token_key(known.digest))]
                        )
                    except EtcdError:
                        break  # in an hour again
                    self._tell(AuditKind.TOKEN_REMOVED, known, reason="it expired more than a day ago")
            await asyncio.sleep(_TIDY_EVERY.total_seconds())

    # What the admin API asks

    async def create(self, order: TokenOrder, *, asked_by: str) -> TokenReport:
        """Makes a token, keeps its digest in etcd and tells it this once."""
        record = join_tokens.make_record(
            order.namespace,
            order.account,
            role=order.role,
            now=datetime.now(UTC),
            lifetime=_span(order.ttl),
            once=order.once,
            created_by=asked_by,
        )
        token = join_tokens.new_token()
        digest = join_tokens.digest(token)
        try:
            revision = await self._etcd.put(token_key(digest), join_tokens.encode_record(record))
        except EtcdError as error:
            raise _etcd_away("take the token", error) from error
        known = _Known(digest, record, revision)
        self._remember(known)
        self._tell(AuditKind.TOKEN_CREATED, known, asked_by=asked_by, expires=record.expires)
        return TokenReport(
            token,
            order.namespace,
            order.account,
            order.role,
            id=join_tokens.token_id(digest),
            expires=record.expires,
            once=record.once,
        )

    async def list(self) -> tuple[KnownTokenReport, ...]:
        """Returns all tokens by namespace, account and age; what is revoked is gone."""
        try:
            listing = await self._etcd.list(TOKENS_PREFIX)
        except EtcdError as error:
            raise _etcd_away("list the tokens", error) from error
        now = datetime.now(UTC)
        reports = [_report(_Known.of(item), now) for item in listing.items]
        return tuple(sorted(reports, key=lambda one: (one.namespace, one.account, str(one.created), one.id)))

    async def revoke(self, text: str, *, asked_by: str) -> KnownTokenReport:
        """Removes the token with that id, and returns what it was: streams that it admitted end at once."""
        token = join_tokens.parse_token_id(text)
        try:
            listing = await self._etcd.list(token_key(token))  # the id is how the digest begins
            for item in listing.items:
                await self._etcd.delete(item.key)
        except EtcdError as error:
            raise _etcd_away("remove the token", error) from error
        if not listing.items:
            raise AdminRefused(f"there is no token {token}", "`isthmus token list` shows the ids", status=404)
        known = _Known.of(listing.items[0])
        self._forget(token)
        self._tell(AuditKind.TOKEN_REVOKED, known, asked_by=asked_by)
        return _report(known, datetime.now(UTC))

    # What the door asks (trust.attestation.Attestor)

    def recognizes(self, credential: str) -> bool:
        """Says whether a credential has the shape of a join token."""
        return join_tokens.is_token(credential)

    async def attest(self, credential: str, *, now: datetime) -> Proof:
        """Returns what a token proves; with etcd away, of those that were known."""
        known, reference = await self._look_up(credential)
        return join_tokens.check(known.record if known else None, now=now, reference=reference)

    async def claim(self, credential: str, node: str, *, now: datetime) -> None:
        """Writes that `node` uses a token: always the first time when it admits only one, else once an hour."""
        reference = join_tokens.token_id(join_tokens.digest(credential))
        for _ in range(_ATTEMPTS):
            known = self._known.get(reference)
            if known is None or known.record is None:
                raise AttestationRefused("the join token is unknown in this cluster", HINT, proof=f"{HOW} {reference}")
            before = known.record
            after = join_tokens.claim(before, node, now=now, reference=reference)
            if after is before:
                return
            is_new_claim = after.claimed_by != before.claimed_by
            try:
                is_written = await self._write(known, after)
            except (EtcdError, TimeoutError) as error:
                if is_new_claim:
                    raise AttestationUnavailable(
                        "etcd does not answer: the join token cannot be claimed", "try again"
                    ) from error
                return  # when it was last used is worth no refusal
            if is_written:
                if is_new_claim:
                    self._tell(AuditKind.TOKEN_CLAIMED, known, asked_by=node)
                return
        raise AttestationUnavailable("the record of the join token changes all the time", "try again")

    async def ended(self, proof: Proof, node: str) -> AttestationRefused:
        """Waits until the token of a proof is revoked, has expired or is another node's, and returns which."""
        reference = TokenId(proof.reference)
        while True:
            now = datetime.now(UTC)
            known = self._known.get(reference)
            if known is None:
                return AttestationRefused("the join token was revoked", HINT, proof=str(proof))
            record = known.record
            try:
                join_tokens.check(record, now=now, reference=reference)
            except AttestationRefused as error:
                return error
            if record is None or not join_tokens.is_for(record, node):
                return AttestationRefused("the join token is good for another proxy", HINT, proof=str(proof))
            left = record.expires - now if record.expires else _LONGEST_WAIT
            await self._changed(reference, min(left, _LONGEST_WAIT))

    async def _changed(self, reference: TokenId, limit: timedelta) -> None:
        """Waits until the record of a token changes, or for `limit`."""
        news = asyncio.Event()
        waiting = self._waiting.setdefault(reference, set())
        waiting.add(news)
        try:
            async with asyncio.timeout(limit.total_seconds()):
                await news.wait()
        except TimeoutError:
            pass
        finally:
            waiting.discard(news)
            if not waiting and self._waiting.get(reference) is waiting:
                del self._waiting[reference]

    async def _look_up(self, credential: str) -> tuple[_Known | None, TokenId]:
        digest = join_tokens.digest(credential)
        reference = join_tokens.token_id(digest)
        try:
            async with asyncio.timeout(_ANSWER_LIMIT.total_seconds()):
                found = await self._etcd.get(token_key(digest))
        except (EtcdError, TimeoutError) as error:
            known = self._known.get(reference)
            if known is not None and known.digest == digest:
                return known, reference
            raise AttestationUnavailable("etcd does not answer: join tokens cannot be checked", "try again") from error
        if found is None:
            return None, reference  # revoked, or etcd has lost it: `run` finds out
        known = _Known.of(found)
        self._remember(known)
        return known, reference

    async def _write(self, known: _Known, record: TokenRecord) -> bool:
        """Writes a record over the known one, and says whether it did; else takes what stands there now."""
        key = token_key(known.digest)
        value = join_tokens.encode_record(record)
        async with asyncio.timeout(_ANSWER_LIMIT.total_seconds()):
            done = await self._etcd.transact([Unchanged(key, known.revision)], [Put(key, value)], [Get(key)])
        if done.succeeded:
            self._remember(_Known(known.digest, record, done.revision))
            return True
        for found in done.found:
            if found is not None:
                self._remember(_Known.of(found))
        return False

    async def _take(self, known: _Known) -> None:
        if join_tokens.token_id(known.digest) in self._revoked:  # written again by a replica that had not heard of it
            await self._rewrite(known.revision, Delete(token_key(known.digest)))
        else:
            self._remember(known)

    async def _take_listing(self, listing: Listing) -> None:
        before, self._known = self._known, {}
        for item in listing.items:
            self._remember(_Known.of(item))
        if listing.is_after_loss:
            await self._repair(before)
        else:  # what was written here since that revision comes as an event
            newer = {reference: known for reference, known in before.items() if known.revision > listing.revision}
            self._known = newer | self._known
        for reference in before.keys() - self._known.keys():
            self._note_revoked(reference)
            self._wake(reference)

    async def _repair(self, before: dict[TokenId, _Known]) -> None:
        """Makes an etcd that lost its last writes hold what it should: nobody revoked what is missing."""
        log.warning("tokens are written again: etcd lost writes", extra={"known": len(before)})
        found = dict(self._known)
        for reference in self._revoked.keys() & found.keys():
            self._known.pop(reference)
            await self._rewrite(found[reference].revision, Delete(token_key(found[reference].digest)))
        for reference, known in before.items():
            now = found.get(reference)
            is_claim_lost = now is not None and now.record is not None and not now.record.claimed_by
            if known.record is not None and (now is None or (is_claim_lost and known.record.claimed_by)):
                self._known[reference] = known
                put = Put(token_key(known.digest), join_tokens.encode_record(known.record))
                await self._rewrite(now.revision if now else 0, put)

    async def _rewrite(self, revision: int, operation: Put | Delete) -> None:
        try:
            await self._etcd.transact([Unchanged(operation.key, revision)], [operation])
        except EtcdError as error:  # it is away again: after that there is another listing
            log.warning("token not written again", extra={"reason": str(error)})

    def _remember(self, known: _Known) -> None:
        reference = join_tokens.token_id(known.digest)
        self._known[reference] = known
        self._wake(reference)

    def _forget(self, reference: TokenId) -> None:
        if self._known.pop(reference, None) is not None:
            self._note_revoked(reference)
        self._wake(reference)

    def _note_revoked(self, reference: TokenId) -> None:
        if len(self._revoked) >= _REVOKED_REMEMBERED:
            del self._revoked[next(iter(self._revoked))]
        self._revoked[reference] = None

    def _wake(self, reference: TokenId) -> None:
        for news in self._waiting.get(reference, ()):
            news.set()

    def _tell(
        self, kind: AuditKind, known: _Known, *, asked_by: str = "", expires: datetime | None = None, reason: str = ""
    ) -> None:
        record = known.record
        subject = f"{record.namespace}/{record.account}" if record else "(unreadable)"
        proof = f"{HOW} {join_tokens.token_id(known.digest)}"
        now = datetime.now(UTC)
        event = AuditEvent(
            kind=kind, at=now, subject=subject, asked_by=asked_by, proof=proof, expires=expires, reason=reason
        )
        self._on_event(event)


def _report(known: _Known, now: datetime) -> KnownTokenReport:
    reference, state = join_tokens.token_id(known.digest), join_tokens.state(known.record, now=now)
    record = known.record
    if record is None:
        return KnownTokenReport(id=reference, state=state)
    return KnownTokenReport(
        id=reference,
        state=state,
        namespace=record.namespace,
        account=record.account,
        role=record.role,
        created=record.created,
        created_by=record.created_by,
        expires=record.expires,
        once=record.once,
        claimed_by=record.claimed_by,
        claimed_at=record.claimed_at,
        last_used=record.last_used,
    )


def _span(seconds: int | None) -> timedelta | None:
    try:
        return None if seconds is None else timedelta(seconds=seconds)
    except OverflowError as error:
        raise AttestationRefused(
            f"a token cannot live for {seconds} seconds", "leave the time out for no end"
        ) from error


def _etcd_away(what: str, error: EtcdError) -> AdminRefused:
    return AdminRefused(f"etcd did not {what}: {error}", "is the cluster's etcd running?", status=503)
