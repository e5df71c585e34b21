"""The table of faults and promises that a run of these tests prints at its end."""

from collections.abc import Sequence

import msgspec


class Outcome(msgspec.Struct, frozen=True):
    """One row: what was broken and what became of it. Times in seconds; None: it did not happen.

    `detected` is from the fault to what `shown` says, `recovered` from the repair until the picture is what it was.
    `in_flight` are POSTs that were under way in what was killed or cut: nobody may repeat them.
    `notes` tell more times, of things that this row promises beside.
    """

    fault: str
    gets: int
    gets_failed: int
    posts: int
    posts_failed: int
    in_flight: int
    shown: str
    detected: float | None
    recovered: float | None
    notes: str
    held: bool


def render(rows: Sequence[Outcome]) -> list[str]:
    """Returns the lines of the table."""
    heads = ("fault", "GET", "failed", "POST", "failed", "in flight", "detected", "recovered", "held", "shown; also")
    cells = [
        (
            row.fault,
            str(row.gets),
            str(row.gets_failed),
            str(row.posts),
            str(row.posts_failed),
            str(row.in_flight),
            _seconds(row.detected),
            _seconds(row.recovered),
            "yes" if row.held else "NO",
            "; ".join(text for text in (row.shown, row.notes) if text),
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in (heads, *cells)) for column in range(len(heads))]
    return [
        "  ".join(
            text.ljust(width) if column in (0, len(heads) - 1) else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (heads, *cells)
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
