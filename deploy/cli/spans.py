"""Spans of time as options take them: `90s`, `15m`, `24h`, `7d`."""

from datetime import timedelta

import click

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}  # seconds


class Span(click.ParamType[timedelta]):
    """A span of time such as `90s`, `15m`, `24h`, `7d`."""

    name = "span"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Parses the text; fails as wrong usage."""
        if isinstance(value, timedelta):
            return value
        text = str(value)
        if text[:-1].isdecimal() and text[-1] in _UNITS:
            try:
                return timedelta(seconds=int(text[:-1]) * _UNITS[text[-1]])
            except (OverflowError, ValueError):
                return self.fail(f"{text!r} is longer than time can be counted", param, ctx)
        return self.fail(f"{text!r} is no span of time: a whole number and s, m, h or d, such as 24h", param, ctx)
