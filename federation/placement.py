"""Which endpoints of a service are called from one place, in which order and in which proportion. Pure.

    offers ─ fates (who is silent, who is drained) ─► tiers by distance ─ shares (member weights, drains) ─► weights

A tier is a priority of Envoy: the next one is called when the one before has too few healthy endpoints. Within a tier
weights divide the calls. Nothing here empties a service, but for the silence that its own policy waits for.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from math import ceil, gcd, lcm
from types import MappingProxyType

import msgspec

from federation.model import Audience, Endpoint, Locality, MemberCluster, ServicePolicy, WhenStale
from federation.offers import Offer, Path
from trust.spiffe import ClusterName

# Distance, nearest first. Gaps close when priorities are made: Envoy wants them without holes.
_SAME_ZONE, _SAME_REGION, _SAME_CLUSTER = 0, 1, 2
_PEER_SAME_ZONE, _PEER_SAME_REGION, _PEER_SAME_CLOUD, _PEER_ELSEWHERE = 3, 4, 5, 6
_STALE = 10
"""Added for a member that has been silent too long: kept, but after everybody who is heard."""

_WHOLE = 100  # percent
_MOST_WEIGHT = 1_000_000
_MOST_WEIGHTS = 2**32 - 1  # Envoy refuses a load assignment whose weights of one priority sum up to more
_OVERPROVISIONING = 140
"""Envoy's own, in percent: a priority keeps all calls while at least 100/140 of its endpoints are healthy."""

_CACHED = 4096  # weights; services of the same shape share them
_NO_POLICY = ServicePolicy()
_NOTHING: Mapping[ClusterName, int] = MappingProxyType({})
_NOT_SILENT: Mapping[ClusterName, timedelta] = MappingProxyType({})


class PlacedEndpoint(msgspec.Struct, frozen=True, cache_hash=True):
    """An endpoint as seen from here. `priority` counts from 0, the nearest, without gaps within its service.

    Of one priority, endpoints are called in proportion to `weight`, which is 1 or more. What `is_draining` gets no new
    call, and is in a priority of its own after all others: Envoy counts what is still open only at hosts it knows.
    """

    member: ClusterName
    endpoint: Endpoint
    priority: int
    path: Path
    weight: int = 1
    is_draining: bool = False


class Placement(msgspec.Struct, frozen=True):
    """The endpoints of a service, sorted by priority. `overprovisioning` is that of all priorities, 0 for Envoy's own:
    with member weights, the first one keeps all calls as long as one of its members is healthy."""

    endpoints: tuple[PlacedEndpoint, ...]
    overprovisioning: int = 0


class Fate(StrEnum):
    """What becomes of a member's endpoints: they are called (CALLED), also though it is drained, because nobody else
    could be called instead (KEPT); or not: it is silent, for longer than the service's policy waits (DROPPED) or while
    this cluster has endpoints of its own (PASSED_OVER); or it is drained (DRAINED)."""

    CALLED = "called"
    KEPT = "kept"
    DROPPED = "dropped"
    PASSED_OVER = "passed over"
    DRAINED = "drained"


_CALLED = frozenset({Fate.CALLED, Fate.KEPT})


class _Host(msgspec.Struct, frozen=True, order=True):
    """An endpoint by its distance, with its member and how it is reached."""

    rank: int
    member: ClusterName
    endpoint: Endpoint
    path: Path


class _Tier(msgspec.Struct, frozen=True):
    """Endpoints of one priority and the shares of their members in its calls; by their number when there are none."""

    hosts: tuple[_Host, ...]
    is_stale: bool
    shares: Mapping[ClusterName, int] = _NOTHING


_Shape = tuple[tuple[ClusterName, int, int], ...]
"""Of a tier: its members, how many hosts each has, and its share of the calls."""


def place(
    offers: Sequence[Offer],
    audience: Audience,
    *,
    policy: ServicePolicy = _NO_POLICY,
    silences: Mapping[ClusterName, timedelta] = _NOT_SILENT,
    drains: Mapping[ClusterName, int] = _NOTHING,
) -> Placement:
    """Places the endpoints of members that all serve the same ports.

    `drains` are the effective weights, in percent, of those that are drained; `silences` as in Snapshot.
    """
    hosts = _once_by_address(
        sorted(
            _Host(_distance(audience, offer, endpoint), offer.cluster, endpoint, offer.reach.path)
            for offer in offers
            if offer.reach.path is not None
            for endpoint in offer.endpoints
        )
    )
    present = {host.member for host in hosts}
    # Nobody takes over for a drained member with addresses that are not its own.
    real = [offer if offer.cluster in present else msgspec.structs.replace(offer, endpoints=()) for offer in offers]
    become = fates(real, policy=policy, silences=silences, drains=drains)
    serving = {name for name, fate in become.items() if fate in _CALLED}
    called = [host for host in hosts if host.member in serving]
    tiers = _tiers(called, policy.weights, {offer.cluster for offer in offers if offer.reach.is_stale})
    # What is kept though drained is called as if it were not: there is nobody to call instead.
    falling = {name: weight for name, weight in drains.items() if become.get(name) is Fate.CALLED and weight < _WHOLE}
    weighed = _weigh(tiers, falling)
    placed = [
        PlacedEndpoint(host.member, host.endpoint, priority, host.path, weight)
        for priority, tier in enumerate(weighed)
        for host, weight in tier
    ]
    placed += [
        PlacedEndpoint(host.member, host.endpoint, len(weighed), host.path, is_draining=True)
        for host in hosts
        if host.member not in serving and become[host.member] is Fate.DRAINED
    ]
    return Placement(tuple(placed), _overprovisioning(tiers))


def fates(
    offers: Iterable[Offer],
    *,
    policy: ServicePolicy = _NO_POLICY,
    silences: Mapping[ClusterName, timedelta] = _NOT_SILENT,
    drains: Mapping[ClusterName, int] = _NOTHING,
) -> Mapping[ClusterName, Fate]:
    """Returns what becomes of each member's endpoints of one service. See `place` for the arguments.

    A drain moves calls only to members that are heard, or as silent as the drained one.
    """
    serving = {offer.cluster: offer for offer in offers if offer.endpoints}
    own_serves = any(offer.reach.is_own and drains.get(name, _WHOLE) for name, offer in serving.items())
    found = {offer.cluster: _when_silent(offer, policy, silences, own_serves=own_serves) for offer in offers}
    if not drains:
        return found
    others = [
        serving[name].reach.is_stale
        for name, fate in found.items()
        if fate is Fate.CALLED and name in serving and drains.get(name, _WHOLE)
    ]
    for name, fate in found.items():
        if fate is Fate.CALLED and not drains.get(name, _WHOLE):
            is_stale = name in serving and serving[name].reach.is_stale
            found[name] = Fate.DRAINED if any(is_stale or not other for other in others) else Fate.KEPT
    return found


def _when_silent(
    offer: Offer, policy: ServicePolicy, silences: Mapping[ClusterName, timedelta], *, own_serves: bool
) -> Fate:
    match policy.when_stale:
        case WhenStale.DROP if not offer.reach.is_own:
            silence = silences.get(offer.cluster)
            return Fate.DROPPED if silence is not None and silence >= policy.drop_after else Fate.CALLED
        case WhenStale.PREFER_LOCAL if offer.reach.is_stale and own_serves:
            return Fate.PASSED_OVER
        case _:
            return Fate.CALLED


def _tiers(hosts: Sequence[_Host], weights: Iterable[tuple[ClusterName, int]], stale: set[ClusterName]) -> list[_Tier]:
    """Divides hosts by distance, but for those of members with weights, which come first, together."""
    shares = {name: weight for name, weight in weights if weight > 0 and name not in stale}
    weighted = tuple(host for host in hosts if host.member in shares) if shares else ()
    by_rank: dict[int, list[_Host]] = {}
    for host in hosts:
        if not shares or host.member not in shares:
            by_rank.setdefault(host.rank, []).append(host)
    tiers = [_Tier(weighted, is_stale=False, shares=shares)] if weighted else []
    return tiers + [_Tier(tuple(by_rank[rank]), is_stale=rank >= _STALE) for rank in sorted(by_rank)]


def _weigh(tiers: list[_Tier], falling: Mapping[ClusterName, int]) -> list[list[tuple[_Host, int]]]:
    """Returns the hosts of each priority with their weights. `falling` are members that get a part of their calls."""
    if not falling and not any(tier.shares for tier in tiers):
        return [[(host, 1) for host in tier.hosts] for tier in tiers]
    left, weighed, fall = list(tiers), [], tuple(sorted(falling.items()))
    while left:
        tier = left.pop(0)
        # All of this tier fall: what they lose goes to the next that has others, side by side with it.
        heir = None if _has_others(tier, falling) else _heir(tier, left, falling)
        if heir is not None:
            left.remove(heir)
        weights, of_heir = _weights(_shape(tier), _shape(heir) if heir else (), fall)
        priority = [(host, weights[host.member]) for host in tier.hosts]
        weighed.append(priority + [(host, of_heir[host.member]) for host in (heir.hosts if heir else ())])
    return weighed


def _heir(tier: _Tier, after: Iterable[_Tier], falling: Mapping[ClusterName, int]) -> _Tier | None:
    # As with drains to 0: calls move only to members that are heard, or as silent as these.
    return next((one for one in after if _has_others(one, falling) and (tier.is_stale or not one.is_stale)), None)


def _has_others(tier: _Tier, falling: Mapping[ClusterName, int]) -> bool:
    return any(host.member not in falling for host in tier.hosts)


def _shape(tier: _Tier) -> _Shape:
    counts: dict[ClusterName, int] = {}
    for host in tier.hosts:
        counts[host.member] = counts.get(host.member, 0) + 1
    return tuple((name, count, tier.shares.get(name, 0) if tier.shares else count) for name, count in counts.items())


@lru_cache(maxsize=_CACHED)
def _weights(
    tier: _Shape, heir: _Shape, falling: tuple[tuple[ClusterName, int], ...]
) -> tuple[Mapping[ClusterName, int], Mapping[ClusterName, int]]:
    """Returns the weight of a host of each member, in a tier and in the one that takes over what the first loses.

    The smallest integers in the right proportion; beyond what Envoy takes, nearly in it and 1 or more.
    """
    first = _fallen(tier, dict(falling))
    lost = 1 - sum(first[name] * count for name, count, _ in tier)
    second = {name: share * lost for name, share in _fallen(heir, dict(falling)).items()}
    shares = [*first.values(), *second.values()]
    scale = Fraction(lcm(*(share.denominator for share in shares)))
    scale /= gcd(*(int(share * scale) for share in shares))
    hosts = sum(count for _, count, _ in (*tier, *heir))
    scale = min(scale, min(_MOST_WEIGHT, _MOST_WEIGHTS // hosts) / max(shares))
    first_weights, second_weights = (
        {name: max(1, int(share * scale)) for name, share in of_members.items()} for of_members in (first, second)
    )
    return first_weights, second_weights


def _fallen(tier: _Shape, falling: Mapping[ClusterName, int]) -> dict[ClusterName, Fraction]:
    """Returns the share of a host of each member; what falling ones lose goes to the others in proportion, if any."""
    total = sum(share for _, _, share in tier)
    left = {name: Fraction(share * falling.get(name, _WHOLE), total * _WHOLE) for name, _, share in tier}
    others = sum((share for name, share in left.items() if name not in falling), Fraction(0))
    growth = 1 + (1 - sum(left.values())) / others if others else Fraction(1)
    return {name: left[name] / count * (1 if name in falling else growth) for name, count, _ in tier}


def _overprovisioning(tiers: Sequence[_Tier]) -> int:
    """Returns the percentage with which the smallest weighted member alone still counts as a whole priority."""
    if not tiers or not tiers[0].shares:
        return 0
    members = [host.member for host in tiers[0].hosts]
    least = min(members.count(name) for name in set(members))
    return 0 if least == len(members) else ceil(Fraction(_OVERPROVISIONING * len(members), least))


def _once_by_address(hosts: Iterable[_Host]) -> list[_Host]:
    """Leaves out what another, nearer one has the address of: Envoy knows an address once in a cluster.

    A member that says to be on this network and names pods of ours would otherwise take their place.
    """
    taken: set[str] = set()
    kept = []
    for host in hosts:
        if host.path is Path.TUNNEL or host.endpoint.address not in taken:
            kept.append(host)
        if host.path is Path.DIRECT:
            taken.add(host.endpoint.address)
    return kept


def _distance(audience: Audience, offer: Offer, endpoint: Endpoint) -> int:
    here, there, member = audience.locality, endpoint.locality, offer.reach.member
    is_same_region = _region(here.region, "") == _region(there.region, member.region)
    is_same_zone = is_same_region and here.zone == there.zone
    if offer.reach.is_own:
        return _SAME_ZONE if is_same_zone else _SAME_REGION if is_same_region else _SAME_CLUSTER
    rank = (
        _PEER_SAME_ZONE
        if is_same_zone and here.zone
        else _PEER_SAME_REGION
        if is_same_region
        else _PEER_SAME_CLOUD
        if _is_same_cloud(here, there, member)
        else _PEER_ELSEWHERE
    )
    return rank + (_STALE if offer.reach.is_stale else 0)


def _region(of_endpoint: str, of_member: str) -> str:
    return of_endpoint or of_member


def _is_same_cloud(here: Locality, there: Locality, member: MemberCluster) -> bool:
    cloud = there.cloud or member.cloud
    return bool(cloud) and here.cloud == cloud
