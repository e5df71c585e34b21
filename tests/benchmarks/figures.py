"""What a simulation found out: figures, how they follow from what was counted, and how they are printed. Pure."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from rich.table import Table

from tests.benchmarks.commands import Took, Usage
from tests.benchmarks.measures import EtcdUsage


class Counted(msgspec.Struct, frozen=True):
    """What some members, or one, used between two moments. CPU in seconds; bytes and packets on streams to peers."""

    seconds: float
    cpu: float
    etcd_cpu: float
    sent: float
    received: float
    packets: float
    puts: float

    def each(self, number: float) -> "Counted":
        """Returns a part."""
        return Counted(self.seconds, *(value / number for value in msgspec.structs.astuple(self)[1:]))

    def without(self, idle: "Counted") -> "Counted":
        """Returns what is beyond idling for as long; idling is given for any span."""
        share = self.seconds / idle.seconds
        pairs = zip(msgspec.structs.astuple(self)[1:], msgspec.structs.astuple(idle)[1:], strict=True)
        return Counted(self.seconds, *(mine - share * theirs for mine, theirs in pairs))

    @property
    def bytes(self) -> float:
        """Both directions."""
        return self.sent + self.received


class Quantiles(msgspec.Struct, frozen=True):
    """Of spans, in seconds."""

    count: int
    p50: float
    p99: float
    most: float


class Idle(msgspec.Struct, frozen=True):
    """One member of so many, while nothing changes, each second."""

    members: int
    each: Counted
    control_rss: float
    etcd_rss: float
    etcd_keys: float
    etcd_bytes: float


class Join(msgspec.Struct, frozen=True):
    """The member with this number joins: until its picture is whole and it is in all others'. `seconds` is how long.

    `newcomer` counts all that it used, `old` what each of the others used beyond idling.
    """

    number: int
    services: int
    seconds: float
    newcomer: Counted
    old: Counted
    newcomer_rss: float
    newcomer_rss_before: float


class OneByOne(msgspec.Struct, frozen=True):
    """One endpoint came or went at a time, in a random member; the next when all others and their sidecars had it.

    `first`, `median` and `last` are from the origin to the pictures of the others; `sidecar` to the ACK of one sidecar.
    `per_change` is what all members together used, beyond idling; `receiver` one that only received, `sender` one that
    made all of the changes, while they were made: each has a process to itself. `load` is the machine's, in cores;
    `stall` the longest time, in seconds, for which the process that asked for the changes was not let run.
    """

    changes: int
    first: Quantiles
    median: Quantiles
    last: Quantiles
    sidecar: Quantiles
    per_change: Counted
    receiver: Counted
    sender: Counted
    cores: int
    load: float
    stall: float

    @property
    def floor(self) -> float:
        """The least time, in seconds, in which the cores of this machine could do what a change needs everywhere."""
        return (self.per_change.cpu + self.per_change.etcd_cpu) / self.cores

    @property
    def apart(self) -> float:
        """CPU of one sender and one receiver with their etcds, in seconds: all that members with machines of their own
        could wait for, were nothing done at the same time, and no network between them."""
        return sum(one.cpu + one.etcd_cpu for one in (self.sender, self.receiver))


class Churned(msgspec.Struct, frozen=True):
    """Endpoints came and went. `per_change` is what all members together used for one change, beyond idling.

    `picture` is from the origin to one other member's picture, `everywhere` to the last one's; `sidecar` to the ACK of
    a sidecar of one member. `reached` is how many pictures of others a change came into, on average: of several changes
    of one service some are only passed over. `cpu_busy` are cores that the members kept busy while changes were made,
    `load` all that ran on the machine.
    """

    rate: float
    changes: int
    per_change: Counted
    picture: Quantiles
    everywhere: Quantiles
    sidecar: Quantiles
    reached: float
    cpu_busy: float
    load: float


class Figures(msgspec.Struct, frozen=True):
    """All of one run. `machine` is what it ran on; `is_consistent`: at the end each held what each offered."""

    machine: str
    members: int
    services: int
    endpoints: int
    idle: tuple[Idle, ...]
    joins: tuple[Join, ...]
    one_by_one: OneByOne
    churn: tuple[Churned, ...]
    is_consistent: bool
    took: float


def count(before: Sequence[Usage | EtcdUsage], after: Sequence[Usage | EtcdUsage]) -> Counted:
    """Returns what these processes used between two looks at them."""
    pairs = list(zip(before, after, strict=True))
    controls = [(one, two) for one, two in pairs if isinstance(one, Usage) and isinstance(two, Usage)]
    etcds = [(one, two) for one, two in pairs if isinstance(one, EtcdUsage) and isinstance(two, EtcdUsage)]
    return Counted(
        seconds=max(two.at - one.at for one, two in pairs),
        cpu=sum(two.cpu - one.cpu for one, two in controls),
        etcd_cpu=sum(two.cpu - one.cpu for one, two in etcds),
        sent=sum(two.sent - one.sent for one, two in controls),
        received=sum(two.received - one.received for one, two in controls),
        packets=sum(two.packets - one.packets for one, two in controls),
        puts=sum(two.puts - one.puts for one, two in etcds),
    )


def quantiles(spans: Iterable[float]) -> Quantiles:
    """Returns the quantiles of spans; zeros of none."""
    found = sorted(spans)
    if not found:
        return Quantiles(0, 0.0, 0.0, 0.0)
    return Quantiles(len(found), found[len(found) // 2], found[min(len(found) - 1, len(found) * 99 // 100)], found[-1])


def by_change(took: Iterable[Took]) -> list[list[float]]:
    """Returns how long each change took until it was in the pictures, from the first one's to the last one's."""
    spans: dict[float, list[float]] = {}
    for one in took:
        for change, span in one.picture:
            spans.setdefault(change, []).append(span)
    return [sorted(found) for found in spans.values()]


def is_consistent(held: Mapping[str, Mapping[str, str]]) -> bool:
    """Says whether each member holds of each other what that one offers."""
    return all(of == {origin: held[origin][origin] for origin in held} for of in held.values())


def tables(figures: Figures) -> list[Table]:
    """Returns the figures for people."""
    return [_idle_table(figures), _join_table(figures), _one_by_one_table(figures), _churn_table(figures)]


def _idle_table(figures: Figures) -> Table:
    table = Table(title="Nothing changes: one member, each second", title_justify="left")
    for column in ("members", "CPU control", "CPU etcd", "bytes", "packets", "etcd puts", "RSS control", "RSS etcd"):
        table.add_column(column, justify="right")
    for idle in figures.idle:
        each = idle.each.each(idle.each.seconds)
        table.add_row(
            str(idle.members),
            f"{each.cpu * 1000:.1f} ms",
            f"{each.etcd_cpu * 1000:.1f} ms",
            _size(each.bytes),
            f"{each.packets:.1f}",
            f"{each.puts:.2f}",
            _size(idle.control_rss),
            _size(idle.etcd_rss),
        )
    return table


def _join_table(figures: Figures) -> Table:
    table = Table(title="A member joins", title_justify="left")
    for column in ("", *(f"number {join.number}" for join in figures.joins)):
        table.add_column(column, justify="right")
    rows = (
        ("seconds until whole", lambda join: f"{join.seconds:.2f}"),
        ("services it learns", lambda join: str(join.services)),
        ("newcomer: CPU", lambda join: f"{join.newcomer.cpu * 1000:.0f} ms"),
        ("newcomer: CPU a peer", lambda join: f"{join.newcomer.cpu * 1000 / (join.number - 1):.1f} ms"),
        ("newcomer: bytes", lambda join: _size(join.newcomer.bytes)),
        ("newcomer: etcd puts", lambda join: f"{join.newcomer.puts:.0f}"),
        (
            "newcomer: RSS",
            lambda join: f"{_size(join.newcomer_rss)} (+{_size(join.newcomer_rss - join.newcomer_rss_before)})",
        ),
        ("each old one: CPU", lambda join: f"{join.old.cpu * 1000:.1f} ms"),
        ("each old one: bytes", lambda join: _size(join.old.bytes)),
        ("each old one: etcd puts", lambda join: f"{join.old.puts:.1f}"),
    )
    for name, text in rows:
        table.add_row(name, *(text(join) for join in figures.joins))
    return table


def _one_by_one_table(figures: Figures) -> Table:
    one = figures.one_by_one
    table = Table(title=f"One endpoint after another comes or goes, {one.changes} in all", title_justify="left")
    for column in ("", "p50", "p99", "most"):
        table.add_column(column, justify="right")
    rows = (
        ("in the first picture of another member", one.first),
        ("in the median picture", one.median),
        ("in the last picture", one.last),
        (f"acknowledged by a sidecar ({one.sidecar.count})", one.sidecar),
    )
    for name, of in rows:
        table.add_row(name, *(f"{span * 1000:.0f} ms" for span in (of.p50, of.p99, of.most)))
    spent = (
        ("CPU a change: all control planes", one.per_change.cpu),
        ("... all etcds", one.per_change.etcd_cpu),
        (f"... so {one.cores} cores need at least", one.floor),
        ("... sender: control plane", one.sender.cpu),
        ("... sender: etcd", one.sender.etcd_cpu),
        ("... receiver: control plane", one.receiver.cpu),
        ("... receiver: etcd", one.receiver.etcd_cpu),
        ("... a sender and a receiver", one.apart),
    )
    for name, seconds in spent:
        table.add_row(name, f"{seconds * 1000:.1f} ms", "", "")
    table.add_row("cores busy on this machine", f"{one.load:.2f}", "", "")
    table.add_row("longest stall of a process that only waits", f"{one.stall * 1000:.0f} ms", "", "")
    return table


def _churn_table(figures: Figures) -> Table:
    table = Table(title="Endpoints come and go", title_justify="left")
    for column in ("", *(f"{churned.rate:g}/s" for churned in figures.churn)):
        table.add_column(column, justify="right")
    rows = (
        ("changes", lambda one: str(one.changes)),
        ("pictures reached by each", lambda one: f"{one.reached:.1f}"),
        ("to a member's picture p50/p99", lambda one: _span(one.picture)),
        ("to the last member's p50/p99", lambda one: _span(one.everywhere)),
        ("to a sidecar's ACK p50/p99", lambda one: _span(one.sidecar)),
        ("CPU control a change, all", lambda one: f"{one.per_change.cpu * 1000:.1f} ms"),
        ("... a change and member", lambda one: f"{one.per_change.cpu * 1000 / figures.members:.2f} ms"),
        ("CPU etcd a change and member", lambda one: f"{one.per_change.etcd_cpu * 1000 / figures.members:.2f} ms"),
        ("bytes a change, all", lambda one: _size(one.per_change.bytes)),
        ("etcd puts a change, all", lambda one: f"{one.per_change.puts:.1f}"),
        ("cores busy for it", lambda one: f"{one.cpu_busy:.2f}"),
        ("cores busy on this machine", lambda one: f"{one.load:.2f}"),
    )
    for name, text in rows:
        table.add_row(name, *(text(one) for one in figures.churn))
    return table


def _span(of: Quantiles) -> str:
    return f"{of.p50 * 1000:.0f} / {of.p99 * 1000:.0f} ms" if of.count else "-"


def _size(number: float) -> str:
    for unit, divisor in (("MB", 1e6), ("kB", 1e3)):
        if abs(number) >= divisor:
            return f"{number / divisor:.1f} {unit}"
    return f"{number:.0f} B"
