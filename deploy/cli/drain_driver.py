"""Drives a drain: lowers the weight step by step, watches the counters of all callers, and ends when they say so.

Nothing is remembered here. The weight in force stands in the etcds of the members, so a drain that was interrupted at
any moment goes on from there when its command is run again; and until then it stays as it is.
"""

import asyncio
from datetime import timedelta
from difflib import get_close_matches

import msgspec

from deploy.cli import draining
from deploy.cli.drain_outcome import DrainOutcome, MemberWeight, Reached, UndrainOutcome
from deploy.cli.drain_run import SEVERED, Run, Tools
from deploy.cli.draining import FULL, WINDOW, AbortRule, Errors, Scope
from deploy.failures import CommandFailed


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done. `over` is the length of the ramp, `grace` what open streams get at weight 0.

    `sever` cuts what is open after that; `force` accepts services that stay, and callers that nobody counts.
    """

    scope: Scope
    over: timedelta
    grace: timedelta
    abort_on: AbortRule | None = None
    sever: bool = False
    force: bool = False


async def drain(order: Order, tools: Tools) -> DrainOutcome:
    """Drains a member, or goes on with that; raises CommandFailed when nobody can be told, or it makes no sense."""
    began = tools.clock()
    run = await _begin(order, tools)
    was_drained = run.is_as_ordered()
    steps: list[Reached] = []
    broken: Errors | None = None
    weights = draining.ramp(order.over, since=run.weight)
    if not weights and not was_drained:
        await run.lower(0)
    for step in weights:
        await run.lower(step.weight)
        broken = await run.hold(step.span if step.weight else timedelta(), order.abort_on)
        if step.weight or broken:
            steps.append(run.now())
        if broken:
            break
    is_empty, severed = False, False
    if not broken:
        run.at_zero = run.tally
        end = await run.emptied(order.grace, order.abort_on, force=order.force)
        broken, is_empty = (end, False) if isinstance(end, Errors) else (None, end)
    if not broken and not is_empty and order.sever and not run.by_itself:
        tools.tell(
            f"warning: only {run.scope.cluster} itself ends what is open, and it is not reached: nothing is severed"
        )
    elif not broken and not is_empty and order.sever:
        tools.tell(f"The grace is over; severing what is open: {_open(run)}.")
        if any(one.sever for one in run.drains()):
            await run.lower(0)  # a drain severs once: what was opened since is cut by the next one
        await run.lower(0, sever=True)
        severed = True
        run.at_zero = run.tally
        is_empty = await run.emptied(SEVERED, None, force=order.force) is True
    if not broken:
        end_of_it = run.now()
        steps.append(msgspec.structs.replace(end_of_it, calls=0.0) if is_empty else end_of_it)  # proven, not measured
    aborted, refused = "", run.refused
    if broken:
        rule = order.abort_on
        aborted = f"{rule}: {broken} of the calls that others answer instead failed in the last {WINDOW:.0f} s"
        tools.tell(f"Aborting, restoring the weight of {run.scope}: {aborted}.")
        refused = {one.cluster: one for one in await run.restore()}
    not_reached, uncounted = run.not_reached(), run.uncounted()
    is_known = not (not_reached or uncounted or run.kept) or order.force
    return DrainOutcome(
        cluster=order.scope.cluster,
        service=order.scope.service,
        weight=run.weight_in_force(),
        is_done=is_empty and is_known and not refused,
        is_empty=is_empty,
        at=began,
        seconds=round((tools.clock() - began).total_seconds(), 1),
        steps=tuple(steps),
        was_drained=was_drained,
        severed=severed,
        aborted=aborted,
        told=() if run.by_itself and not run.alone else tuple(sorted(run.alone)),
        refused=tuple(refused.values()),
        remaining=tuple(one for one in run.remaining() if not broken and (not is_empty or one.service in run.kept)),
        kept=tuple(sorted(run.kept)),
        not_reached=not_reached,
        uncounted=uncounted,
    )


async def _begin(order: Order, tools: Tools) -> Run:
    run = Run(tools, order.scope)
    await run.see()
    scope, known = order.scope, run.look.known()
    if not run.look.members:
        reasons = "; ".join(one.reason for one in run.look.silent)
        raise CommandFailed(f"no control plane was reached: {reasons}", "name those of the callers with --contexts")
    if scope.cluster not in known:
        near = get_close_matches(scope.cluster, sorted(known), n=2)
        meant = f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(sorted(known)) or 'none'}"
        raise CommandFailed(f"nobody here knows a cluster {scope.cluster}, or it has left", meant)
    if known == {scope.cluster}:
        raise CommandFailed(f"{scope.cluster} is the only member: nobody else could answer its calls")
    services = await tools.mesh.services(run.look)
    every = {name for found in services.values() for name in draining.names(found)}
    if scope.service and scope.service not in every:
        near = get_close_matches(scope.service, sorted(every), n=2)
        meant = f"did you mean {' or '.join(near)}?" if near else "isthmus services lists them"
        raise CommandFailed(f"nobody here knows a service {scope.service}", meant)
    offered = frozenset(name for found in services.values() for name in draining.offered(scope.cluster, found))
    run.services = offered & {scope.service} if scope.service else offered
    found = (draining.only_there(scope, found) for caller, found in services.items() if caller in run.callers)
    run.kept = frozenset(name for one in found for name in one)
    run.alone = {name for name, member in run.look.members.items() if run.asked(name, member)} - {scope.cluster}
    run.weight = run.weight_in_force()
    run.by_itself = run.own is not None
    _say(run, order)
    return run


def _say(run: Run, order: Order) -> None:
    scope, say = run.scope, run.tools.tell
    if not run.services:
        say(f"warning: {scope} offers nothing that has a ready endpoint now")
    if run.kept:
        say(f"warning: these stay, nobody else offers them: {', '.join(sorted(run.kept))}")
    if not run.by_itself:
        silent = {one.cluster: one.reason for one in run.look.silent}
        reason = silent.get(scope.cluster, "no control plane of it is named here")
        say(f"warning: the control plane of {scope.cluster} is not reached: each member is told for itself ({reason})")
    for one in run.not_reached():
        heard = f"; it hears of the drain from {scope.cluster}" if run.by_itself else "; it goes on as before"
        say(f"warning: {one.cluster} is not reached, and not counted: {one.reason}{heard}")
    if run.is_as_ordered():
        say(f"{scope} is at 0 % already; looking whether it carries nothing.")
        return
    steps = draining.ramp(order.over, since=run.weight)
    goes_on = f"goes on from {run.weight} %" if run.weight < FULL else "begins"
    each = f"{len(steps)} steps of {steps[0].span.total_seconds():g} s" if len(steps) > 1 else "at once"
    say(f"The drain of {scope} {goes_on}: {each}, then up to {order.grace.total_seconds():g} s for what is open.")


def _open(run: Run) -> str:
    return ", ".join(f"{one.open} from {one.caller} to {one.service}" for one in run.remaining() if one.open) or "none"


async def undrain(scope: Scope, over: timedelta, tools: Tools) -> UndrainOutcome:
    """Restores the weight of a member, or of a service in it; raises CommandFailed when nobody is reached."""
    run = Run(tools, msgspec.structs.replace(scope, clients=True))  # all that was asked for is to end
    await run.see()
    if not run.look.members:
        reasons = "; ".join(one.reason for one in run.look.silent)
        raise CommandFailed(f"no control plane was reached: {reasons}", "name those that were told with --contexts")
    found = run.drains()
    known = run.look.known()
    if not found and scope.cluster not in known:
        raise CommandFailed(
            f"nobody here knows a cluster {scope.cluster}", f"known are: {', '.join(sorted(known)) or 'none'}"
        )
    run.weight = min((one.weight for one in found), default=FULL)
    loop = asyncio.get_running_loop()
    for step in draining.climb(over, since=run.weight) if found else ():
        if step.weight == FULL:
            break
        await run.raise_to(step.weight)
        tools.tell(f"{scope}: {step.weight} %")
        until = loop.time() + step.span.total_seconds()
        while (left := until - loop.time()) > 0:
            tools.watch(f"the next step in {left:.0f} s", run.now())
            await asyncio.sleep(min(left, 0.5))
            await run.see()
    refused = await run.restore() if found else ()
    owners = {one.asked_of for one in found}
    away = run.look.not_reached(without=[] if scope.cluster in owners else [scope.cluster])
    weights = [
        MemberWeight(name, draining.weight_at(name, member.drains, run.scope))
        for name, member in sorted(run.look.members.items())
    ]
    others = {
        f"{one.service or 'all services'} at {one.weight} %"
        for member in run.look.members.values()
        for one in member.drains
        if one.cluster == scope.cluster and one.service != scope.service
    }
    return UndrainOutcome(
        cluster=scope.cluster,
        service=scope.service,
        is_done=not (run.drains() or refused or away),
        was_drained=bool(found),
        weights=tuple(weights),
        still=tuple(sorted(others)),
        refused=refused,
        not_reached=away,
    )
