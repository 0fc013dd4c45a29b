"""What became of a group: its tests, how its process ended, and whether it passed."""

from __future__ import annotations

import json
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["passed", "failed", "left out"]
_PYTEST = {2: "pytest was interrupted", 3: "pytest failed itself", 4: "pytest found no such test"}


@dataclass(frozen=True)
class Case:
    """A test that ended, with the reason if it did not pass."""

    name: str
    outcome: str
    seconds: float
    reason: str


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, negative for a signal; ``None`` if its time ran out."""

    code: int | None
    seconds: float
    limit_s: float


@dataclass(frozen=True)
class Outcome:
    """A group with its verdict. ``why`` is empty if it passed."""

    group: str
    state: State
    why: str = ""
    seconds: float = 0.0
    tests: tuple[Case, ...] = ()

    def count(self, outcome: str) -> int:
        """How many tests passed, failed or were skipped."""
        return sum(test.outcome == outcome for test in self.tests)

    def skips(self) -> dict[str, int]:
        """Skipped tests by reason, the most frequent first."""
        reasons = Counter(test.reason for test in self.tests if test.outcome == "skipped")
        return dict(reasons.most_common())

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; of tests that passed, the names and times only."""
        return {
            "group": self.group,
            "state": self.state,
            "why": self.why,
            "seconds": round(self.seconds, 1),
            **{name: self.count(name) for name in ("passed", "failed", "skipped")},
            "tests": [
                {"name": test.name, "outcome": test.outcome, "seconds": test.seconds}
                | ({"reason": test.reason} if test.reason else {})
                for test in self.tests
            ],
        }


def read_tests(lines: Path) -> tuple[tuple[Case, ...], str]:
    """The tests that ended, and the one that began and did not."""
    tests, running = [], ""
    text = lines.read_text("utf-8") if lines.is_file() else ""
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:  # the process was killed as it wrote
            continue
        running = found.get("begins", "")
        if "ends" in found:
            name = str(found["ends"]).removeprefix("tests/cuda/")
            tests.append(Case(name, found["outcome"], found["seconds"], found["reason"]))
    return tuple(tests), running.removeprefix("tests/cuda/")


def judge_tests(group: str, ended: Ended, lines: Path, *, may_skip: bool = False) -> Outcome:
    """The verdict on tests: they have to end by themselves, one has to pass, and none to fail.

    Args:
        group: its name.
        ended: how pytest's process ended.
        lines: what the plugin wrote.
        may_skip: whether it is no failure if every test was skipped.
    """
    tests, running = read_tests(lines)
    why = _how(ended, running)
    failed = sum(test.outcome == "failed" for test in tests)
    skips = Outcome(group, "failed", tests=tests).skips()
    state: State = "failed"
    if why:
        pass
    elif failed:
        why = f"{failed} of {len(tests)} tests failed"
    elif ended.code in _PYTEST:
        why = _PYTEST[ended.code]
    elif skips and len(tests) == sum(skips.values()):
        why = f"all tests were skipped: {next(iter(skips))}"
        state = "left out" if may_skip else "failed"
    elif not tests:
        why = "there was no test"
    elif ended.code:
        why = f"exit code {ended.code}"  # of a sanitizer that found something
    else:
        state = "passed"
    return Outcome(group, state, why, ended.seconds, tests)


def judge_script(group: str, ended: Ended, output: str) -> Outcome:
    """The verdict on a script, which counts as one test."""
    why = _how(ended, "")
    if not why and ended.code:
        last = output.strip().splitlines()[-1:] or ["it said nothing"]
        why = f"exit code {ended.code}: {last[0]}"
    test = Case(group, "failed" if why else "passed", round(ended.seconds, 3), why)
    return Outcome(group, "failed" if why else "passed", why, ended.seconds, (test,))


def passed(outcomes: list[Outcome]) -> bool:
    """The verdict on a run: no group failed, and at least one ran."""
    states = [outcome.state for outcome in outcomes]
    return "failed" not in states and "passed" in states


def _how(ended: Ended, running: str) -> str:
    """What is wrong with how a process ended, with the test that ran then; empty if nothing is."""
    where = f" in {running}" if running else ""
    if ended.code is None:
        return f"ran out of its {ended.limit_s:.0f} s{where}"
    if ended.code < 0:
        return f"ended by {signal.Signals(-ended.code).name}{where}"
    return f"ended with exit code {ended.code}{where}" if running else ""
