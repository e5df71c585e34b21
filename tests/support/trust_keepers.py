"""A root and keepers of trust in memory, for tests of what federation carries between them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from federation.etcd import EtcdClient
from federation.model import ClusterSettings, MemberCluster, Trust
from federation.names import departure_key
from federation.peering import exports, trust_records
from federation.peering.news import News
from federation.peering.replica import Replica
from federation.peering.statements import make_statement
from federation.proxy_trust import ProxyTrust
from federation.snapshot import TRUST_KEY, Change, Section
from federation.store import MeshStore
from tests.support.trust import DOMAIN, bundle_of
from trust.bundle import BundleRefused, Revocation, TrustBundle, bundle_pem, catch_up, make_bundle, worth_keeping
from trust.certificates import key_fingerprint, make_intermediate, make_root, new_key
from trust.enrolment import Intermediate
from trust.issuance import Issuer, X509Svid
from trust.joining import Grant
from trust.spiffe import ClusterName, MeshDomain, control_identity
from trust.statements import AuthorityState, TrustStatement


class RootUnderTest:
    """A root that makes documents; what it said before can be had again."""

    def __init__(self, domain: MeshDomain, *, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self.domain = domain
        self.said: list[TrustBundle] = []
        self._keys = [key]
        self._roots = [certificate]

    def say(
        self,
        *,
        revoked: Sequence[Revocation] = (),
        generations: Mapping[ClusterName, int] | None = None,
    ) -> TrustBundle:
        """Makes the next document; the root that it names first signs it."""
        made = make_bundle(
            self._keys[0],
            domain=self.domain,
            sequence=len(self.said) + 1,
            roots=self._roots,
            generations=generations or {},
            revoked=revoked,
            now=datetime.now(UTC),
        )
        self.said.append(made)
        return made

    def authority(
        self, cluster: ClusterName, *, now: datetime, leaf_lifetime: timedelta = timedelta(hours=1)
    ) -> Issuer:
        """Returns what issues in a cluster, by a new key."""
        key = new_key()
        certificate = make_intermediate(
            self._roots[0],
            self._keys[0],
            public_key=key.public_key(),
            cluster=cluster,
            domain=self.domain,
            now=now,
            lifetime=timedelta(days=1),
        )
        return Issuer(
            Intermediate(cluster=cluster, domain=self.domain, certificate=certificate, root=self._roots[0], key=key),
            bundle_of(*self._roots),
            leaf_lifetime=leaf_lifetime,
        )

    def announce(self) -> TrustBundle:
        """Makes another root, and a document that names it too."""
        now, key = datetime.now(UTC), new_key()
        self._keys.append(key)
        self._roots.append(make_root(key, self.domain, now=now, lifetime=timedelta(days=1)))
        return self.say()


def make_mesh(
    *clusters: ClusterName,
    now: datetime,
    domain: MeshDomain = DOMAIN,
    leaf_lifetime: timedelta = timedelta(hours=1),
) -> tuple[RootUnderTest, Mapping[ClusterName, Issuer]]:
    """Returns a new root that has said nothing yet, and an issuer of each of `clusters` below it."""
    key = new_key()
    root = RootUnderTest(domain, key=key, certificate=make_root(key, domain, now=now, lifetime=timedelta(days=2)))
    return root, {cluster: root.authority(cluster, now=now, leaf_lifetime=leaf_lifetime) for cluster in clusters}


class KeeperUnderTest:
    """A TrustKeeper without a disk: the root's documents are checked as a real one does, grants are only noted."""

    def __init__(
        self,
        settings: ClusterSettings,
        issuer: Issuer,
        *,
        store: MeshStore,
        etcd: EtcdClient,
        replica: Replica,
        documents: Sequence[TrustBundle] = (),
    ) -> None:
        self.news = News()
        self.issuer = issuer
        self.taken_grants: list[Grant] = []
        self.generation = 1
        self.proxies: Mapping[str, ProxyTrust] = {}
        self._settings = settings
        self._store = store
        self._etcd = etcd
        self._replica = replica
        self._documents = tuple(documents)
        self._svid = self._issue()
        self._apply()

    def documents(self) -> tuple[TrustBundle, ...]:
        return worth_keeping(self._documents)

    def statement(self) -> TrustStatement | None:
        if not self._documents:
            return None
        state = AuthorityState(
            generation=self.generation,
            fingerprint=self.authority,
            root="",
            not_after=datetime.max.replace(tzinfo=UTC),
            is_active=True,
        )
        return make_statement(
            self._settings.name,
            self._documents[-1],
            authorities=(state,),
            records=self.proxies,
            pods=(),
            connected=(),
            revoked=self._store.snapshot.revoked,
            request=None,
            now=datetime.now(UTC),
        )

    def grants_for(self, peer: ClusterName) -> tuple[Grant, ...]:
        return trust_records.grants_for(self._replica.records, peer)

    def own_member(self) -> MemberCluster:
        has_left = self._settings.name in self._store.snapshot.departures
        certificate = self.issuer.intermediate_pem.decode()
        said = exports.own_member(self._settings, certificate=certificate, has_left=has_left)
        return msgspec.structs.replace(said, incarnation=self._replica.decision(departure_key(said.name)))

    def svid(self) -> X509Svid:
        return self._svid

    def bundle_pem(self) -> bytes:
        return bundle_pem(self._documents[-1]) if self._documents else self.issuer.trust_bundle_pem

    async def take_bundles(self, bundles: tuple[TrustBundle, ...]) -> str:
        try:
            new = catch_up(self._documents[-1], bundles, now=datetime.now(UTC)) if self._documents else bundles
        except BundleRefused as error:
            return error.message
        if new:
            self._documents += new
            self._apply()
            self.news.tell()
        return ""

    async def take_grant(self, grant: Grant) -> str:
        if grant.request_id != "a" * 32:
            return "it answers no request of this cluster"
        self.taken_grants.append(grant)
        self.generation = grant.generation
        self.news.tell()
        return ""

    async def pass_on(self, grant: Grant) -> str:
        await trust_records.keep_grant(self._etcd, grant)
        return ""

    @property
    def authority(self) -> str:
        """Fingerprint of the authority that signs now."""
        certificate = x509.load_pem_x509_certificate(self.issuer.intermediate_pem)
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return key_fingerprint(key)

    def switch(self, issuer: Issuer) -> None:
        """Makes another authority sign from now on."""
        self.issuer, self._svid = issuer, self._issue_with(issuer)
        self._apply()
        self.news.tell()

    def _issue(self) -> X509Svid:
        return self._issue_with(self.issuer)

    def _issue_with(self, issuer: Issuer) -> X509Svid:
        return issuer.issue(control_identity(self._settings.name), now=datetime.now(UTC))

    def _apply(self) -> None:
        if self._documents:
            trust = Trust(self._settings.name, self._documents[-1], self.authority)
            self._store.apply([Change(Section.TRUST, TRUST_KEY, trust)])
