"""The GPU benchmark under the emulated driver: it runs, reports all that it says, and labels it.

Its figures mean nothing there. Covered: a quick run as a process; the PyTorch parts with PyTorch on
the host; parts that fail, cannot run, or come too late.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks import gpu
from tests.benchmarks.gpu_run import Bench, LeftOut, Tables, in_turn
from tests.emulated_cuda.build import CannotBuild, build, host_kernels
from tests.emulated_cuda.run import KERNELS, ROOT, environment

_ENTRIES = {
    *("add_half", "advance", "copy_rows", "diffusion_step", "gather_rows", "gather_tokens"),
    *("initial_tokens", "policy_parameters", "random_order", "remask", "sampling_parameters"),
    *("scatter_rows", "scatter_tokens", "select_rows", "similarity", "start_diffusion"),
    *("choose_tokens", "smooth_actions", "subtract"),
    *("sample_tokens_float", "sample_tokens_half", "to_pixels_float", "to_pixels_half"),
    *("sample_top_k_top_p_float", "sample_top_k_top_p_half"),
}


@pytest.fixture(scope="module")
def python() -> Callable[..., str]:
    """Runs Python under the emulated driver, and gives what it prints."""
    try:
        variables = environment(build(), host_kernels(KERNELS))
    except CannotBuild as error:
        pytest.skip(f"no emulated CUDA driver: {error}")
    variables["PYTHONPATH"] = f"{variables['PYTHONPATH']}:{ROOT}"

    def run(*arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def quick(python: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quick run's report."""
    out = tmp_path_factory.mktemp("benchmark") / "report"
    python(ROOT / "tests" / "benchmarks" / "gpu.py", "--out", out, "--quick")
    return out


@pytest.fixture(scope="module")
def report(quick: Path) -> dict[str, Any]:
    """The report of a quick run."""
    found: dict[str, Any] = json.loads((quick / "gpu-benchmark.json").read_text())
    return found


def _tables(report: dict[str, Any], name: str) -> dict[str, list[dict[str, Any]]]:
    (part,) = (part for part in report["parts"] if part["name"] == name)
    assert part["state"] == "done", part["why"]
    assert part["how"] or name == "card"
    found: dict[str, list[dict[str, Any]]] = part["tables"]
    return found


# --- a quick run


def test_the_report_is_labelled_as_emulated(report: dict[str, Any], quick: Path) -> None:
    assert report["card"].startswith("Emulated CUDA device")
    assert report["emulated"]
    assert report["quick"]
    text = (quick / "gpu-benchmark.md").read_text()
    assert text.startswith("# Benchmark on Emulated CUDA device")
    assert "these figures say nothing about any GPU" in text
    found = {row["what"]: row["found"] for row in _tables(report, "card")["found"]}
    assert found["GPU"] == report["card"]
    assert found["compute capability"] == report["compute_capability"] == "8.7"


def test_every_part_is_there_and_what_needs_a_card_is_left_out(report: dict[str, Any]) -> None:
    states = {part["name"]: part["state"] for part in report["parts"]}
    assert list(states) == [part.name for part in gpu.PARTS]
    torch = [part for part in report["parts"] if part["name"].startswith("PyTorch")]
    assert [part["state"] for part in torch] == ["left out"] * 3
    assert {part["why"] for part in torch} == {"torch sees no GPU (emulated driver)"}
    assert "failed" not in states.values()


def test_every_kernel_is_timed_beside_the_bytes_it_moves(report: dict[str, Any]) -> None:
    (copies,) = _tables(report, "copy bandwidth")["copies"]
    assert 0 < copies["median, GB/s"] <= copies["best, GB/s"]
    (rows,) = _tables(report, "kernels").values()
    assert {row["kernel"] for row in rows} == _ENTRIES
    for row in rows:
        bound = row["bytes"] / copies["median, GB/s"] / 1e3
        assert row["at the bandwidth, µs"] == pytest.approx(bound)
        assert 0 < row["measured, minimum, µs"] <= row["measured, median, µs"]
        assert 0 < row["one set, minimum, µs"] <= row["one set, median, µs"]
    sampled = {(row["kernel"], row["codes"], row["batch"]) for row in rows if row["codes"]}
    assert len(sampled) == 2 * 2 * 2 * 2  # kernel, type, codes, batch


def test_the_loop_is_timed_by_steps(report: dict[str, Any]) -> None:
    (rows,) = _tables(report, "loop").values()
    assert [row["steps"] for row in rows] == [4, 8, 16]
    for row in rows:
        per_step = row["graph, median, µs"] / row["steps"]
        assert row["graph per step, median, µs"] == pytest.approx(per_step)
        assert row["graph, minimum, µs"] > 0
        assert row["host, minimum, µs"] > 0


def test_opening_is_timed_with_its_graph(report: dict[str, Any]) -> None:
    ((row,),) = _tables(report, "opening").values()
    # Inputs, outputs, initial tokens, decoder and pixels; kept logits and two kernels at step 0;
    # per further step a copy, an engine, two kernels.
    assert row["nodes"] == 5 + 3 + 4 * 7
    times = [value for name, value in row.items() if name.endswith("ms")]
    assert len(times) == 6
    assert all(value > 0 for value in times)
    assert row["capture, ms"] + row["instantiate, ms"] + row["upload, ms"] < row["first image, ms"]


# --- the PyTorch parts


def test_networks_are_compared_on_the_same_modules(python: Callable[..., str]) -> None:
    script = ROOT / "tests" / "emulated_cuda" / "scripts" / "torch_parts.py"
    found = json.loads(python(script, "fp32").splitlines()[-1])
    tables = found["tables"]
    (first,) = tables["first images"]
    assert first["nodes"] > 5 + 4 * 8
    rows = tables["per image"]
    assert [row["batch"] for row in rows] == [1, 1, 8, 8]
    for fewstep, eager, ratio in zip(rows[::2], rows[1::2], tables["eager / fewstep"], strict=True):
        assert "eager" in eager["what"]
        assert fewstep.keys() == eager.keys()
        assert eager["in all, median, ms"] / fewstep["in all, median, ms"] == pytest.approx(
            ratio["of medians"]
        )
        stages = ("transformer", "sampling", "decoder", "on the GPU")
        assert all(fewstep[f"{stage}, median, ms"] > 0 for stage in stages)
        assert eager["decoder, median, ms"] > 0
    assert found["adanat-l"]["grid"] == [16, 16]
    assert found["adanat-l"]["codebook_size"] == 1024


# --- parts


def _bench(seconds: float = 60.0) -> Bench:
    return Bench(b"", quick=True, emulated=True, ends=time.monotonic() + seconds)


def _raising(error: Exception) -> Callable[[Bench], Tables]:
    def run(bench: Bench) -> Tables:
        raise error

    return run


def test_a_part_that_fails_is_told_in_one_line() -> None:
    broken = gpu.Part("broken", "how", _raising(ValueError("no\nsecond line")))
    outcome = gpu.run_part(broken, _bench())
    assert (outcome.state, outcome.why) == ("failed", "ValueError: no")
    assert gpu.section(outcome) == "## broken\n\nfailed: ValueError: no"


def test_the_others_go_on_and_the_exit_status_tells(
    python: Callable[..., str], tmp_path: Path
) -> None:
    code = """
from dataclasses import replace
from tests.benchmarks import gpu
def fail(bench):
    raise MemoryError("none left")
gpu.PARTS = (replace(gpu.PARTS[0], name="broken", run=fail), gpu.PARTS[0])
print(gpu.main(["--quick", "--out", r"{}"]))
"""
    printed = python("-c", code.format(tmp_path)).splitlines()
    assert printed[-2:] == ["failed: broken", "1"]
    parts = json.loads((tmp_path / "gpu-benchmark.json").read_text())["parts"]
    assert [part["state"] for part in parts] == ["failed", "done"]


def test_a_part_that_cannot_run_or_comes_too_late_is_left_out() -> None:
    absent = gpu.Part("absent", "how", _raising(LeftOut("not here")))
    assert gpu.run_part(absent, _bench()).why == "not here"
    late = gpu.Part("late", "how", lambda bench: {}, needs_s=10)
    outcome = gpu.run_part(late, _bench(seconds=5))
    assert (outcome.state, outcome.why) == ("left out", "only 5 s were left for it")


def test_contenders_take_turns_until_time_is_up() -> None:
    calls: list[str] = []

    def contender(name: str) -> Callable[[], int]:
        return lambda: calls.append(name) or len(calls)  # type: ignore[func-returns-value]

    taken = in_turn({name: contender(name) for name in "ab"}, seconds=0, most=9)
    assert calls == list("abababab")  # a round that does not count, and three
    assert taken == {"a": [3, 5, 7], "b": [4, 6, 8]}
    assert len(in_turn({"a": contender("a")}, seconds=60, most=5)["a"]) == 5
