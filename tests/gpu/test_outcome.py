"""What is a verdict on a group and on a run: hangs, crashes, skips and runs without tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.gpu.outcome import Ended, Outcome, State, judge_script, judge_tests, passed

_PASSED = {"ends": "tests/cuda/test_a.py::test_1", "outcome": "passed", "seconds": 1, "reason": ""}
_FAILED = {"ends": "test_a.py::test_2", "outcome": "failed", "seconds": 1, "reason": "assert 0"}
_SKIPPED = {"ends": "test_a.py::test_3", "outcome": "skipped", "seconds": 0, "reason": "no torch"}
_BEGINS = {"begins": "tests/cuda/test_a.py::test_4"}


def _judged(folder: Path, code: int | None, *lines: dict[str, Any], **options: Any) -> Outcome:
    path = folder / "lines"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return judge_tests("group", Ended(code, 7.0, 60), path, **options)


@pytest.mark.parametrize(
    ("code", "lines", "state", "why"),
    [
        (0, [_PASSED], "passed", ""),
        (0, [_PASSED, _SKIPPED], "passed", ""),
        (1, [_PASSED, _FAILED], "failed", "1 of 2 tests failed"),
        (0, [_SKIPPED, _SKIPPED], "failed", "all tests were skipped: no torch"),
        (5, [], "failed", "there was no test"),
        (4, [], "failed", "pytest found no such test"),
        (2, [_FAILED], "failed", "1 of 1 tests failed"),  # a file that does not import
        (99, [_PASSED], "failed", "exit code 99"),
        (None, [_PASSED, _BEGINS], "failed", "ran out of its 60 s in test_a.py::test_4"),
        (None, [], "failed", "ran out of its 60 s"),
        (-11, [_PASSED, _BEGINS], "failed", "ended by SIGSEGV in test_a.py::test_4"),
        (3, [_PASSED, _BEGINS], "failed", "ended with exit code 3 in test_a.py::test_4"),
    ],
)
def test_the_verdict_on_tests(
    tmp_path: Path, code: int | None, lines: list[dict[str, Any]], state: State, why: str
) -> None:
    found = _judged(tmp_path, code, *lines)
    assert (found.state, found.why, found.seconds) == (state, why, 7.0)


def test_where_all_may_be_skipped_the_group_is_left_out(tmp_path: Path) -> None:
    found = _judged(tmp_path, 0, _SKIPPED, may_skip=True)
    assert (found.state, found.why) == ("left out", "all tests were skipped: no torch")
    assert _judged(tmp_path, 5, may_skip=True).state == "failed"


def test_a_line_that_was_not_finished_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text(f'{json.dumps(_PASSED)}\n{json.dumps(_BEGINS)}\n{{"ends": "te')
    found = judge_tests("group", Ended(None, 60, 60), tmp_path / "lines")
    assert [test.name for test in found.tests] == ["test_a.py::test_1"]
    assert found.why == "ran out of its 60 s in test_a.py::test_4"


def test_a_file_without_lines_is_a_run_without_tests(tmp_path: Path) -> None:
    found = judge_tests("group", Ended(0, 1, 60), tmp_path / "absent")
    assert (found.state, found.why) == ("failed", "there was no test")


def test_the_verdict_on_a_script() -> None:
    assert judge_script("s", Ended(0, 1, 60), "").state == "passed"
    failed = judge_script("s", Ended(1, 1, 60), "Traceback\nValueError: no\n")
    assert (failed.state, failed.why) == ("failed", "exit code 1: ValueError: no")
    assert failed.count("failed") == 1
    assert judge_script("s", Ended(None, 61, 60), "").why == "ran out of its 60 s"


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["passed"], True),
        (["passed", "left out"], True),
        (["passed", "failed"], False),
        (["left out", "left out"], False),
        ([], False),
    ],
)
def test_a_run_passes_if_a_group_ran_and_none_failed(states: list[State], expected: bool) -> None:
    assert passed([Outcome("group", state) for state in states]) is expected


def test_counts_and_skips_are_reported(tmp_path: Path) -> None:
    other = _SKIPPED | {"reason": "no sample"}
    found = _judged(tmp_path, 1, _PASSED, _FAILED, _SKIPPED, other, _SKIPPED)
    assert found.skips() == {"no torch": 2, "no sample": 1}
    data = found.as_dict()
    assert (data["passed"], data["failed"], data["skipped"]) == (1, 1, 3)
    assert data["tests"][1]["reason"] == "assert 0"
