"""Parts of the GPU benchmark about the loop alone: engines in it that do nearly nothing."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from tests.benchmarks.gpu_run import Bench, Row, Tables, Times, repeated
from tests.cuda.unexported import unexported

from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.devices import Buffer
from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.devices.cuda_driver import checked, load_driver
from fewstep.runtime.devices.cuda_graph import CudaGraph
from fewstep.runtime.devices.cuda_memory import CudaBuffer
from fewstep.runtime.engines import BoundEngine, Engine, require_all
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.generator import Generator
from fewstep.runtime.records import GraphInfo

_ROOT = Path(__file__).resolve().parents[2]
_STEPS = (4, 8, 16)
_COLD = """
import json, sys, time, types
started = time.perf_counter()
from pathlib import Path
root, cubin, quick = sys.argv[1:]
sys.modules["tests"] = types.ModuleType("tests")
sys.modules["tests"].__path__ = [root + "/tests"]
from tests.benchmarks import gpu_loop
from tests.benchmarks.gpu_run import Bench
bench = Bench(Path(cubin).read_bytes(), bool(int(quick)), False, started + 60)
imported = time.perf_counter()
(row,) = next(iter(gpu_loop.opening(bench).values()))
print(json.dumps({"import, ms": (imported - started) * 1e3, **row}))
"""


class ZeroEngine:
    """Fills its one output with zeros: a single node of a graph, and the least that is an engine.

    Outputs have to be written: numbers that are missing would be noticed.
    """

    capturable, warm_up = True, 1

    def __init__(self, name: str, info: GraphInfo, stream: Any) -> None:
        self.name, self.inputs, self.outputs = name, info.inputs, info.outputs
        self._driver, self._stream = load_driver(), stream

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        """Bind buffers; all but the output are left alone."""
        require_all(self, bindings)
        (output,) = (bindings[name] for name in self.outputs)
        assert isinstance(output, CudaBuffer)

        def run() -> None:
            self._driver.memset_d8_async(output.pointer, 0, output.bytes, self._stream)

        return BoundEngine(self.name, run)

    def close(self) -> None:
        """Give up the stream, which would outlive the device."""
        self._stream = None


def _generator(bench: Bench) -> Generator:
    """One of AdaNAT-L's sizes, or of tiny ones, without a policy."""
    side, codes, pixels = (4, 24, 16) if bench.quick else (16, 1024, 256)
    bundle = unexported(
        MaskedModel(
            grid=(side, side),
            codebook_size=codes,
            mask_token=codes,
            feature_width=768,
            image_size=(pixels, pixels),
            condition=ClassCondition(num_classes=1000, unconditional_id=1000),
        )
    )
    device = CudaDevice(bench.cubin)
    engines: dict[str, Engine] = {
        name: ZeroEngine(name, info, device._stream)
        for name, info in bundle.manifest.graphs.items()
    }
    return Generator(bundle, device, engines)


def loop(bench: Bench) -> Tables:
    """Whole generations of one image."""
    rows: list[Row] = []
    with _generator(bench) as generator:
        for steps in _STEPS:
            once = functools.partial(generate, generator, {"class_ids": [1], "steps": steps})
            taken = repeated(once, seconds=1, most=bench.runs(200))
            graph = Times([each["device"] for each in taken])
            host = Times([each["total"] - each["device"] for each in taken])
            rows.append(
                {
                    "steps": steps,
                    **graph.row("graph", "µs", 1e3),
                    "graph per step, median, µs": graph.median * 1e3 / steps,
                    **host.row("host", "µs", 1e3),
                    "runs": len(taken),
                }
            )
    return {"one image": rows}


def generate(generator: Generator, request: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of one generation by stage, ``total`` being what the caller waits for."""
    started = time.perf_counter()
    stages = generator.generate(**request).timings_ms
    return {**stages, "total": (time.perf_counter() - started) * 1e3}


def opening(bench: Bench) -> Tables:
    """The first image of a generator, and what of it is the graph."""
    return {"one image, 8 steps": [first_image(lambda: _generator(bench), steps=8)]}


def cold(bench: Bench) -> Tables:
    """The first image of a process that has not used the GPU before."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "cubin"
        cubin.write_bytes(bench.cubin)
        words = [sys.executable, "-c", _COLD, str(_ROOT), str(cubin), str(int(bench.quick))]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return {"one image, 8 steps, in a process of its own": [row]}


def first_image(
    make: Callable[[], Generator], *, steps: int, batch: int = 1, schedule: str = "cosine"
) -> Row:
    """Times of a generator's first images, and of the graph of its plan."""
    request: dict[str, Any] = {"class_ids": [1] * batch, "steps": steps, "schedule": schedule}
    with _timed_captures() as made:
        started = time.perf_counter()
        with make() as generator:
            opened = time.perf_counter()
            generator.generate(**request)
            first = time.perf_counter()
            warm = repeated(lambda: generate(generator, request)["total"], seconds=1, most=5)
    (graph,) = made
    return {
        "batch": batch,
        "open, ms": (opened - started) * 1e3,
        "first image, ms": (first - opened) * 1e3,
        "next image, median, ms": Times(warm).median,
        **graph,
    }


@contextlib.contextmanager
def _timed_captures() -> Iterator[list[Row]]:
    """What every graph took that is made meanwhile."""
    made: list[Row] = []

    class Timed(CudaGraph):
        """Uploads as well, which else the first launch does."""

        def __init__(self, stream: int, sequence: Callable[[], None]) -> None:
            started = time.perf_counter()
            super().__init__(stream, sequence)
            whole = time.perf_counter() - started
            uploaded = time.perf_counter()
            checked(self._cuda.cuGraphUpload(self._executable, self._stream), "uploading")
            checked(self._cuda.cuStreamSynchronize(self._stream), "waiting")
            upload = time.perf_counter() - uploaded
            counted = self._cuda.cuGraphGetNodes(self._graph, 0)
            made.append(
                {
                    "nodes": int(checked(counted, "counting nodes")[1]),
                    "capture, ms": self._captured_s * 1e3,
                    "instantiate, ms": (whole - self._captured_s) * 1e3,
                    "upload, ms": upload * 1e3,
                }
            )

        def _capture(self, sequence: Callable[[], None]) -> Any:
            started = time.perf_counter()
            graph = super()._capture(sequence)
            self._captured_s = time.perf_counter() - started
            return graph

    with mock.patch("fewstep.runtime.devices.cuda.CudaGraph", Timed):
        yield made
