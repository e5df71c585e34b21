"""How a lab is shown to people: its start, its processes, a load run, the demo story."""

from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.status import Status

from deploy.cli.output import ago, table
from deploy.lab.demo import ChapterReport, DemoReport
from deploy.lab.links import LinkState
from deploy.lab.load import LoadReport
from deploy.lab.processes import State
from deploy.lab.reports import LabReport, Phase, ProcessReport
from deploy.lab.targets import Kind

_MEBI = 1024 * 1024


class Progress:
    """Shows how a lab starts: each event once, and below them, on a terminal, how many processes run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = 0
        self._status = Status("starting", console=console)
        self._status.start()

    def update(self, report: LabReport) -> None:
        """Shows what is new."""
        for event in report.events[self._shown :]:
            self._console.print(event, highlight=False, markup=False)
        self._shown = len(report.events)
        running = sum(process.state is State.RUNNING for process in report.processes)
        ready = sum(process.ready is True for process in report.processes)
        programs = sum(process.kind is Kind.APP for process in report.processes)
        self._status.update(f"{running} of {len(report.processes)} processes run, {ready} of {programs} programs ready")

    def close(self) -> None:
        """Ends the line that moves."""
        self._status.stop()


def next_steps(report: LabReport) -> str:
    """Returns what one may do with a lab that is up."""
    name = "" if report.name == "lab" else f" --name {report.name}"
    lab = "" if report.name == "lab" else f" --lab {report.name}"
    apps = [process.target.removesuffix("/app") for process in report.processes if process.kind is Kind.APP]
    target = apps[0].rpartition("-")[0] if apps else ""
    url = "http://SERVICE.NAMESPACE.svc.clusterset.local/"
    if "east/shop/client-1" in apps:  # the bundled example
        target, url = "east/shop/client", "http://cart.shop.svc.clusterset.local/"
    lines = [
        f"The lab {report.name!r} is up: {len(report.processes)} processes on {report.addresses}. Try:",
        f"  isthmus lab status{name}",
        f"  isthmus clusters{lab}",
    ]
    if target:
        lines += [
            *([f"  isthmus services{lab}"] if "SERVICE" in url else []),
            f"  isthmus lab exec{name} {target} -- curl -si {url}",
            f"  isthmus lab load{name} {target} {url} --rate 200 --duration 10s",
        ]
    return "\n".join([*lines, f"  isthmus lab down{name}"])


def render_status(report: LabReport) -> list[RenderableType]:
    """Returns the tables of `lab status`."""
    rows = [
        (
            process.target,
            process.zone or "-",
            _state(process),
            {True: "yes", False: "no", None: "-"}[process.ready],
            process.address,
            str(process.pid or "-"),
            ago(process.started) if process.pid else "-",
            f"{process.resident_bytes / _MEBI:.0f}" if process.pid else "-",
        )
        for process in report.processes
    ]
    shown: list[RenderableType] = [
        f"lab {report.name}: {report.phase}, {report.file}",
        "",
        table(["PROCESS", "ZONE", "STATE", "READY", "ADDRESS", "PID", "AGE", "MIB"], rows),
    ]
    shown_links = [*report.links, *(link for link in report.etcd_links if link.state is not LinkState.OPEN)]
    if shown_links:
        links = [(" - ".join(link.between), _link(link.state), f"{link.latency:g} ms") for link in shown_links]
        shown += ["", table(["LINK", "STATE", "ROUND TRIP"], links)]
    shown += [
        "",
        _memory_line(report),
    ]
    if report.phase is Phase.STARTING:
        shown += ["", *report.events]
    return shown


def _state(process: ProcessReport) -> str:
    if process.state is State.EXITED and process.exit_code is not None:
        code = process.exit_code
        return f"exited ({code})" if code >= 0 else f"died (signal {-code})"
    return process.state


def _link(state: LinkState) -> str:
    match state:
        case LinkState.OPEN:
            return "open"
        case LinkState.SILENT:
            return "cut (silent)"
        case LinkState.REFUSING:
            return "cut (refusing)"


def render_load(report: LoadReport) -> list[RenderableType]:
    """Returns the tables of `lab load`."""
    seconds = report.seconds
    shown: list[RenderableType] = [
        _load_line(report),
        "",
        table(["SECOND", "OK", "FAILED"], [(f"{each.second}", f"{each.ok}", f"{each.failed}") for each in seconds]),
    ]
    if report.answered_by:
        rows = [
            (each.cluster or "unknown", each.zone or "-", each.namespace or "-", each.workload or "-", str(each.count))
            for each in report.answered_by
        ]
        shown += ["", table(["CLUSTER", "ZONE", "NAMESPACE", "WORKLOAD", "ANSWERS"], rows)]
    if report.failures:
        shown += ["", table(["FAILURE", "COUNT"], [(text, str(count)) for text, count in report.failures.items()])]
    return shown


def render_demo(report: DemoReport, name: str) -> list[RenderableType]:
    """Returns the table and the verdict of the demo story."""
    rows = [_chapter_row(chapter) for chapter in report.chapters]
    columns = ["STEP", "SHOULD ANSWER", "ANSWERED", "AFTER", "GET", "FAILED", "POST", "IN FLIGHT", "FAILED", "HELD"]
    gets = sum(chapter.gets for chapter in report.chapters)
    posts = sum(chapter.posts for chapter in report.chapters)
    lost = sum(chapter.posts_in_flight for chapter in report.chapters)
    failures = [(each.title, text, str(count)) for each in report.chapters for text, count in each.failures.items()]
    shown: list[RenderableType] = ["", table(columns, rows)]
    if failures:
        shown += ["", table(["STEP", "FAILURE", "COUNT"], failures)]
    if report.held:
        verdict = (
            f"It held: none of {gets} GETs failed; {lost} of {posts} POSTs did, in flight on a killed process, "
            "where nobody may repeat them."
        )
    else:
        broken = ", ".join(chapter.title for chapter in report.chapters if not chapter.held)
        verdict = f"It did not hold: {broken}. See `isthmus lab logs east/shop/client/sidecar --name {name}`."
    return [*shown, "", verdict]


def _chapter_row(chapter: ChapterReport) -> Sequence[str]:
    places = ", ".join(f"{place} {count}" for place, count in chapter.answered_by.items())
    return (
        chapter.title,
        chapter.expected,
        places or "nobody",
        "-" if chapter.settled_after is None else f"{chapter.settled_after:.2f} s",
        str(chapter.gets),
        str(chapter.gets_failed),
        str(chapter.posts),
        str(chapter.posts_in_flight),
        str(chapter.posts_failed),
        "yes" if chapter.held else "NO",
    )


def _memory_line(report: LabReport) -> str:
    resident, proportional = report.resident_bytes / _MEBI, report.proportional_bytes / _MEBI
    return f"resident memory: {resident:.0f} MiB; {proportional:.0f} MiB when pages that processes share count once"


def _load_line(report: LoadReport) -> str:
    counts = f"{report.sent} requests, {report.ok} answered, {report.failed} failed"
    return f"{report.url}: {counts}; p50 {report.p50:.1f} ms, p99 {report.p99:.1f} ms, slowest {report.slowest:.1f} ms"
