"""The root of a mesh: whom it asks all to believe, and to whom it gives an authority. Kept offline, in a directory.

A rotation of the root goes through stages (`trust.rotation`); the newest trust bundle and the keys that are there say
which one it is in. A step is done when it returns; one that a crash cut off is done again. See `root_directory`.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from trust import joining, ledger
from trust.bundle import Revocation, TrustBundle, make_bundle, parse_subject, revoked_clusters, worth_keeping
from trust.certificates import BACKDATE, make_intermediate, make_root
from trust.custody import Custody, remember
from trust.joining import Grant, Introduction, JoinRefused, JoinRequest
from trust.ledger import Ledger
from trust.refusals import AuthorityRefused
from trust.root_directory import RootDirectory, Said
from trust.rotation import RootStage
from trust.spiffe import ClusterName, InvalidName, MeshDomain, parse_domain
from trust.verification import check_root

ROOT_LIFETIME = timedelta(days=3650)
INTERMEDIATE_LIFETIME = timedelta(days=365)
GRANT_LIFETIME = timedelta(hours=24)
LONGEST_LIFETIME = timedelta(days=36500)


class Root:
    """The root of a mesh: a directory with its bundles and its ledger, and its keys in their custody.

    Every call may block, and raises AuthorityRefused or CustodyRefused; one that is refused has changed nothing.
    """

    def __init__(self, directory: RootDirectory) -> None:
        self._directory = directory

    @classmethod
    def init(
        cls,
        directory: Path,
        domain: MeshDomain,
        *,
        custody: Custody,
        now: datetime,
        lifetime: timedelta = ROOT_LIFETIME,
    ) -> Self:
        """Makes a new root in `directory`, which must be absent or empty, or be left so by an init that was cut off.

        `custody` must hold no key of a root; where it is, is written down in the directory.
        """
        _check_lifetime(lifetime, "a root")
        try:
            parse_domain(domain)
        except InvalidName as error:
            raise AuthorityRefused(str(error), "choose a DNS name that is yours, such as mesh.example") from error
        place = RootDirectory(directory, custody)
        with place.new(domain) as said:
            place.write_ledger(Ledger())
            if custody.where:
                remember(directory, custody.where)
            key, said = place.new_key(said)
            certificate = make_root(key, domain, now=now, lifetime=lifetime)
            bundle = make_bundle(
                key, domain=domain, sequence=1, roots=(certificate,), generations={}, revoked=(), now=now
            )
            place.write(msgspec.structs.replace(said, bundles=(bundle,)))
        return cls(place)

    @classmethod
    def open(cls, directory: Path, *, custody: Custody, now: datetime) -> Self:
        """Opens the root in `directory`. One that has expired opens too: it can still say who follows it."""
        place = RootDirectory(directory, custody)
        with place.changing() as said:
            root = said.roots[0]
            check_root(root, said.domain, now=min(now, root.not_valid_after_utc))
            place.key(said, root)
            place.lay_out(said)
        return cls(place)

    @property
    def bundle(self) -> TrustBundle:
        """The newest trust bundle."""
        return self._directory.read().bundle

    @property
    def certificate(self) -> x509.Certificate:
        """The root that signs now."""
        return self._directory.read().roots[0]

    @property
    def domain(self) -> MeshDomain:
        """The mesh that it is the root of."""
        return self._directory.read().domain

    @property
    def stage(self) -> RootStage:
        """How far a rotation of the root is."""
        return self._directory.read().stage

    def documents(self) -> tuple[TrustBundle, ...]:
        """Returns the trust bundles that somebody who was away needs, by number; the last one is the newest."""
        return self._directory.read().bundles

    def members(self) -> tuple[Introduction, ...]:
        """Returns all that were granted membership, by name, as they described themselves."""
        known = self._directory.read_ledger().members
        return tuple(known[name].introduction for name in sorted(known))

    # Who gets an authority

    def grant(
        self,
        request: JoinRequest,
        *,
        now: datetime,
        introductions: Sequence[Introduction] = (),
        lifetime: timedelta = INTERMEDIATE_LIFETIME,
        valid_for: timedelta = GRANT_LIFETIME,
        replace: bool = False,
    ) -> Grant:
        """Signs the intermediate of a newcomer. Raises JoinRefused too: also for a cluster that is revoked.

        The grant introduces every other member of the ledger; `introductions` say better where some of them are now.
        `replace` gives a name to a new key: for a cluster that lost its old one, whose certificate stays valid to its
        end. A cluster that comes again with the key it has needs no `replace`. No request is granted twice.
        """
        public_key = joining.check_request(request, domain=self.domain)
        for introduction in introductions:
            joining.check_introduction(introduction)
        with self._directory.changing() as said:
            known = self._directory.read_ledger()
            ledger.check_join(known, request, public_key, replace=replace)
            generation = said.bundle.generations.get(request.cluster.name, 1)
            return self._sign(
                said,
                known,
                request,
                public_key=public_key,
                generation=generation,
                introductions=introductions,
                now=now,
                lifetime=lifetime,
                valid_for=valid_for,
            )

    def renew(self, request: JoinRequest, *, now: datetime) -> Grant:
        """Signs the next intermediate of a member, which shows that it holds the present one; raises JoinRefused.

        The same request may be granted again, and is then signed anew, by the root that signs now: the grant before it
        may have been lost, or have expired. That ends when the member has shown that it uses the key: see `confirm`.
        """
        public_key = joining.check_request(request, domain=self.domain)
        holder = joining.check_continuity(request)
        with self._directory.changing() as said:
            known = self._directory.read_ledger()
            wanted = said.bundle.generations.get(request.cluster.name, 1)
            ledger.check_renewal(known, request, public_key, holder=holder, wanted=wanted)
            return self._sign(
                said,
                known,
                request,
                public_key=public_key,
                generation=wanted,
                holder=holder,
                now=now,
                lifetime=INTERMEDIATE_LIFETIME,
                valid_for=GRANT_LIFETIME,
            )

    def confirm(self, cluster: ClusterName, key: str) -> None:
        """Notes that a member signs with `key` (a fingerprint): the key before it can ask for nothing any more.

        Another key than the one that was granted last changes nothing. A renewal that `key` asks for says the same.
        """
        with self._directory.changing():
            known = self._directory.read_ledger()
            if (used := ledger.with_use(known, cluster, key)) != known:
                self._directory.write_ledger(used)

    # What the mesh is told

    def announce(self, *, now: datetime) -> TrustBundle:
        """Makes the next root, and asks all to trust it beside the one that signs; once announced, changes nothing.

        It lives as long as that one was made to live.
        """
        with self._directory.changing() as said:
            if said.stage is RootStage.ANNOUNCED:
                return said.bundle
            _check_stage(said, RootStage.IDLE, "announce a new root")
            signer = self._directory.key(said, said.roots[0])
            key, said = self._directory.new_key(said)
            before = said.roots[0]
            lifetime = before.not_valid_after_utc - before.not_valid_before_utc - BACKDATE
            certificate = make_root(key, said.domain, now=now, lifetime=lifetime)
            return self._say_next(said, signer, roots=(*said.roots, certificate), now=now)

    def sign_with_next(self, *, now: datetime) -> TrustBundle:
        """Lets the root that was announced sign from now on, and asks every member to have its authority made anew.

        To be called when every proxy of every member trusts it.
        """
        with self._directory.changing() as said:
            _check_stage(said, RootStage.ANNOUNCED, "sign with the next root")
            old, new = said.roots
            self._directory.key(said, new)  # nobody is told to follow a key that cannot be used
            asked = said.bundle.generations
            names = {*self._directory.read_ledger().members, *asked}
            generations = {name: asked.get(name, 1) + 1 for name in names}
            return self._say_next(
                said, self._directory.key(said, said.roots[0]), roots=(new, old), generations=generations, now=now
            )

    def retire(self, *, now: datetime) -> TrustBundle:
        """Asks all to trust the old root no longer: to be called when no proxy holds a certificate below it."""
        with self._directory.changing() as said:
            _check_stage(said, RootStage.SIGNING, "retire the old root")
            new, _ = said.roots
            return self._say_next(said, self._directory.key(said, said.roots[0]), roots=(new,), now=now)

    def finish(self) -> None:
        """Destroys the key of the old root: to be called when nobody trusts it any more."""
        with self._directory.changing() as said:
            _check_stage(said, RootStage.RETIRING, "destroy the key of the old root")
            for name in said.forgotten.values():
                self._directory.custody.destroy(name)
            left = {fingerprint: name for fingerprint, name in said.keys.items() if fingerprint not in said.forgotten}
            self._directory.write(msgspec.structs.replace(said, keys=left))

    def require_renewal(self, cluster: ClusterName, *, now: datetime) -> TrustBundle:
        """Asks a member to have its authority made anew."""
        with self._directory.changing() as said:
            if cluster not in self._directory.read_ledger().members:
                raise AuthorityRefused(f"{cluster} is no member of this mesh", "see: isthmus trust show --root DIR")
            _check_not_revoked(said.bundle, cluster)
            asked = said.bundle.generations
            generations = {**asked, cluster: asked.get(cluster, 1) + 1}
            return self._say_next(said, self._directory.key(said, said.roots[0]), generations=generations, now=now)

    def revoke(self, revocation: Revocation, *, now: datetime) -> TrustBundle:
        """Asks all to believe somebody no longer. Who is revoked in just that way already, stays so."""
        with self._directory.changing() as said:
            parse_subject(revocation.subject)
            known = {one.subject: one for one in said.bundle.revoked}
            held = known.get(revocation.subject)
            if held is not None and (held.sever, held.reason) == (revocation.sever, revocation.reason):
                return said.bundle
            revoked = {**known, revocation.subject: revocation}
            return self._say_next(
                said, self._directory.key(said, said.roots[0]), revoked=tuple(revoked.values()), now=now
            )

    def restore(self, subject: str, *, now: datetime) -> TrustBundle:
        """Asks all to believe somebody again."""
        with self._directory.changing() as said:
            left = tuple(one for one in said.bundle.revoked if one.subject != subject)
            if len(left) == len(said.bundle.revoked):
                message = f"{subject} is not revoked by the root"
                raise AuthorityRefused(message, "see who is: isthmus trust status")
            return self._say_next(said, self._directory.key(said, said.roots[0]), revoked=left, now=now)

    # The lock is held.

    def _sign(
        self,
        said: Said,
        known: Ledger,
        request: JoinRequest,
        *,
        public_key: ec.EllipticCurvePublicKey,
        generation: int,
        now: datetime,
        lifetime: timedelta,
        valid_for: timedelta,
        introductions: Sequence[Introduction] = (),
        holder: ec.EllipticCurvePublicKey | None = None,
    ) -> Grant:
        """Makes a grant and enters it in the ledger."""
        name = request.cluster.name
        _check_lifetime(lifetime, "a certificate")
        _check_lifetime(valid_for, "a grant")
        _check_not_revoked(said.bundle, name)
        signer, root = self._directory.key(said, said.roots[0]), said.roots[0]
        certificate = make_intermediate(
            root, signer, public_key=public_key, cluster=name, domain=said.domain, now=now, lifetime=lifetime
        )
        others = {other: member.introduction for other, member in known.members.items()}
        others |= {introduction.name: introduction for introduction in introductions}
        hidden = {name, *revoked_clusters(said.bundle.revoked)}
        grant = joining.make_grant(
            request,
            signer,
            certificate=certificate,
            root=root,
            bundle=said.bundle,
            generation=generation,
            introductions=[others[other] for other in sorted(others) if other not in hidden],
            expires=now + valid_for,
        )
        known = ledger.with_grant(
            known, request, certificate, key=public_key, generation=generation, now=now, holder=holder
        )
        self._directory.write_ledger(known)
        return grant

    def _say_next(
        self,
        said: Said,
        signer: ec.EllipticCurvePrivateKey,
        *,
        now: datetime,
        roots: Sequence[x509.Certificate] | None = None,
        generations: Mapping[ClusterName, int] | None = None,
        revoked: Sequence[Revocation] | None = None,
    ) -> TrustBundle:
        held = said.bundle
        bundle = make_bundle(
            signer,
            domain=said.domain,
            sequence=held.sequence + 1,
            roots=said.roots if roots is None else roots,
            generations=held.generations if generations is None else generations,
            revoked=held.revoked if revoked is None else revoked,
            now=now,
        )
        self._directory.write(msgspec.structs.replace(said, bundles=worth_keeping((*said.bundles, bundle))))
        return bundle


def _check_stage(said: Said, stage: RootStage, what: str) -> None:
    if said.stage is stage:
        return
    hints = {
        RootStage.IDLE: "no rotation of it is under way",
        RootStage.ANNOUNCED: "the next root is announced and does not sign yet",
        RootStage.SIGNING: "the next root signs and the old one is still trusted",
        RootStage.RETIRING: "the old root is trusted no longer and its key is still there",
    }
    message = f"the root cannot {what} now: {hints[said.stage]}"
    raise AuthorityRefused(message, "go on with what is under way: isthmus trust rotate root --root DIR")


def _check_lifetime(lifetime: timedelta, what: str) -> None:
    if not timedelta(0) < lifetime <= LONGEST_LIFETIME:
        raise AuthorityRefused(f"{what} cannot live for {lifetime} from now on", "give 1 to 36500 days")


def _check_not_revoked(bundle: TrustBundle, cluster: ClusterName) -> None:
    if cluster in revoked_clusters(bundle.revoked):
        message = f"{cluster} is revoked: it gets no authority"
        raise JoinRefused(message, f"believe it again first: isthmus revoke {cluster} --undo --root DIR")
