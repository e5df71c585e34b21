"""All links of a lab: those between clusters, and those from each control plane replica to its etcd.

A link is named by its two ends: two clusters, or a control plane and an etcd of one cluster (`east/control-1` and
`east/etcd`, in any order; without a number: all of them).
"""

from collections.abc import Iterable
from datetime import timedelta

from deploy.failures import CommandFailed
from deploy.lab.addresses import Addresses
from deploy.lab.links import Link, LinkState, Pair
from deploy.lab.plan import Plan
from deploy.lab.reports import LinkReport
from deploy.lab.targets import Kind, ProcessId, all_processes, select_kind


class Wiring:
    """The links of one lab, by what they join."""

    def __init__(self, plan: Plan, addresses: Addresses) -> None:
        self._plan = plan
        self._processes = all_processes(plan)
        pairs: dict[frozenset[str], list[Pair]] = {}
        for end in addresses.links:
            pairs.setdefault(frozenset((end.near, end.far)), []).append(Pair(end.listen, end.target))
        self._between = {names: Link(each, plan.round_trip(*sorted(names)) / 2) for names, each in pairs.items()}
        etcds = {
            name: [each for each in self._processes if each.cluster == name and each.kind is Kind.ETCD]
            for name in addresses.clusters
        }
        self._to_etcd: dict[tuple[str, str], Link] = {}
        for each in addresses.etcd_links:
            control = ProcessId(each.cluster, Kind.CONTROL, each.replica)
            etcd = etcds[each.cluster][each.node - 1]
            self._to_etcd[str(control), str(etcd)] = Link([Pair(each.listen, each.target)], timedelta())

    @property
    def links(self) -> tuple[Link, ...]:
        """All links: each is to be run."""
        return (*self._between.values(), *self._to_etcd.values())

    async def set(self, one: str, other: str, state: LinkState) -> LinkReport:
        """Cuts or heals what is between two ends. Raises CommandFailed."""
        for link in self._chosen(one, other):
            await link.set(state)
        return LinkReport(between=(one, other), state=state, latency=self._latency(one, other))

    def report(self) -> tuple[LinkReport, ...]:
        """Returns the links between clusters."""
        ends = [tuple(sorted(pair)) for pair in self._between]
        return tuple(
            LinkReport((one, other), self._between[frozenset((one, other))].state, self._latency(one, other))
            for one, other in ends
        )

    def report_etcd(self) -> tuple[LinkReport, ...]:
        """Returns the links from control planes to their etcds."""
        return tuple(LinkReport(ends, link.state, 0.0) for ends, link in self._to_etcd.items())

    def _chosen(self, one: str, other: str) -> Iterable[Link]:
        link = self._between.get(frozenset((one, other)))
        if link is not None:
            return (link,)
        for near, far in ((one, other), (other, one)):
            controls = select_kind(near, self._processes, Kind.CONTROL)
            etcds = select_kind(far, self._processes, Kind.ETCD)
            found = [self._to_etcd.get((str(control), str(etcd))) for control in controls for etcd in etcds]
            links = [link for link in found if link is not None]
            if links:
                return links
        names = ", ".join(cluster.name for cluster in self._plan.clusters)
        raise CommandFailed(
            f"there is no link between {one!r} and {other!r}",
            f"clusters are: {names}; within one, there are those from CLUSTER/control[-N] to CLUSTER/etcd[-N]",
        )

    def _latency(self, one: str, other: str) -> float:
        return self._plan.round_trip(one, other) / timedelta(milliseconds=1)
