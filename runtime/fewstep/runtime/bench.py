"""Latency of whole generations: stages, percentiles, throughput, memory, and comparisons.

All contenders of a comparison run interleaved in one process, a round at a time, and ratios are of
runs of the same round, so that none rests on two moods of the machine. One run is one call with a
full batch, after warm-up.
"""

from __future__ import annotations

import itertools
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.doctor import diagnose
from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.settings import settings_of

LEAST_RUNS = 5
"""Measured rounds at least, however long they take, where a duration is asked for."""

_WARM_UP = 0.2
"""Seconds of warm-up for each second that is measured."""

_CLASSES = 64
"""Classes that runs take in turn; so many that what is kept of a few does not make them faster."""

_MUCH_SPREAD = 0.25
MUCH_LOAD = 0.15
"""Share of the CPUs in other processes that makes times doubtful."""


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds that half, nine tenths and 99 in 100 runs stay within.

    ``p90`` is ``None`` of fewer than 10 runs, and ``p99`` of fewer than 100: they would be the
    slowest run under another name.
    """

    p50: float
    p90: float | None
    p99: float | None

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Percentiles:
        """Percentiles of ``times_ms``, interpolated."""
        p50, p90, p99 = (float(value) for value in np.percentile(times_ms, [50, 90, 99]))
        runs = len(times_ms)
        return cls(p50, p90 if runs >= 10 else None, p99 if runs >= 100 else None)


@dataclass(frozen=True)
class Measurement:
    """Times of one contender over ``runs`` runs.

    ``settings``: of its requests, complete. ``stages_ms``: per stage. ``overhead``:
    median of (total − graphs) / graphs, the share that the loop adds; ``None`` where stages are not
    known. ``images_per_s`` is from the median. ``ratio``: median of its time over the first
    contender's of the same round. ``spread``: quartile range of the total over its median.
    """

    name: str
    batch: int
    settings: dict[str, Any]
    runs: int
    total_ms: Percentiles
    images_per_s: float
    stages_ms: dict[str, Percentiles]
    overhead: float | None
    ratio: float = 1.0
    spread: float = 0.0


@dataclass(frozen=True)
class Report:
    """All measurements of one bench, with the machine and the peak memory of the process.

    ``others_load``: share of the CPUs that other processes kept busy meanwhile, 0 … 1; ``None``
    where the system does not tell.
    """

    bundle: str
    backend: str
    device: str
    precision: str
    measurements: tuple[Measurement, ...]
    peak_memory_bytes: int
    machine: dict[str, str]
    packages: dict[str, str | None]
    others_load: float | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes these times doubtful, a sentence each."""
        found = []
        if self.others_load is not None and self.others_load > MUCH_LOAD:
            found.append(
                f"the machine was busy: other processes took {self.others_load:.0%} of its CPUs; "
                "ratios hold better than times"
            )
        uneven = max(self.measurements, key=lambda each: each.spread, default=None)
        if uneven is not None and uneven.spread > _MUCH_SPREAD:
            found.append(
                f"the middle half of the times of {uneven.name} spreads over {uneven.spread:.0%} "
                "of their median; measure again, for longer or on an idle machine"
            )
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "warnings": list(self.warnings)}


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
    """Runs of the generator itself, on classes in turn, also from run to run (or text states of no
    text).

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
        ids = itertools.cycle(info.ids[:_CLASSES])
        runs = math.lcm(min(len(info.ids), _CLASSES), batch) // batch
        asked: list[dict[str, Any]] = [
            {"class_ids": [*itertools.islice(ids, batch)]} for _ in range(runs)
        ]
    else:
        asked = [{"text": info.examples(batch)}]
    requests = [generator.request(**each, **settings) for each in asked]
    key = generator.family.key(generator.model, requests[0], batch)
    graphs = generator.family.program(generator.model, key).engine_stages
    following = itertools.cycle(requests)

    def run() -> Mapping[str, float]:
        return generator.run(next(following)).timings_ms

    complete = settings_of(generator.model.info.defaults, settings)
    return Contender(run, batch, generator.family.complete(generator.model, complete), graphs)


def measure(
    contenders: Mapping[str, Contender],
    *,
    runs: int | None = None,
    seconds: float = 3.0,
    progress: Progress = no_progress,
) -> list[Measurement]:
    """Time contenders turn by turn, after a round or more of warm-up.

    Args:
        contenders: what to time, by name.
        runs: measured rounds, after one of warm-up; every contender runs once per round.
        seconds: without ``runs``: how long to measure for each contender on average, after a
            fifth of that as warm-up; :data:`LEAST_RUNS` rounds are measured at least.
        progress: called after every run.

    Raises:
        RequestError: fewer than one run, or no time.
    """
    if runs is not None and runs < 1:
        raise RequestError(f"runs must be at least 1, got {runs}")
    if runs is None and not 0 < seconds < math.inf:
        raise RequestError(f"seconds must be above 0, got {seconds:g}")
    budget = 0.0 if runs is not None else seconds * len(contenders)
    warm_up, least = budget * _WARM_UP, runs or LEAST_RUNS
    for done in _rounds(1, warm_up):
        for name, each in contenders.items():
            each.run()
            progress(f"warming up {name}", done)
    times: dict[str, list[Mapping[str, float]]] = {name: [] for name in contenders}
    for done in _rounds(least, budget):
        for name, each in contenders.items():
            start = time.perf_counter()
            stages = dict(each.run())
            stages["total"] = (time.perf_counter() - start) * 1e3
            times[name].append(stages)
            progress(name, done)
    first = next(iter(times.values()), [])
    return [_summary(name, times[name], each, first) for name, each in contenders.items()]


def _rounds(least: int, seconds: float) -> Iterator[float]:
    """Rounds, so many at least and for so long; each with what will be done after it, 0 … 1."""
    start, done = time.perf_counter(), 0
    while done < least or time.perf_counter() - start < seconds:
        spent = (time.perf_counter() - start) * (done + 1) / max(1, done)
        done += 1
        yield min(1.0, done / least, spent / seconds if seconds else 1.0)


def report(
    generator: Generator, measurements: Sequence[Measurement], others_load: float | None = None
) -> Report:
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
        others_load,
    )


def _summary(
    name: str,
    times: Sequence[Mapping[str, float]],
    what: Contender,
    first: Sequence[Mapping[str, float]],
) -> Measurement:
    totals = np.array([each["total"] for each in times])
    quartiles = np.percentile(totals, [25, 75])
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
        ratio=float(np.median(totals / [each["total"] for each in first])),
        spread=float(np.ptp(quartiles) / total.p50),
    )
