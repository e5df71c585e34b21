"""Spans of time as people write them: `250ms`, `4s`, `1.5m`, `24h`, `7d`. For options, lab files, annotations."""

import re
from datetime import timedelta

_SPAN = re.compile(r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,6})?)\s*(?P<unit>ms|s|m|h|d)")
_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}  # milliseconds


class InvalidSpan(ValueError):
    """A text that is no span of time; the message says why, and how one looks."""


def parse_span(text: str) -> timedelta:
    """Returns a span written as a number and its unit; raises InvalidSpan."""
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise InvalidSpan(f"{text!r} is no span of time: a number and ms, s, m, h or d, such as 30s")
    try:
        return float(match["number"]) * timedelta(milliseconds=_UNITS[match["unit"]])
    except OverflowError as error:
        raise InvalidSpan(f"{text!r} is longer than time can be counted") from error


def print_span(span: timedelta) -> str:
    """Inverse of `parse_span`, for spans of whole milliseconds: in the largest unit that divides it."""
    milliseconds = span // timedelta(milliseconds=1)
    unit = next(unit for unit in reversed(_UNITS) if milliseconds % _UNITS[unit] == 0) if milliseconds else "s"
    return f"{milliseconds // _UNITS[unit]}{unit}"
