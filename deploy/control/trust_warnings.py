"""What will break of a cluster's trust, and when, unless somebody does something about it. Pure.

A warning names a moment, not a time left, so that it changes only when there is something new to say.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec
from cryptography import x509

from trust.bundle import TrustBundle, root_certificates, root_fingerprints
from trust.statements import TrustStatement

ROOT_NOTICE = timedelta(days=180)
"""A rotation of the root takes every member and the key from its safe."""
INTERMEDIATE_NOTICE = timedelta(days=30)
_PART_OF_LIFE = 0.1
"""Of a root or an intermediate that lives shortly: warned of no sooner than in this last part of its life."""
_PART_OF_LEAF = 0.25
"""A leaf is renewed at half of its life: one that has less than this left was not."""
_LONGEST_ROTATION = timedelta(days=1)
_NAMED = 3  # proxies in one warning


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What a control plane knows of its certificates. `proxies` are the ends of the leaves of connected proxies, by
    node; `documents` are the trust bundles that changed the roots, and the newest."""

    documents: Sequence[TrustBundle]
    authority: x509.Certificate
    statement: TrustStatement
    leaf_lifetime: timedelta
    own_leaf: datetime
    proxies: Mapping[str, datetime]
    peers: Sequence[TrustStatement] = ()

    @property
    def bundle(self) -> TrustBundle:
        """The trust bundle in force."""
        return max(self.documents, key=lambda one: one.sequence)


def trust_warnings(standing: Standing, now: datetime) -> tuple[str, ...]:
    """Returns what is to be warned of, the worst first."""
    return (
        *_of_revocation(standing),
        *_of_roots(standing.bundle, now),
        *_of_authority(standing, now),
        *_of_leaves(standing, now),
        *_of_rotations(standing, now),
        *_of_peers(standing),
    )


def certificates_left(standing: Standing, now: datetime) -> Mapping[str, float]:
    """Returns the seconds that the first certificate of each kind has left: "leaf", "intermediate", "root"."""
    ends = {
        "leaf": min([standing.own_leaf, *standing.proxies.values()]),
        "intermediate": standing.authority.not_valid_after_utc,
        "root": min(root.not_valid_after_utc for root in root_certificates(standing.bundle)),
    }
    return {kind: (end - now).total_seconds() for kind, end in ends.items()}


def _of_revocation(standing: Standing) -> Iterable[str]:
    own = standing.statement.cluster
    for one in standing.bundle.revoked:
        if not one.account and one.cluster == own:
            because = f" ({one.reason})" if one.reason else ""
            yield f"the root has revoked this cluster{because}: no other member believes it; only the root can undo it"


def _of_roots(bundle: TrustBundle, now: datetime) -> Iterable[str]:
    for root, fingerprint in zip(root_certificates(bundle), root_fingerprints(bundle), strict=True):
        if (ends := _ends_soon(root, ROOT_NOTICE, now)) is not None:
            yield f"the root {fingerprint[:12]} {ends}: rotate it with `isthmus trust rotate root --root DIR`"


def _of_authority(standing: Standing, now: datetime) -> Iterable[str]:
    own, active = standing.statement.cluster, standing.statement.active
    if (ends := _ends_soon(standing.authority, INTERMEDIATE_NOTICE, now)) is not None:
        what = f"the authority of {own}" + (f" (generation {active.generation})" if active else "")
        yield f"{what} {ends}: renew it with `isthmus trust rotate intermediate {own} --root DIR`"
    first, *others = root_fingerprints(standing.bundle)
    if active is not None and active.root in others:
        yield (
            f"the authority of {own} stands below the root {active.root[:12]}, which signs no longer: "
            "go on with `isthmus trust rotate root --root DIR`"
        )
    elif active is not None and active.root != first:
        yield (
            f"the authority of {own} stands below the root {active.root[:12]}, which nobody believes any more: "
            f"have it made anew with `isthmus trust rotate intermediate {own} --root DIR`"
        )


def _of_leaves(standing: Standing, now: datetime) -> Iterable[str]:
    least = standing.leaf_lifetime * _PART_OF_LEAF
    if standing.own_leaf - now < least:
        yield f"the control plane's own certificate {_ends(standing.own_leaf, now)} and is not renewed: see its log"
    late = sorted(node for node, end in standing.proxies.items() if end - now < least)
    if late:
        first = min(standing.proxies[node] for node in late)
        named = ", ".join(late[:_NAMED]) + (f" and {len(late) - _NAMED} more" if len(late) > _NAMED else "")
        yield f"the certificates of proxies are not renewed, the first {_ends(first, now)}: {named}"


def _of_rotations(standing: Standing, now: datetime) -> Iterable[str]:
    own, pending = standing.statement.cluster, standing.statement.request
    since = _rotating_since(standing.documents)
    if since is not None and now - since > _LONGEST_ROTATION:
        yield (
            f"the root is being rotated since {_moment(since)}: "
            "`isthmus trust rotate root --root DIR` says who holds it up, and goes on"
        )
    if pending is not None and now - pending.created > _LONGEST_ROTATION:
        yield (
            f"{own} asks for a new authority since {_moment(pending.created)}: "
            f"grant it with `isthmus trust rotate intermediate {own} --root DIR`"
        )
    is_old = now - standing.authority.not_valid_before_utc > _LONGEST_ROTATION
    if is_old and len(standing.statement.authorities) > 1:
        waiting = ", ".join(one.node for one in standing.statement.waiting[:_NAMED]) or "see `isthmus trust status`"
        yield f"an older authority of {own} is still kept, since proxies hold its certificates: {waiting}"


def _of_peers(standing: Standing) -> Iterable[str]:
    own = standing.bundle.sequence
    ahead = max(standing.peers, key=lambda one: one.sequence, default=None)
    if ahead is not None and ahead.sequence > own:
        yield (
            f"this cluster follows the trust bundle {own}, {ahead.cluster} follows {ahead.sequence}: "
            "if it stays so, hand over the documents with `isthmus trust status --root DIR --deliver`"
        )


def _rotating_since(documents: Sequence[TrustBundle]) -> datetime | None:
    """Returns when the root rotation that is under way was announced; None when there is none."""
    since = None
    for document in sorted(documents, key=lambda one: one.sequence, reverse=True):
        if len(document.roots) == 1:
            break
        since = document.issued
    return since


def _ends_soon(certificate: x509.Certificate, notice: timedelta, now: datetime) -> str | None:
    end = certificate.not_valid_after_utc
    life = end - certificate.not_valid_before_utc
    return _ends(end, now) if end - now < min(notice, life * _PART_OF_LIFE) else None


def _ends(end: datetime, now: datetime) -> str:
    return f"{'expired' if end <= now else 'expires'} at {_moment(end)}"


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
