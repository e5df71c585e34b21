"""A mesh whose members call each other, made up, as a drain sees it: weights take hold at once, counters count on.

Runs on virtual time: what is counted is a matter of how much of it has passed.
"""

import asyncio
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from deploy.cli.drain_mesh import Look, Member
from deploy.cli.draining import FULL
from deploy.cli.survey import Silent
from federation.admin import DrainOrder
from federation.model import Liveness
from federation.reports import ClusterReport, DrainReport, LoadReport, PlaceReport, ServiceLoad, ServiceReport

EPOCH = datetime(2026, 11, 22, tzinfo=UTC)
CART, REDIS = "shop/cart", "shop/redis"


def now() -> datetime:
    """Returns the moment that virtual time has come to."""
    return EPOCH + timedelta(seconds=asyncio.get_running_loop().time())


def cluster_report(name: str, *, is_self: bool = False, left: datetime | None = None) -> ClusterReport:
    """Makes what is said of a member."""
    places = {"network": "n", "region": "r", "cloud": "", "zones": (), "gateways": ()}
    heard = {"state": Liveness.LIVE, "since": None, "heard": None, "exports": 1}
    return ClusterReport(name=name, is_self=is_self, left=left, **places, **heard)  # type: ignore[arg-type]


def service_report(service: str, *clusters: str) -> ServiceReport:
    """Makes what is said of a service that has two endpoints in each of `clusters`."""
    namespace, _, name = service.partition("/")
    places = tuple(PlaceReport(cluster, "r", "a", 2) for cluster in clusters)
    return ServiceReport(namespace, name, ("80/http",), is_local=True, is_exported=True, places=places)


@dataclass
class Stream:
    """Something open to the member that is drained, until a moment of virtual time."""

    caller: str
    ends: float = float("inf")
    service: str = CART


@dataclass
class ModelCaller:
    """A member. `asked` are the drains that its admin was asked for; `hears` whether the record of others reaches it.

    Its workloads make `calls` a second to each service that it knows; `failing` of those that others than the drained
    member answer fail.
    """

    name: str
    asked: dict[tuple[str, str], DrainReport] = field(default_factory=dict)
    is_reached: bool = True
    refuses: str = ""
    hears: bool = True
    calls: float = 10.0
    failing: float = 0.0
    silent: tuple[str, ...] = ()
    visitors: tuple[str, ...] = ()
    unled: int = 0
    started: datetime = EPOCH
    counted: dict[tuple[str, str], list[float]] = field(default_factory=dict)


class ModelCallers:
    """A `Mesh` of members; `offers` says which of them have endpoints of each service."""

    def __init__(self, *names: str, offers: Mapping[str, Collection[str]] | None = None) -> None:
        self.members = {name: ModelCaller(name) for name in names}
        self.offers = dict(offers or {CART: names})
        self.streams: list[Stream] = []
        self.told: list[tuple[str, DrainOrder]] = []
        self.undone: list[str] = []
        self.severed = False
        self.left: set[str] = set()
        self.lag = 0  # looks that still show a drain that was ended
        self._ended: list[DrainReport] = []
        self._counted_to = 0.0

    async def look(self) -> Look:
        self._count()
        found = {name: self._member(one) for name, one in self.members.items() if one.is_reached}
        self.lag -= bool(self._ended)
        self._ended = self._ended if self.lag > 0 else []
        silent = tuple(Silent(one.name, "gone", is_away=True) for one in self.members.values() if not one.is_reached)
        return Look(found, silent)

    async def services(self, look: Look) -> Mapping[str, tuple[ServiceReport, ...]]:
        every = tuple(service_report(service, *clusters) for service, clusters in self.offers.items())
        return dict.fromkeys(look.members, every)

    async def drain(self, look: Look, orders: Mapping[str, DrainOrder]) -> tuple[Silent, ...]:
        self._count()
        for name, order in orders.items():
            member = self.members[name]
            self.told.append((name, order))
            if self._says_no(member):
                continue
            self.severed = self.severed or order.sever
            self._drain(member, order)
        return tuple(no for name in orders if (no := self._says_no(self.members[name])))

    async def undrain(self, look: Look, asked: Collection[str], *, cluster: str, service: str) -> tuple[Silent, ...]:
        self._count()
        for name in asked:
            if not self._says_no(self.members[name]):
                ended = self.members[name].asked.pop((cluster, service), None)
                self._ended = [ended] if ended and self.lag else []
                self.undone.append(name)
        return tuple(no for name in asked if (no := self._says_no(self.members[name])))

    def rewind(self) -> None:
        """Has virtual time begin again, and all counters with it, as for a new process."""
        self._counted_to = 0.0
        for one in self.members.values():
            one.counted = {}

    def restart(self, name: str) -> None:
        """Has the counters of a member begin again."""
        self.members[name].started, self.members[name].counted = now(), {}

    def drains(self, caller: ModelCaller) -> tuple[DrainReport, ...]:
        """Returns the drains that a member reports: its own, and those that the drained say of themselves."""
        others = [one for one in self.members.values() if one is not caller and caller.hears]
        told = [drain for one in others for drain in one.asked.values() if drain.cluster == one.name]
        return (*caller.asked.values(), *told)

    def _drain(self, member: ModelCaller, order: DrainOrder) -> None:
        only = [name for name, clusters in self.offers.items() if set(clusters) == {order.cluster}]
        member.asked[order.cluster, order.service] = DrainReport(
            cluster=order.cluster,
            service=order.service,
            weight=order.weight,
            clients=order.clients,
            sever=order.sever,
            since=now(),
            asked_of=member.name,
            kept=tuple(only),
        )

    def _says_no(self, member: ModelCaller) -> Silent | None:
        if not member.is_reached:
            return Silent(member.name, "gone", is_away=True)
        return Silent(member.name, member.refuses) if member.refuses else None

    def _count(self) -> None:
        passed = asyncio.get_running_loop().time() - self._counted_to
        self._counted_to += passed
        for caller in self.members.values():
            for service in self.offers:
                for member, share in self._shares(caller, service):
                    counted = caller.counted.setdefault((service, member), [0.0, 0.0])
                    counted[0] += passed * caller.calls * share
                    is_drained = any(one.cluster == member for one in self.drains(caller))
                    counted[1] += 0 if is_drained else passed * caller.calls * share * caller.failing

    def _shares(self, caller: ModelCaller, service: str) -> Iterator[tuple[str, float]]:
        weights = dict.fromkeys(self.offers[service], FULL)
        for drain in self.drains(caller):
            is_client = drain.clients or caller.name != drain.cluster
            if drain.cluster in weights and drain.service in ("", service) and is_client and len(weights) > 1:
                weights[drain.cluster] = min(weights[drain.cluster], drain.weight)
        for member, weight in weights.items():
            yield member, weight / max(1, sum(weights.values()))

    def _member(self, one: ModelCaller) -> Member:
        moment = asyncio.get_running_loop().time()
        loads = []
        for (service, member), (issued, failed) in sorted(one.counted.items()):
            opened = sum(
                stream.caller == one.name and stream.service == service and moment < stream.ends and not self.severed
                for stream in self.streams
                if member == "west"
            )
            loads.append(ServiceLoad(service, 80, member, opened, int(issued), int(failed)))
        report = LoadReport(
            cluster=one.name,
            replica="one",
            interval=1.0,
            reporting=2,
            silent=one.silent,
            at=EPOCH + timedelta(seconds=int(moment)),
            started=one.started,
            loads=tuple(loads),
            visitors=one.visitors,
        )
        knows = tuple(
            cluster_report(name, is_self=name == one.name, left=EPOCH if name in self.left else None)
            for name in self.members
        )
        drains = (*self.drains(one), *self._ended)
        return Member(cluster=one.name, name=one.name, drains=drains, knows=knows, loads=(report,), unled=one.unled)
