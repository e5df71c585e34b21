"""How a drain and its undoing are shown to people: as they go on, and how they ended."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.console import RenderableType

from deploy.cli.drain_outcome import DrainOutcome, Reached, UndrainOutcome
from deploy.cli.output import ago, table
from deploy.cli.survey import Silent
from deploy.cli.trust_display import silent_table
from federation.reports import DrainReport


def line_of(now: Reached) -> str:
    """Returns the state of a drain in one line."""
    calls = "- calls/s" if now.calls is None else f"{now.calls:.1f} calls/s"
    return f"{now.weight:3} %  {calls}  {now.open} open  errors elsewhere {now.errors}"


def render_drain(outcome: DrainOutcome, undo: str) -> list[RenderableType]:
    """Returns the tables and the verdict; `undo` is the command that restores the weight."""
    what = f"{outcome.service} in {outcome.cluster}" if outcome.service else outcome.cluster
    shown: list[RenderableType] = []
    if outcome.steps:
        rows = [
            (
                f"{step.at:%H:%M:%S}",
                f"{step.weight} %",
                "-" if step.calls is None else f"{step.calls:.1f}",
                str(step.open),
                str(step.errors),
            )
            for step in outcome.steps
        ]
        shown += [table(["TIME (UTC)", "WEIGHT", "CALLS/S", "OPEN", "ERRORS ELSEWHERE"], rows), ""]
    if outcome.remaining:
        left = [(one.caller, one.service, str(one.open), str(one.calls)) for one in outcome.remaining]
        shown += [table(["CALLERS OF", "TO SERVICE", "STILL OPEN", "CALLS SINCE 0 %"], left), ""]
    shown += _not_told(outcome.refused, outcome.not_reached)
    if any(one.caller == outcome.cluster for one in outcome.remaining):
        shown += [f"What {outcome.cluster} itself calls by svc.cluster.local names stays: nobody else has those.", ""]
    if outcome.uncounted:
        shown += [*outcome.uncounted, ""]
    if outcome.kept:
        shown += [f"Stays, nobody else offers it: {', '.join(outcome.kept)}.", ""]
    if outcome.told:
        shown += [f"Told for itself alone: {', '.join(outcome.told)}.", ""]
    return [*shown, _verdict(outcome, what, undo)]


def _verdict(outcome: DrainOutcome, what: str, undo: str) -> str:
    if outcome.aborted:
        end = f"{what} has weight {outcome.weight} % again" if outcome.weight == 100 else f"{what} is not restored yet"
        return f"Aborted: {end}. {outcome.aborted}."
    severed = " What was open after the grace was severed." if outcome.severed else ""
    if outcome.is_done:
        but = " but for what is named above" if outcome.kept or outcome.not_reached or outcome.uncounted else ""
        took = f"after {outcome.seconds:.0f} s" if not outcome.was_drained else "still"
        return f"{what} carries nothing{but}, {took}, by the counters of all its callers.{severed} To undo it: {undo}"
    if outcome.is_empty:
        counted = f"{what} carries nothing that was counted, but not all is known (see above)"
        return f"Not finished: {counted}.{severed} --force accepts that. To undo it: {undo}"
    if outcome.remaining:
        hint = "" if outcome.severed else "; --sever cuts it"
        return (
            f"Not finished: {what} is at {outcome.weight} % and still carries what is shown above{hint}. Undo: {undo}"
        )
    unproven = "the counters do not prove that it carries nothing"
    return f"Not finished: {what} is at {outcome.weight} %, but {unproven}. Undo: {undo}"


def drains_table(drains: Iterable[DrainReport], now: datetime) -> RenderableType:
    """Makes the table of the drains in force; one that several members report stands there once."""
    once = {(one.cluster, one.service, one.asked_of): one for one in drains}
    kept: dict[tuple[str, str, str], set[str]] = {}
    for one in drains:
        kept.setdefault((one.cluster, one.service, one.asked_of), set()).update(one.kept)
    rows = [
        (
            one.cluster,
            one.service or "all",
            f"{one.weight} %",
            _whose(one),
            ago(one.since, now),
            ", ".join(sorted(kept[key])) or "-",
        )
        for key, one in sorted(once.items())
    ]
    return table(["DRAINED", "SERVICE", "WEIGHT", "WHOSE CALLS LEAVE", "SINCE", "STAYS"], rows)


def _whose(drain: DrainReport) -> str:
    if drain.asked_of != drain.cluster:
        return f"{drain.asked_of}'s"
    return "everybody's, also its own" if drain.clients else "everybody's"


def render_undrain(outcome: UndrainOutcome) -> list[RenderableType]:
    """Returns the table and the verdict."""
    what = f"{outcome.service} in {outcome.cluster}" if outcome.service else outcome.cluster
    shown: list[RenderableType] = []
    if outcome.was_drained:
        weights = [(one.cluster, f"{one.weight} %") for one in outcome.weights]
        shown += [table(["CALLERS OF", f"WEIGHT OF {outcome.cluster.upper()}"], weights), ""]
    shown += _not_told(outcome.refused, outcome.not_reached)
    if outcome.still:
        shown += [f"Still drained: {', '.join(outcome.still)} of {outcome.cluster}.", ""]
    if not outcome.was_drained:
        unknown = ", as far as is known" if outcome.not_reached else ""
        return [*shown, f"{what} is not drained{unknown}: there is nothing to undo."]
    if outcome.is_done:
        return [*shown, f"{what} has its full weight again in all members."]
    return [*shown, f"Not finished: the weight of {what} is not restored, or not known, in all members. Run it again."]


def _not_told(refused: Sequence[Silent], not_reached: Sequence[Silent]) -> list[RenderableType]:
    shown: list[RenderableType] = []
    if refused:
        shown += [table(["MEMBER", "NOT TOLD BECAUSE"], [(one.cluster, one.reason) for one in refused]), ""]
    if not_reached:
        shown += [silent_table(not_reached), ""]
    return shown
