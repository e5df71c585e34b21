"""When a rotation may go on, and who holds it up. Pure: decided from the root's documents and what members say.

    root            announce -> every proxy of every member trusts both -> the new one signs, members renew
                    -> no proxy holds a certificate below the old one -> that one is trusted no longer, its key goes
    intermediate    every proxy trusts the root that signs -> a new generation is asked for, granted and signs
                    -> every proxy holds a certificate of it -> the member lets the old key go

What a member said last stays true while it is away (nobody goes back to an older document), so its silence alone holds
nothing up that it has proven before. A revoked cluster holds nothing up.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from trust.bundle import TrustBundle, bundle_digest, revoked_clusters, root_fingerprints
from trust.joining import JoinRequest
from trust.spiffe import ClusterName
from trust.statements import TrustStatement, Waiting

Statements = Mapping[ClusterName, TrustStatement | None]
"""What each member of the ledger last said; None for one of which nothing was ever heard."""


class RootStage(StrEnum):
    """How far the rotation of a root is: which roots the newest document names, and in which order."""

    IDLE = "idle"
    ANNOUNCED = "announced"
    SIGNING = "signing"
    RETIRING = "retiring"


class Action(StrEnum):
    """What the holder of the root does next in a rotation of it."""

    ANNOUNCE = "announce"
    SIGN = "sign"
    RETIRE = "retire"
    FINISH = "finish"


class Holdup(msgspec.Struct, frozen=True):
    """A member that a stage waits for, why, and the proxies that it named."""

    cluster: ClusterName
    reason: str
    proxies: tuple[Waiting, ...] = ()


class RootStep(msgspec.Struct, frozen=True):
    """What comes next, and who holds it up."""

    action: Action
    holdups: tuple[Holdup, ...] = ()


def root_step(stage: RootStage, bundle: TrustBundle, members: Statements) -> RootStep:
    """Returns the next step of a root rotation; it may be taken when nobody holds it up."""
    match stage:
        case RootStage.IDLE:
            return RootStep(Action.ANNOUNCE)
        case RootStage.ANNOUNCED:
            return RootStep(Action.SIGN, trust_holdups(bundle, members))
        case RootStage.SIGNING:
            return RootStep(Action.RETIRE, authority_holdups(bundle, members))
        case RootStage.RETIRING:
            return RootStep(Action.FINISH, trust_holdups(bundle, members))


def trust_holdups(bundle: TrustBundle, members: Statements) -> tuple[Holdup, ...]:
    """Returns who has a proxy that has not taken the roots of `bundle`, by name."""
    holdups = []
    for cluster, said in _of_the_mesh(bundle, members):
        if said is None:
            holdups.append(_never_heard(cluster))
        elif said.bundle != bundle_digest(bundle):
            reason = f"follows the trust bundle {said.sequence}, not {bundle.sequence}"
            holdups.append(Holdup(cluster, reason))
        elif said.trusting < said.proxies:
            reason = f"{_of(said.proxies - said.trusting, said.proxies)} not acknowledged the roots"
            holdups.append(Holdup(cluster, reason, said.waiting))
    return tuple(holdups)


def authority_holdups(bundle: TrustBundle, members: Statements, only: ClusterName | None = None) -> tuple[Holdup, ...]:
    """Returns who does not yet sign as `bundle` asks, or has a proxy with a certificate of an older authority.

    With `only`, asks that member alone.
    """
    holdups = []
    for cluster, said in _of_the_mesh(bundle, members):
        if only is not None and cluster != only:
            continue
        if said is None:
            holdups.append(_never_heard(cluster))
            continue
        if not signs_as_asked(bundle, cluster, said):
            active, wanted = said.active, bundle.generations.get(cluster, 1)
            is_asking = said.request is not None and said.request.generation >= wanted
            reason = f"has asked for generation {wanted} and waits for its grant" if is_asking else ""
            if not is_asking:
                has = f"generation {active.generation}" if active else "no authority"
                reason = f"signs with {has} and has not asked for generation {wanted} yet"
            holdups.append(Holdup(cluster, reason))
        elif said.renewed < said.proxies:
            reason = f"{_of(said.proxies - said.renewed, said.proxies)} no certificate of the new authority"
            holdups.append(Holdup(cluster, reason, said.waiting))
    return tuple(holdups)


def signs_as_asked(bundle: TrustBundle, cluster: ClusterName, said: TrustStatement | None) -> bool:
    """Says whether a member signs with an authority of the generation that is wanted, below the first root."""
    active, wanted = said.active if said else None, bundle.generations.get(cluster, 1)
    return active is not None and active.generation >= wanted and active.root == root_fingerprints(bundle)[0]


def due_requests(bundle: TrustBundle, members: Statements) -> tuple[JoinRequest, ...]:
    """Returns the requests of members that still sign with less than `bundle` asks of them, by name."""
    due = []
    for cluster, said in _of_the_mesh(bundle, members):
        if said is None or said.request is None or said.request.cluster.name != cluster:
            continue
        is_enough = said.request.generation >= bundle.generations.get(cluster, 1)
        if is_enough and not signs_as_asked(bundle, cluster, said):
            due.append(said.request)
    return tuple(due)


def newest_known(members: Statements) -> int:
    """Returns the highest number of a trust bundle that any member follows; 0 when none was heard.

    A root directory with less has been restored from an old backup, or somebody works with another copy of it.
    """
    return max((said.sequence for said in members.values() if said is not None), default=0)


def _of_the_mesh(bundle: TrustBundle, members: Statements) -> list[tuple[ClusterName, TrustStatement | None]]:
    gone = revoked_clusters(bundle.revoked)
    return [(cluster, members[cluster]) for cluster in sorted(members) if cluster not in gone]


def _never_heard(cluster: ClusterName) -> Holdup:
    return Holdup(cluster, "nothing was ever heard of its trust")


def _of(some: int, proxies: int) -> str:
    return f"{some} of {proxies} proxies {'has' if some == 1 else 'have'}"
