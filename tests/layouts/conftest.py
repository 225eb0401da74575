"""One line an architecture and a total, after the conformance suite."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # the suite's own helpers are imported as ``layouts.<module>``


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        value
        for report in terminalreporter.getreports("passed")
        for key, value in getattr(report, "user_properties", ())
        if key == "architecture"
    ]
    if lines:
        terminalreporter.section("architectures whose heads match the running model")
        for line in sorted(lines):
            terminalreporter.write_line(line)
        terminalreporter.write_line(f"{len(lines)} architectures and variants")
