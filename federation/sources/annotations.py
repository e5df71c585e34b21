"""What the mesh's annotations say: who gets to know an export, what callers of a service want of its members. Pure.

    isthmus.dev/export-to: west, tier=gold                    on a ServiceExport: names or labels of members
    isthmus.dev/when-stale: keep | prefer-local | drop-after=30s    on a ServiceImport or a Service
    isthmus.dev/member-weights: east=90, west=10                    likewise

A text that is wrong says nothing: half of a wish may be the opposite of it.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import msgspec

from federation.model import MemberSelector, ServicePolicy, WhenStale
from federation.sources.conversion import near
from federation.sources.fields import Field
from federation.spans import InvalidSpan, parse_span, print_span
from trust.spiffe import ClusterName, InvalidName, parse_cluster

EXPORT_TO = "isthmus.dev/export-to"
WHEN_STALE = "isthmus.dev/when-stale"
MEMBER_WEIGHTS = "isthmus.dev/member-weights"
TCP_USES = "isthmus.dev/tcp-uses"

SHORTEST_DROP = timedelta(seconds=2)
"""A member that lives is heard once a second: with less, a beat that is late would take its endpoints away."""
MOST_WEIGHT = 1000
_MOST_SELECTORS = 64

_PREFIX = "isthmus.dev/"
_DROP_AFTER = "drop-after"
_WORDS = (WhenStale.KEEP.value, WhenStale.PREFER_LOCAL.value, _DROP_AFTER)
_STALE_HINT = "keep, prefer-local, or drop-after=30s"
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_PREFIX = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
IMPLIED_LABELS = ("topology.kubernetes.io/region", "isthmus.dev/network", "isthmus.dev/cloud", "isthmus.dev/cluster")
"""What every member has by being what it is (see `peering.visibility`)."""


class Wishes(msgspec.Struct, frozen=True):
    """What the annotations of one object say of a service; None: nothing."""

    when_stale: tuple[WhenStale, timedelta] | None = None
    weights: tuple[tuple[ClusterName, int], ...] | None = None


NO_WISHES = Wishes()


def combine(first: Wishes, second: Wishes) -> ServicePolicy | None:
    """Returns what two objects say together, where `first` has the last word; None when neither says anything."""
    if first == NO_WISHES and second == NO_WISHES:
        return None
    when_stale, drop_after = first.when_stale or second.when_stale or (WhenStale.KEEP, timedelta())
    weights = first.weights if first.weights is not None else second.weights or ()
    return ServicePolicy(when_stale=when_stale, drop_after=drop_after, weights=weights)


def contradictions(first: Wishes, second: Wishes) -> Iterable[tuple[str, str, str]]:
    """Yields each annotation about which two objects differ, with what each of them says."""
    if first.when_stale and second.when_stale and first.when_stale != second.when_stale:
        yield WHEN_STALE, _print_stale(first.when_stale), _print_stale(second.when_stale)
    if first.weights and second.weights and first.weights != second.weights:
        yield MEMBER_WEIGHTS, _print_weights(first.weights), _print_weights(second.weights)


def check_annotations(annotations: Field, known: Iterable[str], *, kind: str) -> None:
    """Warns of annotations of ours that are misspelt, or mean nothing on this kind of object."""
    if not isinstance(annotations.value, dict):
        return
    known, ours = frozenset(known), (EXPORT_TO, WHEN_STALE, MEMBER_WEIGHTS, TCP_USES)
    for name in sorted(name for name in annotations.value if name.startswith(_PREFIX) and name not in known):
        if name in ours:
            belongs = {EXPORT_TO: "the ServiceExport", TCP_USES: "the Pod"}.get(
                name, "the ServiceImport or the Service"
            )
            annotations[name].warn(f"`{name}` has no effect on a {kind}", f"write it on {belongs}")
        elif meant := near(name, ours):
            annotations[name].warn(f"`{name}` is not known and has no effect", f"did you mean `{meant}`?")


def read_wishes(annotations: Field) -> Wishes:
    """Reads what an object says of a service; a wrong text is noted as an error and says nothing."""
    return Wishes(_when_stale(annotations[WHEN_STALE]), _weights(annotations[MEMBER_WEIGHTS]))


def read_export_to(field: Field) -> tuple[MemberSelector, ...]:
    """Reads whom an export is for, sorted; nothing there, or errors noted: an empty tuple."""
    parts = _parts(field, "leave the annotation out to export to all members, or name some: west, tier=gold")
    found: set[MemberSelector] = set()
    for part in parts:
        selector = _selector(part, field)
        if selector in found:
            field.warn(f"{part!r} is here twice", "keep one")
        elif selector is not None:
            found.add(selector)
    if len(found) > _MOST_SELECTORS:
        field.error(f"{len(found)} members or labels are more than {_MOST_SELECTORS}", "give the members a label")
    return tuple(sorted(found))


def read_created(field: Field) -> datetime | None:
    """Reads a creationTimestamp (RFC 3339), in UTC; None, with a warning if there is something, when there is none."""
    text = field.text()
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    field.warn(f"{text!r} is not a moment with a time zone", "such as 2026-01-31T12:00:00Z")
    return None


def parse_label(text: str) -> tuple[str, str]:
    """Parses `label=value`, both as Kubernetes has them (the value may be empty); raises ValueError."""
    label, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise ValueError(f"{text!r} is not label=value")
    prefix, slash, name = label.rpartition("/")
    if not _LABEL_NAME.fullmatch(name) or (slash and not _LABEL_PREFIX.fullmatch(prefix)):
        raise ValueError(f"{label!r} is not the name of a label")
    if value and not _LABEL_NAME.fullmatch(value):
        raise ValueError(f"{value!r} is not the value of a label")
    return label, value


def _parts(field: Field, hint: str) -> list[str]:
    """Returns the parts between commas; none, and an error, where one is empty."""
    if not field.is_given:
        return []
    if not isinstance(field.value, str):
        field.text()
        return []
    parts = [part.strip() for part in field.value.split(",")]
    if not field.value.strip():
        field.error("the value is empty", hint)
        return []
    if not all(parts):
        field.error(f"there is nothing between two commas of {field.value!r}", hint)
        return []
    return parts


def _selector(part: str, field: Field) -> MemberSelector | None:
    if "=" in part:
        try:
            label, value = parse_label(part)
        except ValueError as error:
            field.error(str(error), "labels are written label=value, as in Kubernetes")
            return None
        if label not in IMPLIED_LABELS and (meant := near(label, IMPLIED_LABELS)):
            field.warn(f"no member has the label {label!r} by itself", f"did you mean `{meant}`?")
        return MemberSelector(label=label, value=value)
    try:
        return MemberSelector(name=parse_cluster(part))
    except InvalidName:
        field.error(f"{part!r} is neither the name of a member nor label=value", "such as west, tier=gold")
        return None


def _when_stale(field: Field) -> tuple[WhenStale, timedelta] | None:
    text = field.text().strip()
    if not field.is_given or not isinstance(field.value, str):
        return None
    word, equals, span = (part.strip() for part in text.partition("="))
    if not text:
        field.error("the value is empty", f"leave the annotation out to keep endpoints, or write {_STALE_HINT}")
    elif word not in _WORDS:
        meant = near(word, [*_WORDS, "drop"])
        meant = _DROP_AFTER if meant == "drop" else meant
        field.error(f"{word!r} is not known here", f"did you mean `{meant}`?" if meant else f"write {_STALE_HINT}")
    elif word == _DROP_AFTER:
        return _drop(field, span)
    elif equals:
        field.error(f"{word!r} takes no value", f"write {_STALE_HINT}")
    else:
        return WhenStale(word), timedelta()
    return None


def _drop(field: Field, text: str) -> tuple[WhenStale, timedelta] | None:
    try:
        span = parse_span(text)
    except InvalidSpan as error:
        field.error(str(error), "write drop-after=30s")
        return None
    if span < SHORTEST_DROP:
        least = print_span(SHORTEST_DROP)
        field.error(f"{text} is too short: a beat that is late would take endpoints away", f"at least {least}")
        return None
    return WhenStale.DROP, span


def _weights(field: Field) -> tuple[tuple[ClusterName, int], ...] | None:
    hint = "such as east=90, west=10"
    parts = _parts(field, f"leave the annotation out to call the nearest, or write weights {hint}")
    weights: dict[ClusterName, int] = {}
    is_wrong = False
    for part in parts:
        name, equals, number = (piece.strip() for piece in part.partition("="))
        try:
            member = parse_cluster(name)
        except InvalidName:
            field.error(f"{name!r} is not the name of a member", hint)
            is_wrong = True
            continue
        if not equals or not re.fullmatch(r"[0-9]{1,9}", number) or int(number) > MOST_WEIGHT:
            said = f"{number!r} is not a weight" if equals else f"{part!r} has no weight"
            field.error(f"{said}: a whole number from 0 to {MOST_WEIGHT}", hint)
            is_wrong = True
        elif member in weights:
            field.error(f"{member} is here twice", "keep one")
            is_wrong = True
        else:
            weights[member] = int(number)
    if parts and not is_wrong and not any(weights.values()):
        field.error("all weights are 0: nobody would be called", "give one member a weight of 1 or more")
        is_wrong = True
    return None if is_wrong or not parts else tuple(sorted(weights.items()))


def _print_stale(said: tuple[WhenStale, timedelta]) -> str:
    when, span = said
    return f"{_DROP_AFTER}={print_span(span)}" if when is WhenStale.DROP else when.value


def _print_weights(weights: tuple[tuple[ClusterName, int], ...]) -> str:
    return ", ".join(f"{member}={weight}" for member, weight in weights)
