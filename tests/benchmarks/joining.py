"""What one more member, and one change, costs a member that is there: by steps, in pictures of more and more members.

No etcd, no network, nobody else: CPU of this process, the least of some tries, and how often things are done, which no
other load disturbs. It is what follows in an old member from a newcomer's records; streams are in `simulation`.
"""

import gc
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any

import msgspec
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest
from rich.table import Table

from deploy.control import problems
from deploy.control.proxies import Compiler
from federation.model import (
    Audience,
    ClusterSettings,
    ExportedService,
    Freshness,
    Liveness,
    Locality,
    ProxyRole,
    ProxyScope,
)
from federation.names import OUTBOUND_ROUTES
from federation.peering import exports
from federation.snapshot import EMPTY, Change, Section, Snapshot, apply
from federation.staleness import silences, vouching_period
from federation.xds.protocol import DeltaStream, Order
from federation.xds.resources import TypeUrl
from tests.benchmarks.plan import NAMESPACE, Plan, objects_of, settings_of
from trust.spiffe import ClusterName, Identity, gateway_identity

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_CERTIFICATE = "-----BEGIN CERTIFICATE-----\n" + "A" * 900 + "\n-----END CERTIFICATE-----\n"  # as long as a real one
_APART = 10_000  # between the numbers of the members of two pictures
NEWCOMERS = range(201, _APART, 20)
"""Numbers for members that join, whoever is there: the first of those that share services, and all of one region. Each
is to be used once: what has been compiled of a member need not be compiled again."""

Batch = Sequence[Change]
"""What one look at the news of etcd brings."""

_ANEW = {
    "services placed": "federation.placement.place",
    "resources encoded": "federation.xds.resources.make_resource",
    "gateways compiled": "gateway.eastwest.compile_gateway",
}
"""What is counted, and by which function."""


class Cost(msgspec.Struct, frozen=True):
    """What one event costs: CPU by step, in seconds, and how often things were done anew."""

    cpu: Mapping[str, float]
    anew: Mapping[str, int]


class OldMember:
    """A member as its control plane sees the mesh, with a sidecar and a gateway. `cpu` are seconds by step."""

    def __init__(self, plan: Plan, picture: Snapshot, *, number: int = 1) -> None:
        self.cpu: dict[str, float] = {}
        self._settings = _settings(plan, number)
        self._picture = picture
        self._compiler = Compiler(self._settings, ["127.0.0.1"])
        self._sidecar, self._gateway = _sidecar(self._settings, picture), _gateway(self._settings)
        self._proxy = _Proxy()
        self._follow()
        self.cpu.clear()

    def take(self, batch: Batch) -> None:
        """Takes changes, and makes of them all that follows."""
        with_findings = [[change, Change(Section.FINDINGS, f"etcd {change.key}", None)] for change in batch]
        self._picture = self._timed("picture", lambda: _applied(self._picture, with_findings))
        self._follow()

    def go_back_to(self, picture: Snapshot) -> None:
        """Forgets what was taken since an earlier picture, and what it cost."""
        # The revision grows: to be at an old one again would mean that nothing has changed.
        self._picture = msgspec.structs.replace(picture, revision=self._picture.revision + 1)
        self._follow()
        self.cpu.clear()

    def look(self) -> None:
        """Looks for what does not work, as each second."""
        own, picture = self._settings.name, self._picture
        self._timed("look for problems", lambda: [*problems.of_peers(picture, own, {}, started=_NOW)])

    def _follow(self) -> None:
        compiler, picture = self._compiler, self._picture
        self._timed("silences", lambda: (silences(picture), vouching_period(picture)))
        told = self._timed("sidecar", lambda: compiler(picture, self._sidecar))
        self._timed("gateway", lambda: compiler(picture, self._gateway))
        self._timed("stream to the sidecar", lambda: self._proxy.take(told))

    def _timed(self, step: str, do: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = do()
        self.cpu[step] = self.cpu.get(step, 0.0) + time.process_time() - began
        return result


class _Proxy:
    """The server's side of a sidecar's stream; the sidecar takes all that it is sent."""

    def __init__(self) -> None:
        self._stream = DeltaStream(Order.ENVOY)
        self._asked: set[str] = set()
        for type_url, names in ((TypeUrl.CLUSTER, []), (TypeUrl.LISTENER, []), (TypeUrl.ROUTES, [OUTBOUND_ROUTES])):
            self._stream.receive(DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=names))

    def take(self, resources: Any) -> None:
        self._stream.offer(resources)
        while pushes := self._stream.due():
            for push in pushes:
                self._stream.receive(DeltaDiscoveryRequest(type_url=push.type_url, response_nonce=push.nonce))
                if push.type_url is TypeUrl.CLUSTER:
                    self._ask({name for name in push.upserts if name.startswith(("outbound|", "gateway"))})

    def _ask(self, upstreams: set[str]) -> None:
        if new := sorted(upstreams - self._asked):
            self._asked.update(new)
            self._stream.receive(DeltaDiscoveryRequest(type_url=TypeUrl.ENDPOINTS, resource_names_subscribe=new))


def picture_of(plan: Plan, members: int, *, first: int = 1) -> Snapshot:
    """Returns what the `first` member sees of a mesh of so many, which are numbered from there."""
    changes = [*objects_of(plan, first)]
    for number in range(first + 1, first + members):
        changes += (change for batch in joining(plan, number) for change in batch)
    return apply(EMPTY, changes)


def joining(plan: Plan, number: int) -> tuple[Batch, ...]:
    """Returns how a member comes into the picture of another: as hearsay, by its own word, heard, with its services."""
    settings = _settings(plan, number)
    name, member = settings.name, exports.own_member(settings, certificate=_CERTIFICATE)
    hearsay = msgspec.structs.replace(member, introduced_by="another")
    return (
        [Change(Section.MEMBERS, name, hearsay)],
        [Change(Section.MEMBERS, name, member)],
        [Change(Section.FRESHNESS, name, Freshness(Liveness.LIVE, _NOW, _NOW))],
        [Change(Section.IMPORTS, (name, one.key), one) for one in _offers(plan, settings, number)],
    )


def events(plan: Plan, picture: Snapshot, *, newcomer: int) -> Mapping[str, tuple[Batch, ...]]:
    """Returns what may happen in a picture, by how it is called."""
    *_, other = picture.members
    place, before = next(one for one in picture.imports.items() if one[0][0] == other)
    fewer = msgspec.structs.replace(before, endpoints=before.endpoints[1:], version="another")
    silent = Freshness(Liveness.STALE, _NOW, _NOW, timedelta(seconds=60))
    return {
        "a member joins": joining(plan, newcomer),
        "an endpoint goes": ([Change(Section.IMPORTS, place, fewer)],),
        "a member turns stale": ([Change(Section.FRESHNESS, other, silent)],),
        "what concerns no proxy": ([Change(Section.SILENCES, ClusterName("nobody"), timedelta(seconds=1))],),
    }


def measure(plan: Plan, sizes: Iterable[int], *, tries: int = 5) -> Iterator[tuple[int, Mapping[str, Cost]]]:
    """Yields what each event costs, by its name, in pictures of these numbers of members."""
    newcomers = iter(NEWCOMERS)
    for place, size in enumerate(sizes):
        first = place * _APART + 1  # nobody is in two pictures: what is compiled for one is of no use to another
        picture = picture_of(plan, size, first=first)
        old = OldMember(plan, picture, number=first)
        found = {}
        for event, batches in events(plan, picture, newcomer=next(newcomers)).items():
            anew = done_anew(old, batches)
            cpu = []
            for _ in range(tries):
                old.go_back_to(picture)
                cpu.append(_cpu(old, events(plan, picture, newcomer=next(newcomers))[event]))
            old.go_back_to(picture)
            found[event] = Cost({step: min(one[step] for one in cpu) for step in cpu[0]}, anew)
        yield size, found


def done_anew(old: OldMember, batches: Sequence[Batch]) -> Mapping[str, int]:
    """Returns how often the old member does things anew when these batches come (see `_ANEW`)."""
    counted: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            counted[f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        for batch in batches:
            old.take(batch)
    finally:
        sys.setprofile(before)
    return {what: counted[function] for what, function in _ANEW.items()}


def tables(found: Mapping[int, Mapping[str, Cost]]) -> list[Table]:
    """Returns the figures for people: in brackets, how many times that of the smallest picture."""
    smallest = found[min(found)]
    made = []
    for event in smallest:
        table = Table(title=event, title_justify="left")
        for column in ("", *(f"{size} members" for size in found)):
            table.add_column(column, justify="right")
        for step in smallest[event].cpu:
            table.add_row(step, *(_ratio(one[event].cpu[step], smallest[event].cpu[step]) for one in found.values()))
        total = sum(smallest[event].cpu.values())
        table.add_row("all", *(_ratio(sum(one[event].cpu.values()), total) for one in found.values()), end_section=True)
        for what in smallest[event].anew:
            table.add_row(what, *(str(one[event].anew[what]) for one in found.values()))
        made.append(table)
    return made


def _ratio(seconds: float, least: float) -> str:
    return f"{seconds * 1000:.2f} ms ({seconds / least:.1f})" if least else f"{seconds * 1000:.2f} ms"


def _cpu(old: OldMember, batches: Sequence[Batch]) -> Mapping[str, float]:
    gc.collect()
    gc.disable()
    try:
        for batch in batches:
            old.take(batch)
        old.look()
    finally:
        gc.enable()
    return dict(old.cpu)


def _applied(picture: Snapshot, together: Iterable[Sequence[Change]]) -> Snapshot:
    for changes in together:  # each record of etcd is an event of its own
        picture = apply(picture, changes)
    return picture


def _settings(plan: Plan, number: int) -> ClusterSettings:
    return settings_of(plan, number, f"127.108.0.{number}")


def _offers(plan: Plan, settings: ClusterSettings, number: int) -> list[ExportedService]:
    found = exports.offered(apply(EMPTY, objects_of(plan, number)), settings, before={}, changed_at=_NOW)
    return [msgspec.structs.replace(one, version=exports.export_version(one)) for one in found.values()]


def _sidecar(settings: ClusterSettings, picture: Snapshot) -> ProxyScope:
    pod = picture.pods[min(picture.pods)]
    audience = Audience(
        ProxyRole.SIDECAR, settings.name, settings.network, Locality(settings.region, "a"), namespace=NAMESPACE
    )
    return ProxyScope(audience, Identity(settings.name, NAMESPACE, pod.account), pod.address, pod)


def _gateway(settings: ClusterSettings) -> ProxyScope:
    identity = gateway_identity(settings.name)
    place = Locality(settings.region, "a")
    audience = Audience(ProxyRole.GATEWAY, settings.name, settings.network, place, namespace=identity.namespace)
    return ProxyScope(audience, identity, settings.gateways[0].address)
