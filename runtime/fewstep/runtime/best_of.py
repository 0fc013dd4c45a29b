"""The best of several candidates for every image, as the bundle's judge scores them.

Candidates are images of a request like any other, from seeds of their own, so a decode stays what
it is, on every backend. With N candidates of an image whose seed is s, candidate 0 has the seed s,
and candidate j the first 53 bits of BLAKE2b of "s:candidate:j" (digests of 8 bytes, big-endian): a
number that any reader of JSON holds exactly. So the candidates depend on s and j alone, those of
N = 2 are among those of N = 4, and the image that is kept can be made again from its own seed, with
no judge.

The judge is a graph of its own, which no program runs:
``pixels [B, H, W, 3]`` uint8 and ``condition`` (class ids ``[B]`` int32, text states ``[B, L, D]``
float32) → ``score [B]`` float32, the higher the better. It is opened when it is first asked, and
runs in ONNX Runtime on the CPU, whatever the backend.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.devices import Array, Device
from fewstep.runtime.engines import Engine, run_once
from fewstep.runtime.errors import BundleError, EngineError, RequestError
from fewstep.runtime.preview import Callback
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.request import batches, derived_seed
from fewstep.runtime.result import Result

if TYPE_CHECKING:
    from fewstep.runtime.generator import Generator

JUDGE = "judge"
"""Name of the graph, and of its stage in timings."""

MOST = 64
"""Most candidates of an image."""

_AT_ONCE = 32  # images that the judge scores together


def candidates(seed: int, count: int) -> list[int]:
    """Seeds of an image's candidates, the first its own."""
    return [seed, *(derived_seed(seed, "candidate", each) for each in range(1, count))]


def check_best_of(bundle: Bundle, count: object) -> None:
    """Refuse what cannot be the best of ``count`` candidates here.

    Raises:
        RequestError: no integer of 1 … 64.
        BundleError: above 1, and the bundle has no judge.
    """
    if not isinstance(count, (int, np.integer)) or not 1 <= count <= MOST:
        raise RequestError(f"best_of must be an integer of 1 … {MOST}, got {count!r}")
    if count > 1 and bundle.manifest.judge is None:
        raise BundleError(
            f"{bundle.path} has no judge, which best_of needs; train one with: fewstep calibrate "
            "policy … --keep-judge"
        )


class Judge:
    """The judge of a bundle, opened when it first scores images; threads take turns.

    Args:
        bundle: that has one.
        threads: of the CPU, 0 for every core.
    """

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        self._bundle, self._threads = bundle, threads
        self._lock = threading.Lock()
        self._opened: tuple[Device, Engine] | None = None

    def scores(self, pixels: npt.NDArray[np.uint8], condition: Array) -> npt.NDArray[np.float32]:
        """Scores ``[B]`` of images.

        Args:
            pixels: ``[B, H, W, 3]``.
            condition: what each was to be: class ids ``[B]``, or text states ``[B, L, D]``.

        Raises:
            BundleError: the graph is damaged.
            EngineError: it failed, or gave NaN.
            MissingDependencyError: a package that it runs by is not installed.
        """
        with self._lock:
            device, engine = self._opened = self._opened or self._open()
            parts = [
                run_once(device, engine, {"pixels": pixels[rows], "condition": condition[rows]})
                for rows in batches(len(pixels), _AT_ONCE)
            ]
        found = np.concatenate([each["score"] for each in parts])
        if not np.isfinite(found).all():
            raise EngineError(f"graph '{JUDGE}' gave NaN; train another judge")
        return found

    def _open(self) -> tuple[Device, Engine]:
        from fewstep.runtime.devices.cpu import CpuDevice
        from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine

        info = self._bundle.manifest.judge
        assert info is not None
        for file in info.graph.external:
            self._bundle.verified(file)
        path = self._bundle.verified(info.graph.file)
        engine = OnnxRuntimeEngine(JUDGE, path, info.graph, threads=self._threads)
        return CpuDevice(), engine

    def close(self) -> None:
        """Release the engine, if it was opened."""
        with self._lock:
            opened, self._opened = self._opened, None
            if opened is not None:
                opened[1].close()


def best_images(
    generator: Generator,
    count: int,
    asked: Mapping[str, Any],
    *,
    progress: Progress = no_progress,
    callback: Callback | None = None,
) -> Result:
    """Make ``count`` candidates of every image and keep the one with the highest score.

    Of candidates with the same score the first is kept. What is made beside an image does not
    matter: its candidates are the same.

    Args:
        generator: of a bundle that has a judge, if ``count`` is above 1.
        count: candidates of each image, 1 … 64; with 1 there is nothing to choose.
        asked: arguments of :meth:`Generator.request <fewstep.runtime.generator.Generator.request>`,
            settings included; ``edit`` with ``count`` 1.
        progress: told after every batch.
        callback: as of a generator's call, with ``count`` 1.

    Returns:
        The images that were kept: ``seeds`` are theirs, ``trace`` is how they came about, and
        ``scores [B, count]`` are those of all candidates if there are several.

    Raises:
        RequestError: an argument the bundle cannot serve, or one that goes with ``count`` 1.
        BundleError: the bundle has no judge, or it is damaged.
        EngineError: a graph failed, or gave NaN.
        DeviceError: as of :meth:`Generator.run <fewstep.runtime.generator.Generator.run>`.
        MissingDependencyError: a package that the judge runs by is not installed.
    """
    check_best_of(generator.bundle, count)
    if count == 1:
        return generator.run(generator.request(**asked), progress=progress, callback=callback)
    for name, value in (("callback", callback), ("edit", asked.get("edit"))):
        if value is not None:
            raise RequestError(f"best_of above 1 cannot be had with {name}: leave out one of them")
    plain = generator.request(**asked)
    is_class = isinstance(generator.model.info.condition, ClassCondition)
    others = {each: asked[each] for each in asked if each not in ("class_ids", "text", "seed")}
    images, kept = len(plain.seeds), list[Result]()
    for rows in batches(images, generator.max_batch):
        condition = plain.condition[rows].repeat(count, 0)
        seeds = [each for one in plain.seeds[rows] for each in candidates(int(one), count)]
        wanted = {"class_ids" if is_class else "text": condition, "seed": seeds}
        request = generator.request(**wanted, **others)

        def made(what: str, done: float, rows: slice = rows) -> None:
            progress(what, (rows.start + done * (rows.stop - rows.start)) / images)

        kept.append(_best(generator, request, generator.run(request, progress=made), count))
    return _joined(generator, kept)


def _best(generator: Generator, request: Any, result: Result, count: int) -> Result:
    """The best of every ``count`` images of a result."""
    start = time.perf_counter()
    scores = generator.judge.scores(result.images, generator.conditions(request))
    scores = scores.reshape(-1, count)
    kept = scores.argmax(1) + count * np.arange(len(scores))
    took = (time.perf_counter() - start) * 1e3
    timings = {**result.timings_ms, JUDGE: took, "total": result.timings_ms["total"] + took}
    decided = {name: each[:, kept] for name, each in result.trace.decisions.items()}
    trace = generator.family.trace(generator.model, decided)
    return replace(
        result,
        images=result.images[kept],
        seeds=result.seeds[kept],
        trace=trace,
        timings_ms=timings,
        scores=scores,
    )


def _joined(generator: Generator, parts: Sequence[Result]) -> Result:
    """Results of parts of a request as one."""
    decided = [each.trace.decisions for each in parts]
    trace = generator.family.trace(
        generator.model,
        {name: np.concatenate([each[name] for each in decided], 1) for name in decided[0]},
    )
    stages = dict.fromkeys(stage for each in parts for stage in each.timings_ms)
    return replace(
        parts[0],
        images=np.concatenate([each.images for each in parts]),
        seeds=np.concatenate([each.seeds for each in parts]),
        trace=trace,
        timings_ms={
            stage: sum(each.timings_ms.get(stage, 0.0) for each in parts) for stage in stages
        },
        notes=tuple(dict.fromkeys(note for each in parts for note in each.notes)),
        scores=np.concatenate([each.scores for each in parts if each.scores is not None]),
    )
