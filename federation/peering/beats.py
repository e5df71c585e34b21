"""When to tell a peer that we live: as often as it asks for, on each stream by its own clock."""

from envoy.config.core.v3.base_pb2 import Node

from federation.peering import exports
from federation.peering.exports import Beat
from federation.peering.freshness import BEAT_PERIOD
from federation.xds.resources import Resource
from trust.spiffe import ClusterName

PACE = "beat-period"
"""Key of the node's metadata under which a peer says how often it wants to hear a beat, in seconds."""
_LONGEST_PACE = 3600.0  # seconds


class Beats:
    """The beats of `cluster` on one stream, to whoever introduced itself as `node`. Times are those of a loop."""

    def __init__(self, cluster: ClusterName, node: Node, now: float) -> None:
        self._cluster = cluster
        self._pace = _pace(node)
        self._count = 0
        self._due_at = now
        self._last = self.latest(now)

    @property
    def due_at(self) -> float:
        """When the next one is due."""
        return self._due_at

    def latest(self, now: float) -> Resource:
        """Returns the latest: a new one when it is due."""
        if now >= self._due_at:
            self._count, self._due_at = self._count + 1, now + self._pace
            self._last = exports.beat_resource(Beat(self._cluster, self._count))
        return self._last


def _pace(node: Node) -> float:
    """Returns how many seconds are to be between two beats for a peer: as it asks for, within reason."""
    asked = node.metadata.fields[PACE].number_value if PACE in node.metadata.fields else 0.0
    shortest = BEAT_PERIOD.total_seconds()
    return min(asked, _LONGEST_PACE) if asked > shortest else shortest  # whatever a peer calls a number
