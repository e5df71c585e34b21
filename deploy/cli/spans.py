"""Spans of time as options take them: `90s`, `15m`, `24h`, `7d`."""

from datetime import timedelta

import click

from federation.spans import InvalidSpan, parse_span


class Span(click.ParamType[timedelta]):
    """A span of time such as `90s`, `15m`, `24h`, `7d`."""

    name = "span"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Parses the text; fails as wrong usage."""
        if isinstance(value, timedelta):
            return value
        try:
            return parse_span(str(value))
        except InvalidSpan as error:
            return self.fail(str(error), param, ctx)
