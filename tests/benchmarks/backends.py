"""Whole images by each backend for CPUs, in each precision that it has here, turn by turn.

    python -m tests.benchmarks.backends BUNDLE [BUNDLE…] [--rounds N] [--threads N]

One image a run with the bundle's defaults. Prints the median and the least of all rounds; a ratio
is the median of those of the rounds. *Loop* is everything that is no graph: sampling, masking,
copies, Python. Measures and prints; asserts nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import operator
import os
import statistics
from pathlib import Path

from fewstep.runtime import bench
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.doctor import diagnose
from fewstep.runtime.engines import on_cpu
from fewstep.runtime.engines.openvino import OpenVino
from fewstep.runtime.generator import Generator
from fewstep.runtime.load import OthersLoad

_PRECISIONS = ("fp32", "bf16", "int8")


def contenders(bundle: Bundle) -> list[tuple[str, str]]:
    """Backend and precision of all that run here, ONNX Runtime's fp32 first."""
    has = {"onnxruntime": ("fp32", "int8"), "openvino": OpenVino.load().precisions}
    found = [(backend, each) for backend in reversed(on_cpu.BACKENDS) for each in _PRECISIONS]
    quantized = "int8" in bundle.precisions
    return [
        (backend, each)
        for backend, each in found
        if each in has[backend] and (each != "int8" or quantized)
    ]


def measure(path: Path, rounds: int, threads: int) -> None:
    """Print the table of a bundle."""
    bundle, others = Bundle.read(path), OthersLoad()
    times = dict[tuple[str, str], list[float]]()
    graphs = dict[tuple[str, str], list[float]]()
    with contextlib.ExitStack() as stack:
        runs = {}
        for backend, precision in contenders(bundle):
            opened = Generator.open(bundle, backend=backend, precision=precision, threads=threads)
            generator = stack.enter_context(opened)
            runs[backend, precision] = bench.contender(generator, batch=1, settings={})
        for round_ in range(rounds + 2):
            for name, each in runs.items():
                taken = each.run()
                if round_ >= 2:
                    times.setdefault(name, []).append(taken["total"])
                    stages = each.graphs & taken.keys()
                    graphs.setdefault(name, []).append(sum(taken[stage] for stage in stages))
    share = others.share()
    print(f"\n{bundle.manifest.name}, {path}: other programs took {share or 0:.0%} of the cores\n")
    print("| backend | precision | median ms | least ms | relative ", end="")
    print("| loop, ms | least | loop / graphs | of the least |\n" + "|---" * 9 + "|")
    first = next(iter(times.values()))
    for (backend, precision), own in times.items():
        ratio = statistics.median(map(operator.truediv, first, own))
        row = f"{statistics.median(own):.1f} | {min(own):.1f} | {ratio:.2f} ×"
        inside = graphs[backend, precision]
        loop = [*map(operator.sub, own, inside)]
        shares = map(operator.truediv, loop, inside)
        row += f" | {statistics.median(loop):.2f} | {min(loop):.2f}"
        row += f" | {statistics.median(shares):.1%} | {min(loop) / min(inside):.1%}"
        print(f"| {backend} | {precision} | {row} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    machine, packages = diagnose().machine, diagnose().packages
    versions = ", ".join(f"{name} {packages[name]}" for name in on_cpu.BACKENDS)
    where = f"{machine['processor']}, {machine['cores']} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{where}; {versions}")
    for each in given.bundles:
        measure(each, given.rounds, given.threads)
