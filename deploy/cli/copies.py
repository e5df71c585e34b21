"""Whether a root directory is the newest copy of itself, by what the control planes that were reached follow. Pure.

A document with a root's signature proves that there is a newer copy. What some members say without one is their word:
who lies is named, so that it can be revoked.
"""

from collections.abc import Sequence
from datetime import datetime

from deploy.cli.survey import Survey
from deploy.failures import CommandFailed
from trust.bundle import BundleRefused, TrustBundle, check_bundle, revoked_clusters, root_certificates
from trust.certificates import CertificateRefused
from trust.rotation import Statements, newest_known

_WORK_WITH_THE_NEWEST = (
    "work with the newest copy of the root directory: this one was restored, or another one was used"
)


def check_newest(documents: Sequence[TrustBundle], survey: Survey, *, now: datetime, without: str = "") -> None:
    """Raises CommandFailed when somebody follows a newer document that a root of `documents` has signed, or all that
    were reached say that they follow a newer one, or are of another mesh. `without` names one who is not listened to.
    """
    newest = documents[-1]
    gone = {*revoked_clusters(newest.revoked), without}
    bundles = [bundle for name, bundle in survey.bundles.items() if name not in gone]
    others = {bundle.domain for bundle in bundles}
    if others and newest.domain not in others:
        message = f"this is the root of {newest.domain}, the control planes are of {', '.join(sorted(others))}"
        raise CommandFailed(message, "name the right root with --root, or the right control planes")
    ahead = [bundle for bundle in bundles if bundle.sequence > newest.sequence]
    # When all say it, nobody would take what this copy says next: nothing is lost by believing them.
    proven = ahead if len(ahead) == len(bundles) else [one for one in ahead if _is_signed(one, documents, now=now)]
    if proven:
        known = max(bundle.sequence for bundle in proven)
        raise CommandFailed(_follows("the mesh follows", known, newest), _WORK_WITH_THE_NEWEST)


def check_claims(newest: TrustBundle, members: Statements) -> None:
    """Raises CommandFailed, which names them, when members say that they follow a newer document than `newest`.

    A member that is revoked may say what it likes.
    """
    gone = revoked_clusters(newest.revoked)
    said = {name: one for name, one in members.items() if name not in gone}
    known = newest_known(said)
    if known > newest.sequence:
        who = [name for name, one in said.items() if one is not None and one.sequence > newest.sequence]
        names = ", ".join(who)
        lie = f"if it is the newest, {names} lie{'s' if len(who) == 1 else ''}: isthmus revoke CLUSTER --root DIR"
        raise CommandFailed(_follows(f"{names} says: it follows", known, newest), f"{_WORK_WITH_THE_NEWEST}; {lie}")


def _follows(who: str, known: int, newest: TrustBundle) -> str:
    return f"{who} the trust bundle {known}, this root directory knows {newest.sequence} at most"


def _is_signed(bundle: TrustBundle, documents: Sequence[TrustBundle], *, now: datetime) -> bool:
    trusted = [root for document in documents for root in root_certificates(document)]
    try:
        check_bundle(bundle, trusted, domain=documents[-1].domain, now=now)
    except (BundleRefused, CertificateRefused):
        return False
    return True
