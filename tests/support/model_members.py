"""Members of a mesh with real authorities on disk and made-up proxies: a stand-in for running control planes.

What a real control plane does in moments happens here each time that somebody looks: it takes documents, asks for the
authority that is wanted, pushes to its proxies, and lets an old key go once every proxy has a certificate of the new.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from deploy.cli.survey import Silent, Survey, put_together
from federation.reports import TrustReport
from trust.bundle import TrustBundle, bundle_digest
from trust.custody import FileCustody
from trust.enrolment import Enrolment, Membership
from trust.joining import GatewayAddress, Grant, Introduction
from trust.refusals import Refusal
from trust.root import Root
from trust.spiffe import ClusterName
from trust.statements import HeardStatement, TrustStatement, Waiting


@dataclass
class ModelMember:
    """One member. `stuck` names proxies that take nothing; who `is_away` neither answers nor hears of anything."""

    name: ClusterName
    enrolment: Enrolment
    about: Introduction
    proxies: dict[str, tuple[str, str]] = field(default_factory=dict)
    stuck: set[str] = field(default_factory=set)
    is_away: bool = False
    is_reached: bool = True
    taken: list[Grant] = field(default_factory=list)

    @classmethod
    def join(cls, folder: Path, name: ClusterName, root: Root, *, proxies: int = 2) -> "ModelMember":
        """Makes a member that the root granted, with proxies that hold the newest of everything."""
        directory = folder / name
        enrolment = Enrolment(directory, FileCustody(directory))
        about = Introduction(name=name, network=name, region="eu", gateways=(GatewayAddress("127.107.0.1", 15443),))
        now = datetime.now(UTC)
        enrolment.accept(root.grant(enrolment.request(about, domain=root.domain, now=now), now=now), now=now)
        member = cls(name, enrolment, about)
        member.proxies = {f"{name}/shop/cart-{number}": ("", "") for number in range(proxies)}
        member.settle()
        return member

    @property
    def membership(self) -> Membership:
        found = self.enrolment.load()
        assert found is not None
        return found

    @property
    def keys(self) -> set[int]:
        """The generations of which it holds a key."""
        return {one.generation for one in self.membership.authorities}

    def take(self, bundles: Iterable[TrustBundle], grants: Iterable[Grant]) -> None:
        """Takes what is for it; raises trust's Refusals."""
        self.enrolment.take(bundles, now=datetime.now(UTC))
        for grant in grants:
            if grant.cluster == self.name:
                self.enrolment.accept(grant, now=datetime.now(UTC))
                self.taken.append(grant)

    def settle(self) -> None:
        """Does what follows from what it has taken."""
        now, member = datetime.now(UTC), self.membership
        first = member.bundle.roots[0]
        if member.active.generation < member.wanted or first not in _pem(member.active.root):
            self.enrolment.renewal(self.about, now=now)
        newest = bundle_digest(member.bundle), member.active.fingerprint
        self.proxies = {node: held if node in self.stuck else newest for node, held in self.proxies.items()}
        if member.older and all(held[1] == newest[1] for held in self.proxies.values()):
            self.enrolment.retire(now=now)

    def statement(self) -> TrustStatement:
        """Returns what it says."""
        member = self.membership
        roots, active = bundle_digest(member.bundle), member.active.fingerprint
        late = [node for node, held in self.proxies.items() if held != (roots, active)]
        subjects = tuple(one.subject for one in member.bundle.revoked)
        return TrustStatement(
            cluster=self.name,
            sequence=member.bundle.sequence,
            bundle=roots,
            authorities=member.authorities,
            proxies=len(self.proxies),
            trusting=sum(held[0] == roots for held in self.proxies.values()),
            renewed=sum(held[1] == active for held in self.proxies.values()),
            enforcing=len(self.proxies),
            revoked=subjects,
            waiting=tuple(Waiting(node, "has not answered") for node in late),
            request=member.pending,
            at=datetime.now(UTC),
        )


def _pem(root: object) -> str:
    from cryptography import x509

    from trust.certificates import certificate_pem

    assert isinstance(root, x509.Certificate)
    return certificate_pem(root).decode()


@dataclass
class ModelMesh:
    """A `Mesh` of model members, which tell each other what they heard. `looks` counts how often it was asked."""

    members: Sequence[ModelMember]
    looks: int = 0
    heard: dict[ClusterName, TrustStatement] = field(default_factory=dict)
    asked_by: str = ""

    async def look(self) -> Survey:
        """Asks all that are reached; each time, all that are there go a step."""
        self.looks += 1
        there = [member for member in self.members if not member.is_away]
        newest = max((member.membership for member in there), key=lambda one: one.bundle.sequence, default=None)
        for member in there:
            if newest is not None:
                try:
                    member.take(newest.documents, ())
                except Refusal:
                    continue  # it missed so much that it needs the documents of the root directory
            member.settle()
            self.heard[member.name] = member.statement()
        return self._survey({})

    async def deliver(self, bundles: Sequence[TrustBundle], grants: Sequence[Grant]) -> Survey:
        """Hands all over to those that are reached; grants are passed on to those that are there."""
        refused: dict[str, str] = {}
        reached = [member for member in self.members if member.is_reached and not member.is_away]
        for member in self.members if reached else ():
            if member.is_away:
                continue
            try:
                member.take(bundles if member in reached else (), grants)
            except Refusal as refusal:
                refused[member.name] = refusal.message
            else:
                self.heard[member.name] = member.statement()
        return self._survey(refused)

    def _survey(self, refused: dict[str, str]) -> Survey:
        answers: dict[str, TrustReport | Silent] = {}
        for member in self.members:
            if member.is_away or not member.is_reached:
                answers[member.name] = Silent(member.name, "Connection refused")
            elif member.name in refused:
                answers[member.name] = Silent(member.name, refused[member.name])
            else:
                others = [one for name, one in sorted(self.heard.items()) if name != member.name]
                answers[member.name] = TrustReport(
                    member.membership.bundle,
                    member.statement(),
                    tuple(HeardStatement(one, one.at) for one in others),
                )
        return put_together(answers)
