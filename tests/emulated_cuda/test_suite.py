"""All of ``tests/cuda`` under the emulated driver, one process for each way that a GPU may behave.

Work runs when somebody waits for it, or at once; memory is the GPU's own, or shared with the host;
another architecture; threads in another order. In each, tests have to run and pass, none may be
skipped, and in the end nothing may be left in the driver.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.emulated_cuda.build import CannotBuild, Installation, build, host_kernels
from tests.emulated_cuda.run import KERNELS, ROOT, environment

_TESTS = ROOT / "tests" / "cuda"
_NEEDS_A_CARD = frozenset(("onnxruntime_provider", "torch_engine"))
"""Their engines launch kernels of PyTorch and onnxruntime-gpu, of which there is no host build."""
_ALL = (
    frozenset(path.stem.removeprefix("test_") for path in _TESTS.glob("test_*.py")) - _NEEDS_A_CARD
)
_LOOP = frozenset(
    (
        *("buffers", "device", "generation", "graph", "lost_gpu", "memory", "opening"),
        *("other_family", "replays", "tensorrt", "tensorrt_bundle", "tensorrt_dimensions"),
        *("times", "verified_engines"),
    )
)
_KERNELS = _ALL - _LOOP
_SAME_IN_ANY_ORDER = frozenset(("kernel_limits", "official_rollouts", "philox"))


@dataclass(frozen=True)
class Mode:
    """Settings of the driver, and the test files that are to run with them.

    ``leave_out``: tests that would show the same again, by a part of their name.
    """

    settings: dict[str, Any]
    files: frozenset[str]
    leave_out: str = ""


_MODES = {
    "lazy streams": Mode({"streams": "lazy"}, _ALL),
    "eager streams": Mode(
        {"streams": "eager"},
        frozenset(("device", "generation", "graph", "times")),
        leave_out="sample",
    ),
    "integrated": Mode(
        {"integrated": True},
        frozenset(("generation", "graph", "memory", "replays", "times")),
        leave_out="sample",
    ),
    "architecture 8.9": Mode(
        {"architecture": 89},
        frozenset(
            (
                *("graph", "opening", "tensorrt", "tensorrt_bundle", "tensorrt_dimensions"),
                *("times", "verified_engines"),
            )
        ),
    ),
    "reversed threads": Mode({"order": "reverse"}, _KERNELS - _SAME_IN_ANY_ORDER),
}


@pytest.fixture(scope="session")
def built() -> tuple[Installation, Path]:
    """The emulated driver with pycuda, and the host build of the kernels."""
    try:
        return build(), host_kernels(KERNELS)
    except CannotBuild as error:
        pytest.skip(f"no emulated CUDA driver: {error}")


@pytest.mark.parametrize("name", _MODES)
def test_everything_passes_and_nothing_is_left(
    name: str,
    built: tuple[Installation, Path],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    mode, report, results = _MODES[name], tmp_path / "report.json", tmp_path / "results.xml"
    options = ["-q", "-p", "no:cacheprovider", "--color=no", f"--junitxml={results}"]
    if mode.leave_out:
        options += ["-k", f"not {mode.leave_out}"]
    files = [str(_TESTS / f"test_{file}.py") for file in sorted(mode.files)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        env=environment(*built, report=report, **mode.settings),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    count = _assert_all_ran(results, mode.files)
    _assert_nothing_left(report)
    record_property("emulated", f"under the emulated CUDA driver, {name}: {count} passed")


def test_there_are_tests_of_the_loop_and_of_the_kernels() -> None:
    """A file that was renamed would silently be left out."""
    assert _LOOP < _ALL
    assert any("kernel" in name for name in _KERNELS)


def _assert_all_ran(results: Path, files: frozenset[str]) -> int:
    """Every file has tests, and each of them was run; returns how many."""
    cases = list(ElementTree.parse(results).iter("testcase"))
    assert {case.attrib["classname"].rpartition(".test_")[2] for case in cases} == files
    assert [case.attrib["name"] for case in cases if list(case)] == []  # skipped, failed, ...
    return len(cases)


def _assert_nothing_left(report: Path) -> None:
    """The process gave back what it took, and did not leave it to the context to do so."""
    found = json.loads(report.read_text())
    assert found["totals"]["kernels_run"] > 0
    for kind in ("live", "released_with_context"):
        assert {name: count for name, count in found[kind].items() if count} == {}, kind
