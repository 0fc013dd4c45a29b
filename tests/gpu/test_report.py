"""The report: the same in JSON and Markdown, and what a run that was broken off leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.gpu import report
from tests.gpu.outcome import Case, Outcome

_FACTS: dict[str, Any] = {
    "commit": "abc",
    "machine": {"GPU 0": "a card"},
    "packages": {"numpy": "2.0", "torch": None},
    "warnings": ["it is warm"],
}
_PASSED = Outcome("first", "passed", "", 1.5, (Case("a::b", "passed", 1.25, ""),))
_FAILED = Outcome(
    "kernels",
    "failed",
    "1 of 2 tests failed",
    2.0,
    (Case("c::d", "failed", 0.5, "assert 1 == 2"), Case("c::e", "skipped", 0.0, "no moon")),
)
_LEFT_OUT = Outcome("memcheck", "left out", "compute-sanitizer is not on PATH")


def test_json_and_markdown_say_the_same(tmp_path: Path) -> None:
    report.write(tmp_path, _FACTS, [_PASSED, _FAILED, _LEFT_OUT], 3.5)
    data = json.loads((tmp_path / "report.json").read_text())
    assert (data["passed"], data["finished"], data["seconds"]) == (False, True, 3.5)
    assert [group["state"] for group in data["groups"]] == ["passed", "failed", "left out"]
    page = (tmp_path / "report.md").read_text()
    assert "**FAILED** in 4 s" in page
    assert "- GPU 0: a card" in page
    assert "- commit: abc" in page
    assert "- warning: it is warm" in page
    assert "| kernels | failed | 0 | 1 | 1 | 2.0 |" in page
    assert "- memcheck: compute-sanitizer is not on PATH" in page
    assert "### c::d\n\n```\nassert 1 == 2\n```" in page
    assert "- kernels: 1 × no moon" in page
    assert "- torch: not installed" in page
    assert "- 1.2 s: a::b" in page


def test_a_run_that_passed(tmp_path: Path) -> None:
    report.write(tmp_path, _FACTS, [_PASSED, _LEFT_OUT], 3.5)
    assert json.loads((tmp_path / "report.json").read_text())["passed"] is True
    page = (tmp_path / "report.md").read_text()
    assert "**passed** in 4 s" in page
    assert "## Failed" not in page
    assert "## Skipped" not in page


def test_a_run_that_was_broken_off_has_not_passed(tmp_path: Path) -> None:
    report.write(tmp_path, _FACTS, [_PASSED], 1.0, finished=False)
    data = json.loads((tmp_path / "report.json").read_text())
    assert (data["passed"], data["finished"]) == (False, False)
    assert "**BROKEN OFF**" in (tmp_path / "report.md").read_text()


def test_the_kit_is_named_where_there_is_one(tmp_path: Path) -> None:
    kit = {"commit": "def", "cuda": "13.0", "unpacked": ["pycuda"]}
    report.write(tmp_path, _FACTS | {"commit": None, "kit": kit}, [_PASSED], 1.0)
    page = (tmp_path / "report.md").read_text()
    assert (
        "- commit: unknown\n- kit: of commit def, for CUDA 13.0\n- unpacked from it: pycuda" in page
    )


def test_the_table_has_a_row_for_each_group_and_what_is_wrong() -> None:
    header, *rows = report.table([_PASSED, _FAILED, _LEFT_OUT]).splitlines()
    assert header.split() == ["group", "verdict", "passed", "failed", "skipped", "seconds"]
    assert rows[0].split() == ["first", "passed", "1", "0", "0", "1.5"]
    assert rows[-2:] == [
        "kernels: failed: 1 of 2 tests failed",
        "memcheck: left out: compute-sanitizer is not on PATH",
    ]
