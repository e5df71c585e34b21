"""`isthmus trust status`: every CA of the mesh, who trusts what, how far a rotation is, and what needs somebody. Pure.

Made from what one control plane knows of all members, and from the root directory where that is at hand.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import combinations

import msgspec

from deploy.cli.output import ago
from deploy.cli.survey import Silent, Survey
from federation.model import Liveness
from trust.bundle import Revocation, TrustBundle, bundle_digest, revoked_clusters, root_certificates, root_fingerprints
from trust.certificates import describe
from trust.rotation import Holdup, RootStage, Statements, authority_holdups, trust_holdups
from trust.spiffe import ClusterName
from trust.statements import AuthorityState, TrustStatement, Waiting

STANDS_STILL = timedelta(minutes=10)
"""A rotation that waits for longer needs somebody: the command that drives it gives up a stage by then."""

_DAY = 86_400  # seconds


class RootSlot(StrEnum):
    """What a root that is trusted is for."""

    SIGNING = "signing"
    NEXT = "next"
    RETIRING = "retiring"


class AuthoritySlot(StrEnum):
    """What an authority of a member is for."""

    ACTIVE = "active"
    OLD = "old"


class RootStanding(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A root. `fingerprint` is the hex SHA-256 of its key.

    A member trusts it as a whole: how many of its proxies do stands with the member.
    """

    slot: RootSlot
    fingerprint: str
    not_after: datetime
    days_left: float
    trusted_by: tuple[ClusterName, ...]
    not_trusted_by: tuple[ClusterName, ...]


class AuthorityStanding(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An authority of a member. `fingerprint` is the hex SHA-256 of its key.

    `root` is the slot of the root above it, and `root_fingerprint` that one's key: "retired" when the mesh trusts it no
    longer, "newer" when the member follows a document that is not known here.
    """

    cluster: ClusterName
    generation: int
    slot: AuthoritySlot
    fingerprint: str
    root: str
    root_fingerprint: str
    not_after: datetime
    days_left: float


class MemberStanding(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a member said of its proxies. `state` is whether it is heard now, as the control plane that was asked knows.

    `said` is when it said this last, None when it never did: a member that is live says nothing while nothing changes.
    `asks` is the generation that it waits to be granted, or 0.
    """

    cluster: ClusterName
    sequence: int = 0
    proxies: int = 0
    trusting: int = 0
    renewed: int = 0
    enforcing: int = 0
    state: Liveness = Liveness.UNKNOWN
    said: datetime | None = None
    asks: int = 0
    is_revoked: bool = False
    waiting: tuple[Waiting, ...] = ()


class RevokedStanding(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Somebody who is revoked: by the root, then `at` says when, or by members alone; and where it is in force."""

    subject: str
    by_root: bool
    at: datetime | None
    reason: str
    in_force: tuple[ClusterName, ...]
    not_in_force: tuple[ClusterName, ...]


class MeshTrust(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The trust of a whole mesh. `holdups` say whom the rotation that is under way waits for.

    `warnings` need somebody: the command fails when there are any.
    """

    domain: str
    sequence: int
    issued: datetime
    stage: RootStage
    holdups: tuple[Holdup, ...]
    roots: tuple[RootStanding, ...]
    authorities: tuple[AuthorityStanding, ...]
    members: tuple[MemberStanding, ...]
    revoked: tuple[RevokedStanding, ...]
    warnings: tuple[str, ...]
    asked: tuple[ClusterName, ...]
    silent: tuple[Silent, ...]


def standing_of(
    survey: Survey,
    bundle: TrustBundle,
    *,
    now: datetime,
    warn_before: timedelta,
    documents: Collection[TrustBundle] = (),
    stage: RootStage | None = None,
    members: Collection[ClusterName] = (),
) -> MeshTrust:
    """Sums a mesh up. `documents`, `stage` and `members` are those of the root directory, where it is at hand."""
    names = sorted({*members, *survey.members, *survey.known})
    said = survey.statements(names)
    slots = _slots(bundle, stage)
    held = {one.cluster: one for one in authority_holdups(bundle, said)}
    held |= {one.cluster: one for one in trust_holdups(bundle, said)}
    stage = _stage(bundle, stage, is_settled=not held)
    holdups = tuple(held[name] for name in sorted(held))
    return MeshTrust(
        domain=bundle.domain,
        sequence=bundle.sequence,
        issued=bundle.issued,
        stage=stage,
        holdups=holdups,
        roots=_roots(bundle, slots, said=said, documents=[*documents, bundle], now=now),
        authorities=_authorities(bundle, slots, said=said, now=now),
        members=tuple(_member(name, survey, bundle) for name in names),
        revoked=_revoked(bundle, said),
        warnings=(
            *survey.warnings,
            *_warnings(
                bundle,
                stage,
                slots=slots,
                said=said,
                holdups=holdups,
                survey=survey,
                now=now,
                warn_before=warn_before,
            ),
        ),
        asked=survey.reached,
        silent=survey.silent,
    )


def _slots(bundle: TrustBundle, stage: RootStage | None) -> tuple[RootSlot, ...]:
    """Returns what each root of the bundle is for. Without the root directory, the younger one is the next."""
    if len(bundle.roots) == 1:
        return (RootSlot.SIGNING,)
    first, second = root_certificates(bundle)
    is_announced = first.not_valid_before_utc <= second.not_valid_before_utc
    if stage is not None:
        is_announced = stage is RootStage.ANNOUNCED
    return (RootSlot.SIGNING, RootSlot.NEXT if is_announced else RootSlot.RETIRING)


def _stage(bundle: TrustBundle, stage: RootStage | None, *, is_settled: bool) -> RootStage:
    if stage is not None:
        return stage
    match _slots(bundle, None):
        case (_, RootSlot.NEXT):
            return RootStage.ANNOUNCED
        case (_, _):
            return RootStage.SIGNING
        case _:
            # Whether the key of the old root is destroyed, only the root directory knows.
            return RootStage.IDLE if is_settled or bundle.sequence == 1 else RootStage.RETIRING


def _roots(
    bundle: TrustBundle,
    slots: Sequence[RootSlot],
    *,
    said: Statements,
    documents: Collection[TrustBundle],
    now: datetime,
) -> tuple[RootStanding, ...]:
    trusted = _trusted_pems(documents)
    gone = revoked_clusters(bundle.revoked)
    standings = []
    for slot, pem, certificate, key in zip(
        slots, bundle.roots, root_certificates(bundle), root_fingerprints(bundle), strict=True
    ):
        by: list[ClusterName] = []
        not_by: list[ClusterName] = []
        for name, one in said.items():
            if name in gone:
                continue
            # A member whose documents we do not know trusts at least the root above its own authority.
            is_trusted = one is not None and (
                pem in trusted.get(one.bundle, frozenset()) or (one.active is not None and one.active.root == key)
            )
            (by if is_trusted else not_by).append(name)
        summary = describe(certificate)
        standings.append(
            RootStanding(
                slot=slot,
                fingerprint=key,
                not_after=summary.not_after,
                days_left=_days(summary.not_after, now),
                trusted_by=tuple(by),
                not_trusted_by=tuple(not_by),
            )
        )
    return tuple(standings)


def _trusted_pems(documents: Collection[TrustBundle]) -> Mapping[str, frozenset[str]]:
    """Returns which roots (PEM) a member trusts, by the digest that it says of them."""
    trusted: dict[str, frozenset[str]] = {}
    for bundle in documents:
        for some in [*combinations(bundle.roots, 1), bundle.roots]:
            trusted[bundle_digest(msgspec.structs.replace(bundle, roots=tuple(some)))] = frozenset(some)
    return trusted


def _authorities(
    bundle: TrustBundle, slots: Sequence[RootSlot], *, said: Statements, now: datetime
) -> tuple[AuthorityStanding, ...]:
    above = dict(zip(root_fingerprints(bundle), slots, strict=True))
    return tuple(
        AuthorityStanding(
            cluster=name,
            generation=one.generation,
            slot=AuthoritySlot.ACTIVE if one.is_active else AuthoritySlot.OLD,
            fingerprint=one.fingerprint,
            # A member signs below what it follows: a root that is not in the newest document has been in an older one.
            root=above.get(one.root, "newer" if statement and statement.sequence > bundle.sequence else "retired"),
            root_fingerprint=one.root,
            not_after=one.not_after,
            days_left=_days(one.not_after, now),
        )
        for name, statement in said.items()
        for one in sorted(statement.authorities if statement else (), key=_newest_first)
    )


def _newest_first(one: AuthorityState) -> tuple[bool, int]:
    return not one.is_active, -one.generation


def _member(name: ClusterName, survey: Survey, bundle: TrustBundle) -> MemberStanding:
    is_revoked = name in revoked_clusters(bundle.revoked)
    state = Liveness.LIVE if name in survey.reached else survey.states.get(name, Liveness.UNKNOWN)
    seen = survey.members.get(name)
    if seen is None:
        return MemberStanding(cluster=name, state=state, is_revoked=is_revoked)
    said = seen.statement
    return MemberStanding(
        cluster=name,
        sequence=said.sequence,
        proxies=said.proxies,
        trusting=said.trusting,
        renewed=said.renewed,
        enforcing=said.enforcing,
        state=state,
        said=seen.heard or said.at,
        asks=said.request.generation if said.request else 0,
        is_revoked=is_revoked,
        waiting=said.waiting,
    )


def _revoked(bundle: TrustBundle, said: Statements) -> tuple[RevokedStanding, ...]:
    by_root: dict[str, Revocation] = {one.subject: one for one in bundle.revoked}
    subjects = {*by_root, *(subject for one in said.values() if one is not None for subject in one.revoked)}
    standings = []
    for subject in sorted(subjects):
        revocation = by_root.get(subject)
        others = {name: one for name, one in said.items() if name != subject}  # no cluster denies itself
        standings.append(
            RevokedStanding(
                subject=subject,
                by_root=revocation is not None,
                at=revocation.at if revocation else None,
                reason=revocation.reason if revocation else "",
                in_force=tuple(name for name, one in others.items() if _enforces(one, subject)),
                not_in_force=tuple(name for name, one in others.items() if not _enforces(one, subject)),
            )
        )
    return tuple(standings)


def _enforces(said: TrustStatement | None, subject: str) -> bool:
    return said is not None and subject in said.revoked and said.enforcing >= said.proxies


def _warnings(
    bundle: TrustBundle,
    stage: RootStage,
    *,
    slots: Sequence[RootSlot],
    said: Statements,
    holdups: Sequence[Holdup],
    survey: Survey,
    now: datetime,
    warn_before: timedelta,
) -> tuple[str, ...]:
    """Returns what needs somebody, and what to do. What a control plane warns of already is not said again."""
    warnings = []
    gone = revoked_clusters(bundle.revoked)
    rotate_root = "isthmus trust rotate root --root DIR"
    for slot, certificate in zip(slots, root_certificates(bundle), strict=True):
        end = certificate.not_valid_after_utc
        if slot is not RootSlot.RETIRING and end - now <= warn_before and not _is_said("the root", end, survey):
            warnings.append(f"the {slot} root {_ends(end, now)}: {rotate_root}")
    for name, one in said.items():
        active = one.active if one else None
        if active is None or name in gone or active.not_after - now > warn_before:
            continue
        if not _is_said(f"the authority of {name}", active.not_after, survey):
            rotate = f"isthmus trust rotate intermediate {name} --root DIR"
            warnings.append(f"the authority of {name} {_ends(active.not_after, now)}: {rotate}")
    since = now - bundle.issued
    if stage is not RootStage.IDLE and since > STANDS_STILL:
        by = f"held up by {', '.join(one.cluster for one in holdups)}" if holdups else "nobody holds it up"
        warnings.append(f"the rotation of the root is {stage} since {ago(bundle.issued, now)}, {by}: {rotate_root}")
    for name, one in said.items():
        if one is None or one.request is None or name in gone or now - one.request.created <= STANDS_STILL:
            continue
        rotate = f"isthmus trust rotate intermediate {name} --root DIR"
        warnings.append(f"{name} waits for its new authority since {ago(one.request.created, now)}: {rotate}")
    if since > STANDS_STILL:
        behind = [name for name, one in said.items() if one and name not in gone and one.sequence < bundle.sequence]
        for name in behind:
            hand = "isthmus trust status --root DIR --deliver, where its control plane is reached"
            warnings.append(f"{name} has missed news of the root for {ago(bundle.issued, now)}: {hand}")
    return tuple(warnings)


def _is_said(what: str, end: datetime, survey: Survey) -> bool:
    return any(what in warning and f"{end:%Y-%m-%d %H:%M}" in warning for warning in survey.warnings)


def _ends(end: datetime, now: datetime) -> str:
    verb = "expired" if end <= now else "expires"
    return f"{verb} on {end:%Y-%m-%d %H:%M} UTC"


def _days(end: datetime, now: datetime) -> float:
    return round((end - now).total_seconds() / _DAY, 1)
