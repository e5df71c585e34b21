"""How the trust of a mesh is shown to people: its status, a rotation and a revocation as they go on, and their ends."""

from collections.abc import Sequence
from datetime import datetime

from rich.console import RenderableType

from deploy.cli.output import ago, table
from deploy.cli.survey import Silent
from deploy.cli.trust_status import AuthoritySlot, MemberStanding, MeshTrust
from federation.model import Liveness
from trust.rotation import Holdup

_KEY = 8  # hex digits of a fingerprint that people see: enough to tell keys apart, and the tables fit 80 columns


def render_status(found: MeshTrust, now: datetime) -> list[RenderableType]:
    """Returns the tables that people see."""
    roots = [
        (
            one.slot,
            one.fingerprint[:_KEY],
            f"{one.not_after:%Y-%m-%d}",
            _left(one.days_left),
            f"{len(one.trusted_by)} of {len(one.trusted_by) + len(one.not_trusted_by)}",
            ", ".join(one.not_trusted_by) or "-",
        )
        for one in found.roots
    ]
    proxies = {member.cluster: member for member in found.members}
    authorities = [
        (
            one.cluster,
            str(one.generation),
            one.slot,
            one.fingerprint[:_KEY],
            f"{one.root} {one.root_fingerprint[:_KEY]}",
            f"{one.not_after:%Y-%m-%d}",
            _left(one.days_left),
            f"{proxies[one.cluster].renewed}/{proxies[one.cluster].proxies}"
            if one.slot is AuthoritySlot.ACTIVE
            else "-",
        )
        for one in found.authorities
    ]
    members = [
        (
            one.cluster,
            str(one.sequence or "-"),
            f"{one.trusting}/{one.proxies}",
            f"{one.enforcing}/{one.proxies}",
            f"generation {one.asks}" if one.asks else "-",
            _state(one, now),
        )
        for one in found.members
    ]
    issued = f"{found.issued:%Y-%m-%d %H:%M:%S} UTC"
    shown: list[RenderableType] = [
        f"Trust bundle {found.sequence} of {found.domain}, of {issued}; rotation of the root: {found.stage}.",
        "",
        table(["ROOT", "KEY", "EXPIRES", "LEFT", "TRUSTED BY", "NOT BY"], roots),
        "",
        table(["CLUSTER", "GEN", "SLOT", "KEY", "BELOW ROOT", "EXPIRES", "LEFT", "RENEWED"], authorities),
        "",
        table(["MEMBER", "BUNDLE", "TRUSTING", "ENFORCING", "ASKS FOR", "STATE"], members),
    ]
    if found.holdups:
        shown += ["", holdups_table(found.holdups)]
    if found.revoked:
        revoked = [
            (
                one.subject,
                "root" if one.by_root else "members",
                "-" if one.at is None else f"{one.at:%Y-%m-%d %H:%M:%S}",
                ", ".join(one.in_force) or "-",
                ", ".join(one.not_in_force) or "-",
                one.reason or "-",
            )
            for one in found.revoked
        ]
        shown += ["", table(["REVOKED", "BY", "SINCE", "IN FORCE IN", "NOT IN", "REASON"], revoked)]
    if found.silent:
        shown += ["", silent_table(found.silent)]
    shown += ["", *(f"warning: {warning}" for warning in found.warnings)] if found.warnings else []
    return shown


def holdups_table(holdups: Sequence[Holdup]) -> RenderableType:
    """Makes the table of who holds a stage up: the members, and below each its proxies."""
    rows: list[tuple[str, str, str]] = []
    for one in holdups:
        rows.append((one.cluster, "-", one.reason))
        rows += [("", proxy.node, proxy.reason) for proxy in one.proxies]
    return table(["WAITS FOR", "PROXY", "WHY"], rows)


def silent_table(silent: Sequence[Silent]) -> RenderableType:
    """Makes the table of control planes that did not answer."""
    return table(["CONTROL PLANE", "NOT REACHED BECAUSE"], [(one.cluster or "-", one.reason) for one in silent])


def _state(member: MemberStanding, now: datetime) -> str:
    """Says how a member is; how old its word is counts only when it may have changed unheard."""
    revoked = "revoked, " if member.is_revoked else ""
    if member.said is None:
        return f"{revoked}never heard"
    if member.state is Liveness.LIVE:
        return f"{revoked}{member.state}"
    return f"{revoked}{Liveness.STALE}, said this {ago(member.said, now)} ago"


def _left(days: float) -> str:
    if days <= 0:
        return "expired"
    return f"{days:.0f} days" if days >= 2 else f"{days * 24:.0f} h"
