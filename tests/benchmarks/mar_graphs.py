"""What MAR's decode is on CUDA: operations, captured graphs, their nodes, and what that takes.

    python tests/emulated_cuda/run.py -- python -m tests.benchmarks.mar_graphs BUNDLE

On the emulated driver (or a GPU), with ONNX Runtime on the host as engines: an engine is a copy of
every input and output and one host node there, where a real one is dozens of kernels. Prints;
asserts nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from tests.cuda.host_engine import open_engine
from tests.cuda.kernels import kernels_for

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cuda import MOST_NODES, CudaReplay
from fewstep.runtime.devices.cuda_driver import compute_capability
from fewstep.runtime.generator import Generator
from fewstep.runtime.kernels.cubins import add_kernels

BUDGETS: dict[str, dict[str, Any]] = {
    "8 × 10": {"iterations": 8, "diffusion_steps": "10"},
    "16 × 25:5": {"iterations": 16, "diffusion_steps": "25:5"},
    "64 × 50:5": {"iterations": 64, "diffusion_steps": "50:5"},
    "64 × 50:5, cached": {
        "iterations": 64,
        "diffusion_steps": "50:5",
        "refresh": 9,
        "reuse_guidance": True,
    },
    "64 × 100": {"iterations": 64, "diffusion_steps": "100"},
}


def rows(bundle: Path) -> None:
    """A line of a Markdown table for every budget."""
    print("| budget | listed | executed | graphs | nodes | unrolled | plan s | image s |")
    print("|---|---|---|---|---|---|---|---|")
    with Generator.open(bundle, device="cuda", threads=1) as generator:
        for name, settings in BUDGETS.items():
            request = generator.request(class_ids=[0], **settings)
            key = generator.family.key(generator.model, request, 1)
            started = time.perf_counter()
            plan = generator.plans.get(key)
            planned = time.perf_counter() - started
            assert isinstance(plan.replay, CudaReplay)
            captured = plan.replay.captured
            unrolled = sum(each.times * len(each.graph) for each in captured)
            started = time.perf_counter()
            generator.run(request)
            took = time.perf_counter() - started
            listed, executed = (
                sum(1 for _ in ops()) for ops in (plan.program.different, plan.program.unrolled)
            )
            print(
                f"| {name} | {listed:,} | {executed:,} | {len(captured):,} | {plan.replay.nodes:,} "
                f"| {unrolled:,} | {planned:.1f} | {took:.1f} |",
                flush=True,
            )
            generator.plans.close()
    print(f"\nat most {MOST_NODES:,} nodes in a graph")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="gets the kernels for this GPU")
    chosen = parser.parse_args()
    add_kernels(Bundle.read(chosen.bundle), kernels_for(compute_capability(), None))
    with mock.patch("fewstep.runtime.engines.select.open_engine", open_engine):
        rows(chosen.bundle)
    sys.stdout.flush()
