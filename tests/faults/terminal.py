"""Prints the table of all rows at the end of a run, wherever they ran: here, or in worker processes of pytest-xdist.

A row travels to the process that prints as a property of its test's report.
"""

from collections.abc import Callable

import msgspec
import pytest

from tests.faults.table import Outcome, render

_PROPERTY = "row of the faults"

RecordProperty = Callable[[str, object], None]
"""The fixture `record_property`."""


def record(record_property: RecordProperty, outcome: Outcome) -> None:
    """Sends a row on its way to the table."""
    record_property(_PROPERTY, msgspec.to_builtins(outcome))


class _Table:
    """The rows whose tests have ended, in the order of their ends."""

    def __init__(self) -> None:
        self._rows: list[Outcome] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            said = [value for name, value in report.user_properties if name == _PROPERTY]
            self._rows += [msgspec.convert(each, Outcome) for each in said]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._rows:
            terminalreporter.section("faults and promises")
            for line in render(self._rows):
                terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Table(), "table of the faults")
