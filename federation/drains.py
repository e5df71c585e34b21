"""What is left of a member's calls while it is drained, as this cluster sees it. Pure.

A drain is asked of the drained member, which tells everybody in its record, or of another member, for that one alone:
the control plane of what is drained may be dead. The strictest one holds. In the drained cluster itself a drain counts
only with `clients`, and never for local names: nobody else offers those.
"""

from collections.abc import Iterator, Mapping

from federation.conflicts import port_groups
from federation.model import ClusterSettings, Drain, ServiceKey, ServicePolicy
from federation.offers import Offers
from federation.placement import Fate, fates
from federation.snapshot import Snapshot
from trust.spiffe import ClusterName

UNDRAINED = 100
"""The weight, in percent, of a member that is not drained."""


class Drains:
    """The drains of one picture, made ready to be asked about every service of every member."""

    def __init__(self, snapshot: Snapshot, settings: ClusterSettings) -> None:
        in_force: dict[tuple[ClusterName, ServiceKey | None], Drain] = {}
        for drain in _in_force(snapshot, settings):
            where = (drain.cluster, drain.service)
            known = in_force.get(where)
            in_force[where] = drain if known is None else min(drain, known, key=_strictness)
        self.in_force: Mapping[tuple[ClusterName, ServiceKey | None], Drain] = in_force
        """The strictest drain of each member, and of each service of one."""
        self.members = frozenset(cluster for cluster, _ in in_force)
        """The members that are drained, wholly or of a service."""

    def of_member(self, member: ClusterName) -> frozenset[Drain]:
        """Returns the drains of a member and of its services: all that the weights of its services follow from."""
        if member not in self.members:
            return frozenset()
        return frozenset(drain for (cluster, _), drain in self.in_force.items() if cluster == member)

    def drain_of(self, member: ClusterName, key: ServiceKey) -> Drain | None:
        """Returns the strictest drain of a member's service; None when there is none."""
        if member not in self.members:
            return None
        both = (self.in_force.get((member, None)), self.in_force.get((member, key)))
        return min((drain for drain in both if drain is not None), key=_strictness, default=None)

    def weight(self, member: ClusterName, key: ServiceKey) -> int:
        """Returns how much a member gets of the calls to a service that it would get: 0 to 100 percent."""
        drain = self.drain_of(member, key)
        return UNDRAINED if drain is None else drain.weight

    def weights(self, key: ServiceKey) -> Mapping[ClusterName, int]:
        """Returns the weights of the members that are drained of a service, wholly or in part."""
        found = {member: self.weight(member, key) for member in self.members}
        return {member: weight for member, weight in found.items() if weight < UNDRAINED}


def effective_weight(snapshot: Snapshot, settings: ClusterSettings, member: ClusterName, key: ServiceKey) -> int:
    """Returns how much `member` gets of the calls to a service that it would get: 0 to 100 percent; 100: no drain."""
    return Drains(snapshot, settings).weight(member, key)


def drain_of(snapshot: Snapshot, settings: ClusterSettings, member: ClusterName, key: ServiceKey) -> Drain | None:
    """Returns the drain that decides the effective weight; None when there is none."""
    return Drains(snapshot, settings).drain_of(member, key)


def kept_services(snapshot: Snapshot, settings: ClusterSettings, member: ClusterName) -> tuple[ServiceKey, ...]:
    """Returns the services, sorted, that `member` goes on serving to this cluster though they are drained to 0.

    Nobody else offers endpoints of them, or of one of their ports, or only members that are silent.
    """
    drains = Drains(snapshot, settings)
    if member not in drains.members:
        return ()
    offers = Offers(snapshot, settings, settings.network)
    if member == settings.name:
        keys = snapshot.exports.keys() & snapshot.services.keys()
    else:
        keys = {key for cluster, key in snapshot.imports if cluster == member}
    return tuple(
        key
        for key in sorted(keys)
        if drains.weight(member, key) == 0 and _is_kept(snapshot, offers, drains, member=member, key=key)
    )


def _is_kept(snapshot: Snapshot, offers: Offers, drains: Drains, *, member: ClusterName, key: ServiceKey) -> bool:
    policy = snapshot.policies.get(key, ServicePolicy())
    weights = drains.weights(key)
    for _, of_group in port_groups(offers.of(key)):
        found = fates(of_group, policy=policy, silences=snapshot.silences, drains=weights)
        serves = any(offer.endpoints for offer in of_group if offer.cluster == member)
        if serves and found[member] is Fate.KEPT:
            return True
    return False


def _in_force(snapshot: Snapshot, settings: ClusterSettings) -> Iterator[Drain]:
    asked_here = snapshot.drains.values()
    told = (
        drain
        for member in snapshot.members.values()
        if not member.introduced_by  # hearsay drains nobody
        for drain in member.drains
        if drain.cluster == member.name
    )
    for drains in (asked_here, told):
        yield from (drain for drain in drains if drain.clients or drain.cluster != settings.name)


def _strictness(drain: Drain) -> tuple[int, float]:
    return drain.weight, drain.since.timestamp()
