"""Latency of whole generations: stages, percentiles, throughput, memory, and comparisons.

All contenders of a comparison run interleaved in one process, so that a ratio never rests on two
moods of the machine. One run is one call with a full batch, after warm-up.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fewstep.runtime.doctor import diagnose
from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator
from fewstep.runtime.raster import decode_in_raster_order

Run = Callable[[], Mapping[str, float]]
"""One generation; returns milliseconds per stage, at least ``total``."""

_ENGINES = ("transformer", "policy", "decoder")


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds that half, nine tenths and 99 in 100 runs stay within."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Percentiles:
        """Percentiles of ``times_ms``, interpolated."""
        return cls(*(float(value) for value in np.percentile(times_ms, [50, 90, 99])))


@dataclass(frozen=True)
class Measurement:
    """Times of one contender over ``runs`` runs.

    ``tokens_ms``: median of everything but the decoder, the time to decide all tokens.
    ``stages_ms``: per stage. ``overhead``: median of (total − engines) / engines, the share that
    the loop adds; ``None`` where stages are not known. ``images_per_s`` is from the median.
    """

    name: str
    batch: int
    steps: int
    runs: int
    total_ms: Percentiles
    tokens_ms: float
    images_per_s: float
    stages_ms: dict[str, Percentiles]
    overhead: float | None


@dataclass(frozen=True)
class Report:
    """All measurements of one bench, with the machine and the peak memory of the process."""

    bundle: str
    backend: str
    device: str
    precision: str
    measurements: tuple[Measurement, ...]
    peak_memory_bytes: int
    machine: dict[str, str]
    packages: dict[str, str | None]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def contender(generator: Generator, *, batch: int, steps: int, schedule: str | None = None) -> Run:
    """A run of the generator itself, on classes in turn (or random text states)."""
    request = _conditions(generator, batch)

    def run() -> Mapping[str, float]:
        return generator.generate(steps=steps, schedule=schedule, **request).timings_ms

    return run


def raster_contender(generator: Generator, *, batch: int) -> Run:
    """The same engines decoding one token at a time, in raster order."""
    request = _conditions(generator, batch)

    def run() -> Mapping[str, float]:
        return decode_in_raster_order(generator, **request)[1]

    return run


def measure(
    contenders: Mapping[str, tuple[Run, int, int]], *, runs: int, warm_up: int = 1
) -> list[Measurement]:
    """Time contenders ``name → (run, batch, steps)`` turn by turn.

    Args:
        contenders: what to time.
        runs: rounds; every contender runs once per round.
        warm_up: unmeasured rounds before.

    Raises:
        RequestError: fewer than one run.
    """
    if runs < 1:
        raise RequestError(f"runs must be at least 1, got {runs}")
    times: dict[str, list[Mapping[str, float]]] = {name: [] for name in contenders}
    for turn in range(warm_up + runs):
        for name, (run, _, _) in contenders.items():
            start = time.perf_counter()
            stages = dict(run())
            stages["total"] = (time.perf_counter() - start) * 1e3
            if turn >= warm_up:
                times[name].append(stages)
    return [
        _summary(name, times[name], batch, steps) for name, (_, batch, steps) in contenders.items()
    ]


def report(generator: Generator, measurements: Sequence[Measurement]) -> Report:
    """Put measurements together with the machine they were made on."""
    diagnosis = diagnose()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Report(
        str(generator.bundle.path),
        generator.backend,
        generator.device.name,
        generator.precision,
        tuple(measurements),
        peak,
        diagnosis.machine,
        diagnosis.packages,
    )


def _summary(
    name: str, times: Sequence[Mapping[str, float]], batch: int, steps: int
) -> Measurement:
    stages = {key: Percentiles.of([entry.get(key, 0.0) for entry in times]) for key in times[0]}
    total = stages.pop("total")
    tokens = [entry["total"] - entry.get("decoder", 0.0) for entry in times]
    loop = [_overhead(entry) for entry in times] if "transformer" in stages else None
    return Measurement(
        name=name,
        batch=batch,
        steps=steps,
        runs=len(times),
        total_ms=total,
        tokens_ms=float(np.median(tokens)),
        images_per_s=batch / total.p50 * 1e3,
        stages_ms=stages,
        overhead=None if loop is None else float(np.median(loop)),
    )


def _overhead(stages: Mapping[str, float]) -> float:
    engines = sum(stages.get(key, 0.0) for key in _ENGINES)
    return (stages["total"] - engines) / engines


def _conditions(generator: Generator, batch: int) -> dict[str, Any]:
    if batch > generator.max_batch:
        raise RequestError(
            f"batch {batch} exceeds the {generator.max_batch} images that are decoded together; "
            "engines take more if they are built with a larger --max-batch"
        )
    condition = generator.bundle.manifest.model.condition
    if condition.kind == "class":
        return {"class_ids": [image % condition.num_classes for image in range(batch)]}
    shape = (batch, condition.length, condition.width)
    return {"text": np.random.default_rng(0).standard_normal(shape, np.float32)}
