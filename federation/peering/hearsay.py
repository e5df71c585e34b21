"""Whom this cluster tells of which members, so that a newcomer costs each old member the same in a large mesh. Pure.

    a newcomer introduces itself, on its own streams, to all whom it was told of: as a rule that is enough
    whoever opens a stream is told of all members that it does not know
    on a stream that is open, a member is told of by its tellers to all, and by all to its tellers

Were all to repeat each newcomer to all, N members would say N x N times what each hears from the newcomer itself. The
tellers are three: that one newcomer can reach, or be reached by, only some members must not keep it from the others.
Every member draws the same ones, by a hash of the names; where pictures differ for a moment, one more or less tells.
"""

from collections.abc import Iterable, Mapping
from hashlib import blake2b

from federation.snapshot import differing
from federation.xds.resources import Resource
from trust.spiffe import ClusterName

TELLERS = 3
"""Of each member: two may fail, or be cut off from it, and it is told of all the same."""


class Tellers:
    """Who tells of whom, while `candidates` (the members that live, this cluster among them) are the same."""

    def __init__(self, candidates: Iterable[ClusterName] = ()) -> None:
        self._candidates = frozenset(candidates)
        self._drawn: dict[str, frozenset[ClusterName]] = {}

    def of(self, member: str) -> frozenset[ClusterName]:
        """Returns the tellers of a member."""
        if member not in self._drawn:
            ranked = sorted(self._candidates - {member}, key=lambda candidate: _rank(member, candidate))
            self._drawn[member] = frozenset(ranked[:TELLERS])
        return self._drawn[member]

    def are_to_tell(self, member: str, *, own: ClusterName, peer: ClusterName) -> bool:
        """Says whether `own` tells `peer` of news of a member, on a stream that is open."""
        return member == own or not self.of(member).isdisjoint((own, peer))


class Told:
    """What `own` tells `peer` of members, on one stream."""

    def __init__(self, own: ClusterName, peer: ClusterName) -> None:
        self._own = own
        self._peer = peer
        self._known: Mapping[str, Resource] | None = None
        self._told: Mapping[str, Resource] = {}

    def of(self, known: Mapping[str, Resource], tellers: Tellers) -> Mapping[str, Resource]:
        """Returns what the peer should have of the records that are known now: the same mapping while that is the same.

        What was not told when it came is not told later on this stream: the peer's next one begins with all.
        """
        if known is self._known:
            return self._told
        before, self._known = self._known, known
        if before is None:
            self._told = known
            return known
        told = dict(self._told)
        for name in differing(before, known):
            if name not in known:
                told.pop(name, None)
            elif tellers.are_to_tell(name, own=self._own, peer=self._peer):
                told[name] = known[name]
        if told != self._told:
            self._told = told
        return self._told


def _rank(member: str, candidate: ClusterName) -> bytes:
    return blake2b(f"{member}/{candidate}".encode(), digest_size=16).digest()
