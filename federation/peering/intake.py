"""What one peer says on one stream: judged, and kept in this cluster's etcd as far as it is believed. The leader's.

type              kept                                     refused
Export            exports/<peer>/...                       what is of others, malformed, or more than it may have
Member            members/<name>                           whom no root signed
TrustBundle       by the keeper, beside the key            what no root signed that is trusted here
TrustStatement    trust/statements/<peer>                  what is of others
Grant             by the keeper                            what is for others, or answers no request of ours
"""

import logging
from collections.abc import Mapping, Set
from datetime import UTC, datetime

import msgspec

from federation import names
from federation.etcd import EtcdClient
from federation.etcd.election import Leadership
from federation.model import ClusterSettings, MemberCluster
from federation.peering import exports, trust_records
from federation.peering.allowance import Allowance, weigh
from federation.peering.checks import Malformed
from federation.peering.farewells import take_word
from federation.peering.membership import check_membership
from federation.peering.records import PartlyRefused, keep_member, write_records
from federation.peering.replica import Replica
from federation.peering.trust_keeper import TrustKeeper
from federation.store import MeshStore
from federation.xds.client import Received
from federation.xds.resources import TypeUrl
from trust.certificates import CertificateRefused
from trust.spiffe import ClusterName

log = logging.getLogger(__name__)

KINDS: Mapping[TypeUrl, str] = {
    TypeUrl.EXPORT: "Export",
    TypeUrl.MEMBER: "Member",
    TypeUrl.TRUST_BUNDLE: "TrustBundle",
    TypeUrl.TRUST_STATEMENT: "TrustStatement",
    TypeUrl.TRUST_GRANT: "Grant",
}
"""What is kept, and how it is called when some of it is refused."""


class Intake:
    """Takes what one peer says on one stream; make a new one for each. `held` comes first."""

    def __init__(
        self,
        peer: ClusterName,
        settings: ClusterSettings,
        *,
        store: MeshStore,
        etcd: EtcdClient,
        replica: Replica,
        keeper: TrustKeeper,
        leadership: Leadership,
    ) -> None:
        self._peer = peer
        self._settings = settings
        self._store = store
        self._etcd = etcd
        self._replica = replica
        self._keeper = keeper
        self._leadership = leadership
        self._allowance = Allowance()
        self._documents: set[str] = set()  # names of those that the peer has told

    async def held(self) -> Mapping[TypeUrl, Mapping[str, str]]:
        """Returns the versions that this cluster holds of what the peer said, in the picture, or only in etcd yet.

        A name left out here would never be taken back by the peer, so etcd itself is asked: the picture may be behind.
        Raises EtcdUnavailable, EtcdRefused.
        """
        peer, picture = self._peer, self._store.snapshot
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
        self._allowance = Allowance(weights.items())
        members = {
            str(name): exports.member_resource(msgspec.structs.replace(member, introduced_by="")).version
            for name, member in picture.members.items()
            # Of the peer itself hearsay is not enough: it must come again, to be believed.
            if name != peer or not member.introduced_by
        }
        documents = trust_records.document_resources(self._keeper.documents())
        said = trust_records.held_statement(self._replica.records, peer)
        statement = trust_records.statement_resource(said.statement) if said else None
        return {
            TypeUrl.EXPORT: {str(key): exports.export_version(exported) for key, exported in offers.items()},
            TypeUrl.MEMBER: members,
            TypeUrl.TRUST_BUNDLE: {name: document.version for name, document in documents.items()},
            TypeUrl.TRUST_STATEMENT: {statement.name: statement.version} if statement else {},
        }

    async def keep(self, received: Received) -> Mapping[str, str]:
        """Keeps what is good and returns the names of what is refused, and why.

        The good part of a response that is refused is kept all the same: it is true, and comes again. Raises
        EtcdUnavailable, EtcdRefused, Fenced.
        """
        match received.type_url:
            case TypeUrl.EXPORT:
                return await self._keep_exports(received)
            case TypeUrl.MEMBER:
                return await self._keep_members(received)
            case TypeUrl.TRUST_BUNDLE:
                return await self._keep_documents(received)
            case TypeUrl.TRUST_STATEMENT:
                return await self._keep_statements(received)
            case TypeUrl.TRUST_GRANT:
                return await self._keep_grants(received)
            case _:
                return {}

    async def _keep_exports(self, received: Received) -> Mapping[str, str]:
        puts, refused = {}, {}
        # Joined to the peer's own prefix, the name of a removal can reach nothing of anybody else.
        deletes = {names.export_prefix(self._peer) + name for name in received.removed}
        deletes = {key for key in deletes if key in self._allowance}
        for key in deletes:
            self._allowance.drop(key)
        for resource in received.upserts:
            try:
                exported = exports.read_export(resource.name, resource.body, self._peer)
            except Malformed as error:
                refused[resource.name] = str(error)
                continue
            key = names.export_key(self._peer, exported.key)
            body = exports.encode(msgspec.structs.replace(exported, version=resource.version))
            if excess := self._allowance.take(key, weigh(exported, size=len(body))):
                refused[resource.name] = excess
            else:
                puts[key] = body
        try:
            await self._write_exports(puts, deletes - puts.keys())
        except PartlyRefused as error:
            for key, reason in error.refused.items():
                self._allowance.drop(key)
                refused[key.removeprefix(names.export_prefix(self._peer))] = f"etcd does not take it here: {reason}"
        if puts or deletes:
            log.info("peer synced", extra={"peer": self._peer, "written": len(puts), "removed": len(deletes)})
        return refused

    async def _write_exports(self, puts: Mapping[str, bytes], deletes: Set[str]) -> None:
        # To remove what etcd has lost is no event there, and every replica would go on to believe that it is only lost.
        lost = self._replica.lost
        back = {key: lost[key].body or b"" for key in deletes & lost.keys()}
        await write_records(self._etcd, self._leadership.guard, puts={**back, **puts})
        await write_records(self._etcd, self._leadership.guard, puts={}, deletes=sorted(deletes))

    async def _keep_members(self, received: Received) -> Mapping[str, str]:
        refused = {}
        now, bundle = datetime.now(UTC), self._keeper.bundle_pem()
        for resource in received.upserts:
            try:
                said = exports.read_member(resource.name, resource.body, self._peer)
                if said.introduced_by and self._says_what_is_known(said):
                    continue
                if said.introduced_by:
                    check_membership(said, bundle, domain=self._settings.domain, now=now)
            except (Malformed, CertificateRefused) as error:
                refused[resource.name] = str(error)
                continue
            if said.name == self._settings.name:
                continue
            guard = self._leadership.guard
            if not said.introduced_by:
                is_news = await take_word(self._etcd, said, guard=guard)
            else:
                # Who has left is not brought back by what others have heard of it, nor sent away.
                is_gone = said.has_left or said.name in self._store.snapshot.departures
                is_news = not is_gone and await keep_member(self._etcd, said, guard=guard)
            if is_news:
                log.info("member learnt", extra={"member": said.name, "said_by": self._peer})
        # Removals are not heeded: nobody takes a member out of the mesh by forgetting it.
        return refused

    def _says_what_is_known(self, said: MemberCluster) -> bool:
        """Says whether somebody repeats what a member, or somebody else, told us: several peers do, of each member."""
        known = self._store.snapshot.members.get(said.name)
        return known is not None and exports.is_the_same_member(said, known)

    async def _keep_documents(self, received: Received) -> Mapping[str, str]:
        """Hands over the documents: those that can be read all at once, for one may need the other to be believed."""
        self._documents.difference_update(received.removed)
        refused, read = {}, {}
        for resource in received.upserts:
            try:
                document = trust_records.read_document(resource)
            except Malformed as error:
                refused[resource.name] = str(error)
                continue
            if resource.name not in self._documents and len(self._documents) >= trust_records.MOST_DOCUMENTS:
                refused[resource.name] = f"more than {trust_records.MOST_DOCUMENTS} documents are not needed by anybody"
                continue
            self._documents.add(resource.name)
            read[resource.name] = document
        # What is believed is taken, up to the first that is not: that one, and what comes after it, is refused.
        reason = await self._keeper.take_bundles(tuple(read.values())) if read else ""
        if reason:
            for name, document in sorted(read.items(), key=lambda one: one[1].sequence):
                reason = await self._keeper.take_bundles((document,))
                if reason:
                    refused[name] = reason
                    self._documents.discard(name)
        return refused

    async def _keep_statements(self, received: Received) -> Mapping[str, str]:
        refused = {}
        for resource in received.upserts:
            try:
                statement = trust_records.read_statement(resource, self._peer)
            except Malformed as error:
                refused[resource.name] = str(error)
                continue
            body = trust_records.encode_heard(statement, datetime.now(UTC))
            puts = {names.statement_key(self._peer): body}
            await write_records(self._etcd, self._leadership.guard, puts=puts)
        # Removals are not heeded: what it last said is shown with the moment when it was heard.
        return refused

    async def _keep_grants(self, received: Received) -> Mapping[str, str]:
        refused = {}
        for resource in received.upserts:
            try:
                grant = trust_records.read_grant(resource, self._settings.name)
            except Malformed as error:
                refused[resource.name] = str(error)
                continue
            own = self._keeper.statement()
            if own is not None and any(one.generation >= grant.generation for one in own.authorities):
                continue  # it was taken: the peer has not heard of that yet
            if reason := await self._keeper.take_grant(grant):
                refused[resource.name] = reason
        return refused
