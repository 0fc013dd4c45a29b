"""What runs on a GPU, in which order, and for how long: the riskiest first, the slowest last.

The sanitizers have what time is left: they run nothing that has not run before.

Every group is a process of its own. Limits are for what hangs; a group usually needs a small part
of its own.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "tests" / "cuda"

_KERNELS = (
    "test_small_kernels.py",
    "test_latent_kernels.py",
    "test_philox.py",
    "test_remask.py",
    "test_sample_tokens.py",
    "test_sample_top_k_top_p.py",
    "test_unusable_logits.py",
    "test_kernel_limits.py",
    "test_official_rollouts.py",
)
_LOOP = (
    *("test_graph.py", "test_times.py", "test_opening.py", "test_device.py"),
    *("test_buffers.py", "test_memory.py"),
)
_FAULTS = ("test_lost_gpu.py", "test_replays.py")
_GENERATION = ("test_generation.py",)
_PROVIDER = ("test_onnxruntime_provider.py",)
_TORCH = ("test_torch_engine.py",)
_TENSORRT = (
    "test_tensorrt.py",
    "test_tensorrt_dimensions.py",
    "test_tensorrt_bundle.py",
    "test_verified_engines.py",
)
_FIRST = (
    "test_opening.py::test_the_gpu_is_described",
    "test_opening.py::test_cuda_0_is_the_first_gpu",
    "test_graph.py::test_copies_and_kernels_of_a_sequence_become_nodes",
    "test_graph.py::test_a_graph_is_the_documented_sequence_and_nothing_else",
    "test_graph.py::test_replays_with_other_inputs_are_what_a_fresh_generator_gives",
    "test_memory.py::test_mapped_memory_gives_the_same_images_without_copies",
)
# Without those that hypothesis repeats: a sanitizer makes every launch slow.
_SANITIZED = ("test_small_kernels.py", "test_remask.py", "test_sample_tokens.py")


@dataclass(frozen=True)
class Group:
    """Tests, or a script, that are run in one process.

    Attributes:
        name: what the report calls it.
        limit_s: seconds until it is ended.
        tests: files of ``tests/cuda``, or node ids in them.
        script: one of the repository with its arguments, in which ``{bundles}`` and ``{out}`` stand
            for these folders.
        quick: the tests of a quick run, or what a script's arguments end with in one; a group
            without is left out of quick runs.
        sanitizer: the tool of compute-sanitizer under which the tests run. What it has no time for,
            or a GPU that it does not support, is left out.
        may_skip: whether it is left out, and has not failed, if every test is skipped.
        missing: why the group is left out on this machine with these bundles; empty if it is not.
    """

    name: str
    limit_s: int
    tests: tuple[str, ...] = ()
    script: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    sanitizer: str = ""
    may_skip: bool = False
    missing: Callable[[Path], str] = lambda bundles: ""


BENCHMARK_S = 100
"""Kept free for the benchmark, which comes after the tests."""
MAKE_BUNDLES = Group("bundles", 300, script=("tests/gpu/bundles.py", "{bundles}"))
"""Comes before all others where nobody has made the bundles in advance."""


def groups() -> tuple[Group, ...]:
    """All groups, in the order in which they run."""
    rest = _nowhere_else()
    return (
        Group("first", 60, _FIRST, quick=_FIRST),
        Group("kernels", 60, _KERNELS, quick=("test_small_kernels.py", _KERNELS[-1])),
        Group("faults", 60, _FAULTS, quick=_FAULTS),
        *((Group("rest", 60, rest, quick=rest),) if rest else ()),
        Group("loop", 60, _LOOP, quick=("test_opening.py", "test_device.py")),
        Group("sample", 90, script=("tests/gpu/sample.py", "{bundles}"), missing=_no_export),
        Group("generation", 60, _GENERATION),
        Group("onnxruntime", 60, _PROVIDER, quick=_PROVIDER, may_skip=True),
        Group("torch", 60, _TORCH, quick=_TORCH, may_skip=True),
        Group("tensorrt", 60, _TENSORRT, may_skip=True, missing=_no_tensorrt),
        Group(
            "benchmark",
            BENCHMARK_S,
            script=(
                *("tests/benchmarks/gpu.py", "--out", "{out}", "--bundles", "{bundles}"),
                *("--seconds", str(BENCHMARK_S - 10)),
            ),
            quick=("--quick",),
        ),
        *(
            Group(tool, 45, _SANITIZED, sanitizer=tool, missing=_no_sanitizer)
            for tool in ("memcheck", "racecheck", "initcheck")
        ),
    )


def _nowhere_else() -> tuple[str, ...]:
    """Files of ``tests/cuda`` that no group above names."""
    named = {*_KERNELS, *_FAULTS, *_LOOP, *_GENERATION, *_PROVIDER, *_TORCH, *_TENSORRT}
    return tuple(sorted(path.name for path in CUDA.glob("test_*.py") if path.name not in named))


def _absent(*modules: str) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


def _no_export(bundles: Path) -> str:
    if (bundles / "sample").is_dir():
        return "the sample is among the bundles"
    absent = _absent("torch", "onnx", "onnxscript", "safetensors", "rich", "PIL")
    return f"exporting the sample needs {', '.join(absent)}" if absent else ""


def _no_tensorrt(bundles: Path) -> str:
    if len(_absent("tensorrt", "tensorrt_rtx")) == 2:
        return "neither tensorrt nor tensorrt_rtx is installed"
    absent = _absent("onnx", "rich", "typer")
    return f"its tests need {', '.join(absent)}" if absent else ""


def _no_sanitizer(bundles: Path) -> str:
    return "" if shutil.which("compute-sanitizer") else "compute-sanitizer is not on PATH"
