"""What a local step takes beside a full one: passes of a U-ViT with random weights on the CPU.

    python -m tests.benchmarks.local_steps --rounds 5               # 24 blocks of width 768
    python -m tests.benchmarks.local_steps --depth 8 --width 256    # of 8 M parameters
    python -m tests.benchmarks.local_steps --bundle BUNDLE          # whole decodes

ONNX Runtime runs the graphs as exports make them, with and without ``--cached-context``: all 256
positions, and groups of some beside the cached keys and values of the others. Every round runs each
once; the table has the least CPU time of all rounds, in one thread, which hardly depends on what
else the machine does. Prints; asserts nothing.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.export.config import ExportConfig
from fewstep.export.masked import Models, describe, graphs
from fewstep.export.models import UViT, VQModel
from fewstep.export.onnx_graph import export_graph
from fewstep.runtime.devices.cpu import CpuBuffer
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.generator import Generator
from fewstep.runtime.kernels.gather_rows import gather_rows
from fewstep.runtime.load import OthersLoad

SIDE, GROUPS = 16, (8, 16, 32, 64, 128)
_TOKENS = SIDE**2
Call = Callable[[], None]


def engine(models: Models, folder: Path) -> OnnxRuntimeEngine:
    """The transformer as it is exported."""
    model, _ = describe(models, ExportConfig(), at_least_one=False)
    folder.mkdir()
    info = export_graph("transformer", graphs(models, model)["transformer"], folder)
    size = (folder / info.file).stat().st_size
    print(f"cached context {models.cached_context}: {size:,} bytes", flush=True)
    return OnnxRuntimeEngine("transformer", folder / info.file, info, threads=1)


def passes(found: OnnxRuntimeEngine, rows: int, count: int) -> Call:
    """A pass of ``count`` positions of every row, beside all others where they are cached."""
    sizes, buffers = {"batch": rows, "length": count, "past": _TOKENS - count}, {}
    for name, info in {**found.inputs, **found.outputs}.items():
        shape = tuple(sizes[each] if isinstance(each, str) else each for each in info.shape)
        values = np.zeros(shape, info.dtype)
        if name.startswith("past"):
            values[:] = np.random.default_rng(0).standard_normal(shape)
        buffers[name] = CpuBuffer(values)
    bound = found.bind(buffers)

    def run(_held: object = buffers) -> None:  # the engine has their addresses alone
        bound.run()

    return run


def gathering(rows: int, count: int, width: int, blocks: int) -> Call:
    """What a full step does for the local ones after it."""
    source = np.zeros((2 * blocks, rows * _TOKENS * width), np.float32)
    target = np.zeros((2 * blocks, rows * (_TOKENS - count) * width), np.float32)
    index = np.arange(rows * (_TOKENS - count), dtype=np.int32)[:, None]
    return lambda: gather_rows(source, index, width, target)


def networks(arguments: argparse.Namespace) -> None:
    """Export, then measure in turns."""
    torch.manual_seed(0)
    width, depth = arguments.width, arguments.depth
    network = UViT(SIDE, embed_dim=width, depth=depth, num_heads=16, num_classes=1001)
    small: dict[str, object] = {"z_channels": 32, "resolution": SIDE, "in_channels": 3}
    small |= {"out_ch": 3, "ch": 32, "ch_mult": [1], "num_res_blocks": 1}
    tokenizer = VQModel(small, 1024, 32)
    with tempfile.TemporaryDirectory() as temporary:
        plain, cached = (
            engine(Models(network.eval(), tokenizer, cached_context=each), Path(temporary) / name)
            for name, each in (("plain", False), ("cached", True))
        )
        for rows in arguments.rows:
            calls = {
                "full, without a cache": passes(plain, rows, _TOKENS),
                "full": passes(cached, rows, _TOKENS),
                "gather_rows for 16": gathering(rows, 16, width, network.num_blocks),
                **{f"local, {n}": passes(cached, rows, n) for n in GROUPS},
            }
            table(f"{rows} rows", calls, arguments.rounds)


def decodes(arguments: argparse.Namespace) -> None:
    """Images of a bundle with cached context, one at a time, in the Halton order."""
    with Generator.open(arguments.bundle, backend="onnxruntime", threads=1) as generator:
        for steps in 8, 16:
            settings: dict[str, dict[str, Any]] = {
                "all steps full": {},
                f"1 local for each full, after {steps // 2} full": {"full_first": steps // 2},
                "1 local for each full": {"full_first": 0},
                "3 local for each full": {"full_first": 0, "local_steps": 3},
            }
            calls = {
                name: functools.partial(
                    generator.generate,
                    class_ids=[0],
                    steps=steps,
                    order="halton",
                    **({"local_steps": 1, **each} if each else {}),
                )
                for name, each in settings.items()
            }
            table(f"{steps} steps", calls, arguments.rounds)


def table(title: str, calls: Mapping[str, Callable[[], object]], rounds: int) -> None:
    """The least of all rounds, in turns, and its part of the first."""
    for call in calls.values():
        call()
    least, others = dict.fromkeys(calls, float("inf")), OthersLoad()
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.process_time()
            call()
            least[name] = min(least[name], time.process_time() - started)
    print(f"\n{title}, CPUs kept busy by others: {others.share() or 0:.0%}")
    print("\n| | ms of CPU | part |\n|---|---|---|")
    first = next(iter(least.values()))
    for name, seconds in least.items():
        print(f"| {name} | {1e3 * seconds:.1f} | {seconds / first:.2f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--width", type=int, default=768, help="a multiple of 16")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2], help="2: with guidance")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bundle", type=Path, help="with cached context, in its place")
    chosen = parser.parse_args()
    (decodes if chosen.bundle else networks)(chosen)
