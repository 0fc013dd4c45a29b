"""A pytest plugin that writes a line as a test begins and one as it ends: a killed run still tells.

The file is the one that ``FEWSTEP_TEST_LINES`` names; a line is a JSON object, ``{"begins": ID}``,
or ``{"ends": ID, "outcome": "passed" | "failed" | "skipped", "seconds": S, "reason": TEXT}``. A
file that cannot be collected counts as a test that failed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "FEWSTEP_TEST_LINES"
_REASON = 2000  # characters


def pytest_configure(config: pytest.Config) -> None:
    """Begin, where a file is named."""
    if path := os.environ.get(VARIABLE):
        config.pluginmanager.register(_Lines(Path(path)))


class _Lines:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._reports: list[pytest.TestReport] = []

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._reports.clear()
        self._write(begins=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reports.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        outcomes = [report.outcome for report in self._reports]
        outcome = next((each for each in ("failed", "skipped") if each in outcomes), "passed")
        texts = [_reason(report) for report in self._reports if report.outcome == outcome]
        seconds = sum(report.duration for report in self._reports)
        self._write(ends=nodeid, outcome=outcome, seconds=round(seconds, 3), reason=texts[0])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            outcome, reason = report.outcome, _reason(report)
            self._write(ends=report.nodeid, outcome=outcome, seconds=0.0, reason=reason)

    def _write(self, **line: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test was skipped, or the end of how it failed; empty if it passed."""
    if report.passed:
        return ""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return report.longreprtext[-_REASON:]
