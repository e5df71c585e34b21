"""Which members get to know an export: `export_to` names them, or a label that they have. Pure.

A member's name is certified by the root; its labels are its own word, believed only when it said them itself. So who
must not know of a service for certain is kept out by names.
"""

from collections.abc import Collection, Mapping

from federation.model import ClusterSettings, MemberCluster, MemberSelector, ServiceExport, ServiceKey
from federation.snapshot import Snapshot
from federation.xds.resources import Resource
from trust.spiffe import ClusterName

REGION_LABEL = "topology.kubernetes.io/region"
NETWORK_LABEL = "isthmus.dev/network"
CLOUD_LABEL = "isthmus.dev/cloud"
CLUSTER_LABEL = "isthmus.dev/cluster"


def labels_of(member: MemberCluster) -> Mapping[str, str]:
    """Returns the labels of a member: its own, and those that follow from what it is, which it cannot give itself.

    Of a member that we know by hearsay only, that is its name alone.
    """
    if member.introduced_by:
        return {CLUSTER_LABEL: member.name}
    return {
        **dict(member.labels),
        REGION_LABEL: member.region,
        NETWORK_LABEL: member.network,
        CLOUD_LABEL: member.cloud,
        CLUSTER_LABEL: member.name,
    }


def may_see(export: ServiceExport, member: MemberCluster) -> bool:
    """Says whether a member may get to know an export of another: one of the selectors names it, or there is none."""
    return not export.export_to or _selects(export.export_to, member)


def seen_by(snapshot: Snapshot, settings: ClusterSettings, key: ServiceKey) -> frozenset[ClusterName] | None:
    """Returns the other members that may get to know a service of this cluster; None when all may.

    Nobody may when it is not exported.
    """
    export = snapshot.exports.get(key)
    if export is None:
        return frozenset()
    return _chosen(snapshot, settings, export.export_to) if export.export_to else None


def audiences(snapshot: Snapshot, settings: ClusterSettings) -> Mapping[ServiceKey, frozenset[ClusterName]]:
    """Returns `seen_by` of those exports that are not for all."""
    kinds = {export.export_to for export in snapshot.exports.values() if export.export_to}
    chosen = {kind: _chosen(snapshot, settings, kind) for kind in kinds}
    return {key: chosen[export.export_to] for key, export in snapshot.exports.items() if export.export_to}


class Shares:
    """What is offered, as each member may see it. Members that may see the same share one mapping."""

    def __init__(self, offers: Mapping[str, Resource], restricted: Mapping[str, tuple[MemberSelector, ...]]) -> None:
        """`restricted` are the selectors of those offers, by name, that are not for all."""
        self._offers = offers
        self.restricted = restricted
        self._kinds = frozenset(restricted.values())
        self._made: dict[frozenset[tuple[MemberSelector, ...]], Mapping[str, Resource]] = {self._kinds: offers}

    def of(self, member: MemberCluster) -> Mapping[str, Resource]:
        """Returns what one member may see: the very same mapping as long as nothing changed for it."""
        permitted = frozenset(kind for kind in self._kinds if _selects(kind, member))
        if permitted not in self._made:
            self._made[permitted] = {
                name: offer
                for name, offer in self._offers.items()
                if name not in self.restricted or self.restricted[name] in permitted
            }
        return self._made[permitted]


def _selects(selectors: Collection[MemberSelector], member: MemberCluster) -> bool:
    labels = labels_of(member)
    return any(
        selector.name == member.name
        if selector.name
        else bool(selector.label) and labels.get(selector.label) == selector.value
        for selector in selectors
    )


def _chosen(
    snapshot: Snapshot, settings: ClusterSettings, selectors: Collection[MemberSelector]
) -> frozenset[ClusterName]:
    return frozenset(
        name for name, member in snapshot.members.items() if name != settings.name and _selects(selectors, member)
    )
