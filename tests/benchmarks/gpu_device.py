"""Parts of the GPU benchmark about the card alone: what it is, its bandwidth, and our kernels."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tests.benchmarks.gpu_run import Bench, LeftOut, Row, Tables, Times, repeated
from tests.benchmarks.kernels import SAMPLERS, Shaped, arguments

from fewstep.runtime.devices import Array, BufferSpec, Part
from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.devices.cuda_driver import cuda_version, device_of, load_driver
from fewstep.runtime.kernels.launch import launch_of

_PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "pycuda", "cuda-bindings", "numpy")
_DRIVER = Path("/proc/driver/nvidia/version")
_CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit")
_COPIES = 8
_LAUNCHES = 200
_PARAMETERS = (0.5, 4.5, 1.0, 2.0)
"""Mask ratio, masking and sampling temperature, guidance."""
_OTHER_PARAMETERS = {"sample_top_k_top_p": (2.0, 900.0, 0.95, 1.0), "diffusion_step": (2.9, 1.0)}
"""Guidance, top-k, top-p, sampling temperature; guidance, temperature."""
_COEFFICIENTS = (0.5, 0.1, -3.0, -1.0, 1.0)
"""Of a step that does not make numbers larger when it is repeated."""
_RANDOM = frozenset(
    (
        *("conditional", "unconditional", "confidence", "action", "source", "denoised", "x"),
        *("values", "cached", "similarity", "a", "b", "own", "difference"),
    )
)


def card(bench: Bench) -> Tables:
    """What was found."""
    driver = load_driver()
    device, attribute = device_of(driver, 0), driver.device_attribute
    major, minor = device.compute_capability()
    version = re.search(r"\d{3}\.[\d.]+", _DRIVER.read_text()) if _DRIVER.is_file() else None
    found: dict[str, str] = {
        "GPU": str(device.name()),
        "compute capability": f"{major}.{minor}",
        "memory, MiB": f"{device.total_memory() >> 20:,}",
        "L2, MiB": f"{device.get_attribute(attribute.L2_CACHE_SIZE) / 2**20:.0f}",
        "multiprocessors": str(device.get_attribute(attribute.MULTIPROCESSOR_COUNT)),
        "CUDA of the driver": ".".join(map(str, cuda_version())),
        "driver": version[0] if version else "unknown",
        **{name: _version(name) for name in _PACKAGES},
    }
    rows: list[Row] = [{"what": name, "found": value} for name, value in found.items()]
    return {"found": rows}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def clocks(bench: Bench) -> Tables:
    """What nvidia-smi says now.

    Raises:
        LeftOut: there is no nvidia-smi that answers.
    """
    if shutil.which("nvidia-smi") is None:
        raise LeftOut("nvidia-smi is not here")
    command = ["nvidia-smi", f"--query-gpu={','.join(_CLOCKS)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=15)
    except (subprocess.SubprocessError, OSError) as error:
        raise LeftOut(f"nvidia-smi does not answer: {error}") from error
    values = [each.strip() for each in done.stdout.split(",")]
    return {"clocks": [dict(zip(_CLOCKS, values, strict=True))]}


def bandwidth(bench: Bench) -> Tables:
    """Copies within the card's memory."""
    with contextlib.closing(CudaDevice(bench.cubin, profile=True)) as device:
        free, _ = load_driver().mem_get_info()
        block = 1 << 16 if bench.quick else 64 << 20
        blocks = 1 if bench.quick else max(1, min(1 << 30, free // 4) // block)
        spec = BufferSpec((blocks, block), "uint8")
        with device.workspace({"source": spec, "target": spec}) as buffers:
            source, target = buffers["source"], buffers["target"]
            random = np.random.default_rng(0).integers(0, 256, block, np.uint8)
            device.upload(source[0], random)
            for other in range(1, blocks):
                device.copy(source[other], source[0])

            def copies() -> None:
                for _ in range(_COPIES):
                    device.copy(target, source)

            taken = _replayed(device, copies, seconds=2, most=bench.runs(50))
    moved = 2 * spec.bytes * _COPIES / 1e6  # MB over ms is GB/s
    bench.bandwidth_gb_s = moved / taken.median
    return {
        "copies": [
            {
                "bytes": spec.bytes,
                "median, GB/s": bench.bandwidth_gb_s,
                "best, GB/s": moved / taken.least,
                "runs": len(taken.values),
            }
        ]
    }


@dataclass(frozen=True)
class _Case:
    """A kernel with what it is given, buffers as shapes."""

    kernel: str
    given: Mapping[str, Any]
    codes: int
    batch: int

    @property
    def specs(self) -> dict[str, BufferSpec]:
        """Its buffers, by the names of its arguments."""
        return {
            name: BufferSpec(value.shape, str(value.dtype))
            for name, value in self.given.items()
            if isinstance(value, Shaped)
        }

    def contents(self, name: str, random: np.random.Generator) -> Array:
        """What a buffer holds, to be broadcast: every token masked, numbers at random."""
        shape = self.specs[name].shape
        one = (1, *shape[1:])
        if name in _RANDOM:
            return random.standard_normal(one, np.float32)
        if name == "image":
            return random.random(one, np.float32)
        if name == "parameters":
            return np.array(_OTHER_PARAMETERS.get(self.kernel, _PARAMETERS), np.float32)
        if name == "coefficients":
            return np.array(_COEFFICIENTS, np.float32)
        if name in ("index", "positions"):  # a place of its own for every row
            return np.arange(shape[0])[:, None]
        if name == "given":
            return np.full(1, 0 if self.kernel == "random_order" else -1)
        if name == "sampled":
            return random.integers(0, self.codes, one)
        if name == "tokens":
            return np.full(1, self.codes)
        return np.arange(shape[0]) if name == "seeds" else np.full(1, name == "mask")


def kernels(bench: Bench) -> Tables:
    """Every kernel at every size."""
    launches = 2 if bench.quick else _LAUNCHES
    with contextlib.closing(CudaDevice(bench.cubin, profile=True)) as device:
        rows = [_kernel(device, case, bench, launches) for case in _cases(bench.quick)]
    return {f"{launches} launches in a graph": rows}


def _cases(quick: bool) -> list[_Case]:
    """Codes matter to what samples, and types to what reads logits, images or rows."""
    sizes = {"count": 16, "side": 16} if quick else {}
    found: dict[tuple[str, int, int], _Case] = {}
    for codes in (24, 256) if quick else (1024, 16384):
        for dtype in ("float32", "float16"):
            for batch in (1, 2) if quick else (1, 8):
                for kernel, given in arguments(codes, dtype, batch, **sizes).items():
                    launch = launch_of(kernel, given)
                    found.setdefault(
                        (launch.entry, launch.bytes_moved, batch),
                        _Case(kernel, given, codes, batch),
                    )
    return list(found.values())


def _kernel(device: CudaDevice, case: _Case, bench: Bench, launches: int) -> Row:
    launch = launch_of(case.kernel, case.given)
    cache = device_of(load_driver(), 0).get_attribute(load_driver().device_attribute.L2_CACHE_SIZE)
    sets = max(1, min(launches, 4 * cache // launch.bytes_moved))
    specs = {f"{turn} {name}": spec for turn in range(sets) for name, spec in case.specs.items()}
    with device.workspace(specs) as buffers:
        random = np.random.default_rng(0)
        contents = {name: case.contents(name, random) for name in case.specs}
        given = []
        for turn in range(sets):
            own = {name: buffers[f"{turn} {name}"] for name in case.specs}
            for name, buffer in own.items():
                device.upload(buffer, np.broadcast_to(contents[name], buffer.shape))
            given.append({**case.given, **own})

        def enqueue(sets: int) -> None:
            for turn in range(launches):
                device.launch(case.kernel, **given[turn % sets])

        taken, cached = (
            _replayed(device, partial(enqueue, each), seconds=0.3, most=bench.runs(30))
            for each in (sets, 1)
        )
        if "error" in case.specs and device.download(given[0]["error"]).any():
            raise RuntimeError(f"{launch.entry} does not like what it was given to be timed")
    speed = bench.bandwidth_gb_s
    return {
        "kernel": launch.entry,
        "codes": case.codes if case.kernel in SAMPLERS else None,
        "batch": case.batch,
        "bytes": launch.bytes_moved,
        "at the bandwidth, µs": None if speed is None else launch.bytes_moved / speed / 1e3,
        **taken.row("measured", "µs", 1e3 / launches),
        "sets of buffers": sets,
        **cached.row("one set", "µs", 1e3 / launches),
        "runs": min(len(taken.values), len(cached.values)),
    }


def _replayed(
    device: CudaDevice, enqueue: Callable[[], None], *, seconds: float, most: int
) -> Times:
    """Times of what is enqueued, by events before and after it in a graph of it."""

    def sequence() -> None:
        with device.span("all"):
            enqueue()

    replay = device.capture([Part(sequence)])

    def once() -> float:
        replay()
        device.synchronize()
        return device.timings()["all"]

    try:
        return Times(repeated(once, seconds=seconds, most=most))
    finally:
        replay.close()
