"""What a GPU takes for the kernels, the loop, and whole images with PyTorch's engines in it.

    python tests/benchmarks/gpu.py --out FOLDER [--bundles FOLDER] [--quick] [--seconds 90]

Writes ``gpu-benchmark.json`` and ``gpu-benchmark.md`` into the folder after every part, and prints
the tables. ``--bundles`` is a folder of ``tests/gpu/bundles.py``, whose kernels are taken if they
fit; else NVRTC compiles them. A part that fails is reported and the others go on; the exit status
is then 1. Under the emulated driver the figures mean nothing, and the run is a quick one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
import types
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]
if "tests" not in sys.modules:  # found here even if an installed package brings such a module
    sys.modules["tests"] = types.ModuleType("tests")
    sys.modules["tests"].__path__ = [str(ROOT / "tests")]

from tests.benchmarks import gpu_device, gpu_loop, gpu_torch  # noqa: E402
from tests.benchmarks.gpu_run import Bench, LeftOut, Row, Tables  # noqa: E402
from tests.cuda.kernels import kernels_for  # noqa: E402

from fewstep.runtime.devices.cuda_driver import compute_capability, device_name  # noqa: E402
from fewstep.runtime.errors import FewstepError  # noqa: E402

_EMULATED = "Emulated"  # how the name of the emulated driver's card begins
_COMPARED = (
    "8 steps of the cosine schedule with guidance. Two generators, one of them with events around "
    "every stage of its graph, and the authors' eager procedure take turns on the same modules; "
    "times end with the pixels on the host, and are divided by the batch. Of `on the GPU` "
    "the graph as a whole is meant, the stages are the second generator's. "
)


@dataclass(frozen=True)
class Part:
    """One part: its name, what is timed and how, what does it, and seconds that it needs."""

    name: str
    how: str
    run: Callable[[Bench], Tables]
    needs_s: float = 3.0


@dataclass(frozen=True)
class Outcome:
    """What became of a part."""

    name: str
    how: str
    state: Literal["done", "failed", "left out"]
    why: str = ""
    seconds: float = 0.0
    tables: Tables = field(default_factory=dict)


PARTS = (
    Part("card", "", gpu_device.card),
    Part("clocks before", "As nvidia-smi says.", gpu_device.clocks),
    Part(
        "copy bandwidth",
        "Copies of random bytes from one buffer into another, 8 in a graph, with events in it; "
        "bytes read and written.",
        gpu_device.bandwidth,
    ),
    Part(
        "kernels",
        "One kernel launched again and again in a graph, with events in it, over as many sets of "
        "buffers as fill the L2 cache four times (at most one a launch), and over one set, which "
        "may stay in the cache: 256 tokens, all masked, 256×256 pixels, with guidance. The "
        "bandwidth is that of the copies in a graph, no bound: a kernel in a graph may be faster "
        "(docs/gpu.md). A launch has a floor of its own.",
        gpu_device.kernels,
    ),
    Part(
        "loop",
        "Whole generations of one image, with guidance, 256 tokens of 1,024 codes, 256×256 pixels. "
        "An engine is one node that fills its output with zeros. `graph`: events around its "
        "launch; `host`: the rest of the time that a caller waits.",
        gpu_loop.loop,
    ),
    Part(
        "opening",
        "The same engines in a process that has used the GPU before: to open, then the first image "
        "with capture, instantiation, upload and trial of its graph. The capture includes a "
        "garbage collection by Python.",
        gpu_loop.opening,
    ),
    Part(
        "cold start",
        "The same in a process that has not used the GPU before: its imports come on top, and the "
        "GPU's context and the loading of kernels in what opening takes.",
        gpu_loop.cold,
    ),
    *(
        Part(f"PyTorch, {title}, {precision}", _COMPARED + how, run, needs_s=15.0)
        for title, model, precision, how in (
            ("the Fashion sample", "sample", "fp16", "64 tokens of 512 codes, trained."),
            (
                "AdaNAT-L's size",
                "adanat-l",
                "fp16",
                "24 layers of width 768, 256 tokens of 1,024 codes, 256×256 pixels, random.",
            ),
            ("the Fashion sample", "sample", "fp32", "64 tokens of 512 codes, trained. No TF32."),
        )
        for run in (partial(gpu_torch.compare, model=model, precision=precision),)
    ),
    Part("clocks after", "As nvidia-smi says, at once after the last part.", gpu_device.clocks),
)


def run_part(part: Part, bench: Bench) -> Outcome:
    """Run one part, whatever becomes of it."""
    started = time.monotonic()
    made = partial(Outcome, part.name, part.how)
    if bench.left_s < part.needs_s:
        return made("left out", f"only {bench.left_s:.0f} s were left for it")
    try:
        tables = part.run(bench)
    except LeftOut as reason:
        return made("left out", str(reason))
    except Exception as error:
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        return made("failed", f"{type(error).__name__}: {first}", time.monotonic() - started)
    return made("done", "", time.monotonic() - started, tables)


def as_markdown(about: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The report."""
    lines = [f"# Benchmark on {about['card']}", ""]
    if about["emulated"]:
        lines += ["The driver is emulated: these figures say nothing about any GPU.", ""]
    if about["quick"]:
        lines += ["Quick: sizes are smaller than described, and repetitions few.", ""]
    for outcome in outcomes:
        lines += [section(outcome), ""]
    return "\n".join(lines)


def section(outcome: Outcome) -> str:
    """One part of the report."""
    lines = [f"## {outcome.name}", ""]
    if outcome.state != "done":
        return "\n".join([*lines, f"{outcome.state}: {outcome.why}"])
    if outcome.how:
        lines += [outcome.how, ""]
    for title, rows in outcome.tables.items():
        lines += [f"{title}:", "", *_table(rows), ""]
    return "\n".join(lines).rstrip()


def _table(rows: Sequence[Row]) -> list[str]:
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    return lines + [f"| {' | '.join(_shown(row[name]) for name in names)} |" for row in rows]


def _shown(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; returns the exit status."""
    started = time.monotonic()
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        capability, name = compute_capability(), device_name()
        compiled = kernels_for(capability, options.bundles)
    except FewstepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    emulated = name.startswith(_EMULATED)
    quick = options.quick or emulated  # at full size a host takes minutes for nothing
    about = {
        "card": name,
        "compute_capability": capability,
        "emulated": emulated,
        "quick": quick,
        "kernels": compiled.compiler,
    }
    ends = started + options.seconds
    bench = Bench(compiled.cubins[capability], quick, emulated, ends)
    outcomes: list[Outcome] = []
    for part in PARTS:
        outcomes.append(run_part(part, bench))
        print(f"{section(outcomes[-1])}\n", flush=True)
        _write(options.out, about, outcomes)
    failed = [outcome.name for outcome in outcomes if outcome.state == "failed"]
    print(f"failed: {', '.join(failed)}" if failed else f"no part failed; report: {options.out}")
    return 1 if failed else 0


def _write(out: Path, about: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    """After every part: whoever ends this process still has the parts before."""
    report = about | {"parts": [asdict(outcome) for outcome in outcomes]}
    text = json.dumps(report, indent=1, ensure_ascii=False)
    (out / "gpu-benchmark.json").write_text(text + "\n", "utf-8")
    (out / "gpu-benchmark.md").write_text(as_markdown(about, outcomes), "utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure on the GPU of this machine.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument("--bundles", type=Path, help="folder that tests/gpu/bundles.py made")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions")
    parser.add_argument("--seconds", type=float, default=90, help="for everything")
    return parser


if __name__ == "__main__":
    sys.exit(main())
