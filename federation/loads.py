"""Sums of what proxies carry, by service and member, from the reports of each. Pure; moments are given.

A proxy's last report counts until the next one: what that does not mention is not open any more. When a proxy goes, its
report counts for a while longer, since it may only have lost its stream (Envoy comes back after 5 s): what is open is
never taken for ended because nobody said anything.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta

import msgspec

from federation.model import Drain, ServiceKey
from federation.names import clusterset_host, local_host, outbound_upstream
from federation.reports import ServiceLoad
from federation.snapshot import Snapshot
from trust.spiffe import ClusterName

USUAL_INTERVAL = timedelta(seconds=10)
"""Between two reports of a proxy."""
DRAIN_INTERVAL = timedelta(seconds=1)
"""Likewise, while somebody is drained and waits for the end of what is open."""

_PROXIES_A_SECOND = 250
# Reports that a replica takes: each is some 60 KB, since Envoy names all its extensions in every one, and costs 0.5 ms.
_MOST_INTERVAL = timedelta(seconds=60)
_PATIENCE = timedelta(seconds=10)  # Envoy asks again 5 s after its stream broke, whatever the interval is
_LARGEST_SUM = 1 << 53  # what every reader of JSON can hold; nobody but a liar gets there
_MISSED = 3  # reports, until a proxy counts as silent


class Target(msgspec.Struct, frozen=True, order=True):
    """The pods of one member behind a service port."""

    service: ServiceKey
    port: int
    member: ClusterName


class Load(msgspec.Struct, frozen=True):
    """What one report says of a target: what is open now, and what began and failed since the report before."""

    open: int = 0
    issued: int = 0
    failed: int = 0


NO_LOAD = Load()


class _Last(msgspec.Struct, frozen=True):
    """The last report of one proxy: what it says is open, by target."""

    at: datetime
    open: Mapping[Target, int]


class Tally:
    """The sums over the proxies of one replica."""

    def __init__(self) -> None:
        self._last: dict[str, _Last] = {}
        self._sums: dict[Target, Load] = {}  # `open` of these is not used

    def take(self, node: str, loads: Mapping[Target, Load], now: datetime) -> None:
        """Takes a report of a proxy."""
        for target, load in loads.items():
            sums = self._sums.get(target, NO_LOAD)
            issued, failed = sums.issued + load.issued, sums.failed + load.failed
            self._sums[target] = Load(0, min(issued, _LARGEST_SUM), min(failed, _LARGEST_SUM))
        self._last[node] = _Last(now, {target: load.open for target, load in loads.items() if load.open})

    def forget(self, targets: Collection[Target]) -> None:
        """Forgets the sums of all but these targets: services and members come and go."""
        self._sums = {target: load for target, load in self._sums.items() if target in targets}

    def tidy(self, present: Collection[str], now: datetime, *, interval: timedelta) -> None:
        """Forgets the last reports of proxies that are not `present`, nor were lately."""
        since = now - patience(interval)
        self._last = {node: last for node, last in self._last.items() if node in present or last.at >= since}

    def reporters(self) -> Mapping[str, datetime]:
        """Returns the proxies whose last report counts, and when that came."""
        return {node: last.at for node, last in self._last.items()}

    def loads(self) -> tuple[ServiceLoad, ...]:
        """Returns the sums, sorted; targets that never carried anything are left out."""
        opened: dict[Target, int] = {}
        for last in self._last.values():
            for target, count in last.open.items():
                opened[target] = opened.get(target, 0) + count
        return tuple(
            ServiceLoad(
                service=str(target.service),
                port=target.port,
                member=target.member,
                open=opened.get(target, 0),
                issued=self._sums.get(target, NO_LOAD).issued,
                failed=self._sums.get(target, NO_LOAD).failed,
            )
            for target in sorted(self._sums.keys() | opened.keys())
        )


def patience(interval: timedelta) -> timedelta:
    """Returns how long after its last report a proxy counts as silent."""
    return max(_PATIENCE, _MISSED * interval)


def report_interval(snapshot: Snapshot, proxies: int) -> timedelta:
    """Returns how often each of so many proxies is to report: sooner while any drain is in force."""
    shortest = timedelta(seconds=-(-proxies // _PROXIES_A_SECOND))
    wanted = DRAIN_INTERVAL if any(drains_in_force(snapshot)) else USUAL_INTERVAL
    return min(max(wanted, shortest), _MOST_INTERVAL)


def drains_in_force(snapshot: Snapshot) -> Iterable[Drain]:
    """Returns the drains that this cluster's admin asked for, and those that members said of themselves."""
    yield from snapshot.drains.values()
    for member in snapshot.members.values():
        if not member.introduced_by:
            yield from member.drains


def known_targets(snapshot: Snapshot, cluster: ClusterName) -> Mapping[str, Mapping[ClusterName, Target]]:
    """Returns all that proxies of `cluster` may report about, by the name of Envoy's cluster and by member.

    Who reports anything else is not listened to: it could invent names without end.
    """
    ports: dict[ServiceKey, set[int]] = {}
    providers: dict[ServiceKey, set[ClusterName]] = {}
    for key, service in snapshot.services.items():
        ports.setdefault(key, set()).update(port.number for port in service.ports)
        providers.setdefault(key, set()).add(cluster)
    for (member, key), exported in snapshot.imports.items():
        ports.setdefault(key, set()).update(port.number for port in exported.ports)
        providers.setdefault(key, set()).add(member)
    known: dict[str, Mapping[ClusterName, Target]] = {}
    for key, numbers in ports.items():
        for number in numbers:
            targets = {member: Target(key, number, member) for member in providers[key]}
            for host in (local_host(key), clusterset_host(key)):
                known[outbound_upstream(host, number)] = targets
    return known
