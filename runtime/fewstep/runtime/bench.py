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

from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.doctor import diagnose
from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.settings import settings_of


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

    ``settings``: of its requests, complete. ``stages_ms``: per stage. ``overhead``:
    median of (total − graphs) / graphs, the share that the loop adds; ``None`` where stages are not
    known. ``images_per_s`` is from the median.
    """

    name: str
    batch: int
    settings: dict[str, Any]
    runs: int
    total_ms: Percentiles
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


@dataclass(frozen=True)
class Contender:
    """What is timed: ``run`` makes ``batch`` images and returns milliseconds per stage.

    ``graphs``: the stages in which graphs run.
    """

    run: Callable[[], Mapping[str, float]]
    batch: int
    settings: dict[str, Any]
    graphs: frozenset[str] = frozenset()


def contender(generator: Generator, *, batch: int, settings: Mapping[str, Any]) -> Contender:
    """Runs of the generator itself, on classes in turn (or text states of no text).

    Raises:
        RequestError: settings that the bundle cannot serve, or more images than are decoded
            together.
    """
    if batch > generator.max_batch:
        raise RequestError(
            f"batch {batch} exceeds the {generator.max_batch} images that are decoded together; "
            "engines take more if they are built with a larger --max-batch"
        )
    info = generator.model.info.condition
    if isinstance(info, ClassCondition):
        shown: dict[str, Any] = {"class_ids": [image % info.num_classes for image in range(batch)]}
    else:
        shown = {"text": info.examples(batch)}
    request = generator.request(**shown, **settings)
    key = generator.family.key(generator.model, request, batch)
    graphs = generator.family.program(generator.model, key).engine_stages

    def run() -> Mapping[str, float]:
        return generator.run(request).timings_ms

    complete = settings_of(generator.model.info.defaults, settings)
    return Contender(run, batch, generator.family.complete(generator.model, complete), graphs)


def measure(
    contenders: Mapping[str, Contender],
    *,
    runs: int,
    warm_up: int = 1,
    progress: Progress = no_progress,
) -> list[Measurement]:
    """Time contenders turn by turn.

    Args:
        contenders: what to time, by name.
        runs: rounds; every contender runs once per round.
        warm_up: unmeasured rounds before.
        progress: called after every run.

    Raises:
        RequestError: fewer than one run.
    """
    if runs < 1:
        raise RequestError(f"runs must be at least 1, got {runs}")
    times: dict[str, list[Mapping[str, float]]] = {name: [] for name in contenders}
    for turn in range(warm_up + runs):
        for name, each in contenders.items():
            start = time.perf_counter()
            stages = dict(each.run())
            stages["total"] = (time.perf_counter() - start) * 1e3
            if turn >= warm_up:
                times[name].append(stages)
            progress(name, (turn + 1) / (warm_up + runs))
    return [_summary(name, times[name], each) for name, each in contenders.items()]


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


def _summary(name: str, times: Sequence[Mapping[str, float]], what: Contender) -> Measurement:
    stages = {key: Percentiles.of([entry.get(key, 0.0) for entry in times]) for key in times[0]}
    total, graphs = stages.pop("total"), what.graphs & stages.keys()
    shares = [
        each["total"] / sum(each.get(key, 0.0) for key in graphs) - 1 for each in times if graphs
    ]
    return Measurement(
        name=name,
        batch=what.batch,
        settings=what.settings,
        runs=len(times),
        total_ms=total,
        images_per_s=what.batch / total.p50 * 1e3,
        stages_ms=stages,
        overhead=float(np.median(shares)) if shares else None,
    )
