"""What members of a mesh say of their trust, made up: for tests of those who read it."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from deploy.cli.survey import Seen, Survey
from trust.bundle import TrustBundle, bundle_digest, make_bundle, make_revocation, root_fingerprints
from trust.certificates import make_root, new_key
from trust.joining import JoinRequest
from trust.spiffe import ClusterName, MeshDomain
from trust.statements import AuthorityState, TrustStatement, Waiting

NOW = datetime(2026, 11, 22, tzinfo=UTC)
DOMAIN = MeshDomain("mesh.test")
EAST, SOUTH, WEST = (ClusterName(name) for name in ("east", "south", "west"))
YEAR = timedelta(days=365)

_KEYS = (new_key(), new_key())
ROOTS = tuple(
    make_root(key, DOMAIN, now=NOW + timedelta(days=number), lifetime=10 * YEAR) for number, key in enumerate(_KEYS)
)
"""The old one and the new one."""


def document(
    sequence: int, *roots: int, issued: datetime = NOW, generation: int = 1, revoked: Sequence[str] = ()
) -> TrustBundle:
    """Makes a trust bundle with some of ROOTS, by their places."""
    return make_bundle(
        _KEYS[0],
        domain=DOMAIN,
        sequence=sequence,
        roots=[ROOTS[number] for number in roots],
        generations=dict.fromkeys((EAST, WEST), generation),
        revoked=[make_revocation(one, at=NOW, reason="stolen") for one in revoked],
        now=issued,
    )


IDLE = document(1, 0)
ANNOUNCED = document(2, 0, 1)
SIGNING = document(3, 1, 0, generation=2)
RETIRING = document(4, 1, generation=2)


def authority(
    generation: int = 1, *, root: int = 0, ends: datetime = NOW + YEAR, is_active: bool = True
) -> AuthorityState:
    """Says that there is an authority below one of ROOTS."""
    above = root_fingerprints(ANNOUNCED)[root]
    return AuthorityState(
        generation=generation, fingerprint=f"{generation:064x}", root=above, not_after=ends, is_active=is_active
    )


def statement(
    cluster: ClusterName,
    follows: TrustBundle,
    *authorities: AuthorityState,
    proxies: int = 4,
    trusting: int | None = None,
    renewed: int | None = None,
    enforcing: int | None = None,
    revoked: Iterable[str] = (),
    enforced_since: datetime | None = None,
    waiting: tuple[Waiting, ...] = (),
    asks: JoinRequest | None = None,
    at: datetime = NOW,
) -> TrustStatement:
    """Says that all is well with a member, but for what is given."""
    return TrustStatement(
        cluster=cluster,
        sequence=follows.sequence,
        bundle=bundle_digest(follows),
        authorities=authorities or (authority(),),
        proxies=proxies,
        trusting=proxies if trusting is None else trusting,
        renewed=proxies if renewed is None else renewed,
        enforcing=proxies if enforcing is None else enforcing,
        revoked=tuple(revoked),
        enforced_since=enforced_since,
        waiting=waiting,
        request=asks,
        at=at,
    )


def survey(bundle: TrustBundle, *statements: TrustStatement, reached: Iterable[ClusterName] = (EAST,)) -> Survey:
    """Puts together what was heard; those `reached` were asked themselves, the others a minute ago."""
    asked = tuple(reached)
    return Survey(
        bundle=bundle,
        members={
            one.cluster: Seen(
                statement=one,
                heard=None if one.cluster in asked else NOW - timedelta(minutes=1),
                via="" if one.cluster in asked else "east",
            )
            for one in statements
        },
        reached=asked,
    )
