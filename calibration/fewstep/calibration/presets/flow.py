"""``fewstep calibrate presets``: a curve of quality over time, and presets that are points of it.

Flow: settings to try → milliseconds of an image by each, turn by turn → images by each, with the
same classes and seeds → features → Fréchet distance to real images → three points become the
presets ``fast``, ``balanced`` and ``best`` of the bundle.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewstep import __version__
from fewstep.calibration.evaluation.flow import reference_statistics
from fewstep.calibration.evaluation.networks import Network, open_network, require_weights
from fewstep.calibration.evaluation.statistics import Statistics
from fewstep.calibration.policy.distances import frechet_of_gaussians, gaussian
from fewstep.calibration.presets.curve import chosen
from fewstep.runtime import bench
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.devices import Array
from fewstep.runtime.doctor import diagnose, processor_name
from fewstep.runtime.errors import RequestError
from fewstep.runtime.examples import complete_settings
from fewstep.runtime.families import Model, family_of, model_of
from fewstep.runtime.files import require_writable_bundle
from fewstep.runtime.generator import Generator
from fewstep.runtime.load import OthersLoad
from fewstep.runtime.machine import cores
from fewstep.runtime.presets import CurveInfo, PointInfo
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.request import batches
from fewstep.runtime.settings import settings_of

_TOGETHER = 64  # images whose features are computed together
_TOOLS = ("fewstep", "onnxruntime", "openvino", "torch")


@dataclass(frozen=True)
class PresetsRequest:
    """What is to be measured.

    ``reference``: real images, or statistics of them, as of ``fewstep evaluate``. ``candidates``:
    settings to try, the family's own if none. ``images`` by each, with seeds from ``seed``.
    ``text``: states or ids of the texts that images are of, in turn, for text-conditional bundles.
    ``within``: how much larger than the least distance those of ``fast`` and ``balanced`` may be.
    ``seconds``: that times are measured for, by each.
    """

    bundle: Path
    reference: Path
    candidates: tuple[Mapping[str, Any], ...] = ()
    images: int = 2000
    seed: int = 0
    text: Array | None = None
    weights: Path | None = None
    resize: int | None = None
    within: tuple[float, float] = (0.25, 0.05)
    seconds: float = 3.0
    backend: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0
    batch: int = 8

    def __post_init__(self) -> None:
        if self.images < 2:
            raise RequestError(f"--images must be at least 2, got {self.images}")
        if not 0 <= self.seed <= 2**64 - self.images:
            raise RequestError(
                f"--seed must be 0 … {2**64 - self.images}, so that all fit, got {self.seed}"
            )
        fast, balanced = self.within
        if not (math.isfinite(fast) and fast >= balanced >= 0):
            raise RequestError(
                f"--within takes two parts of the least distance, the first at least as large, "
                f"got {fast:g} {balanced:g}"
            )


@dataclass(frozen=True)
class Outcome:
    """The curve as it was stored, and what makes it doubtful."""

    curve: CurveInfo
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**self.curve.model_dump(mode="json"), "warnings": list(self.warnings)}


def calibrate_presets(request: PresetsRequest, progress: Progress = no_progress) -> Outcome:
    """Measure a curve and store it in the bundle, with three of its points as presets.

    Args:
        request: what is to be measured.
        progress: called as the phases go on.

    Raises:
        RequestError: settings that the bundle cannot serve, or a text-conditional bundle without
            texts.
        CalibrationError: the reference cannot be used.
        BundleError: the bundle is damaged.
        MissingDependencyError: a package is not installed.
        EngineError: a graph failed.
        OutputError: the bundle cannot be written; it is as before.
    """
    bundle = Bundle.read(request.bundle)
    require_writable_bundle(bundle.path)
    if request.weights is not None:
        require_weights(request.weights)
    model = model_of(bundle)
    if "preset" not in type(model.info.defaults).model_fields:
        raise RequestError(f"{model.info.kind} models have no presets")
    candidates = _candidates(model, request.candidates)
    condition = _condition(model, request)
    network = open_network(request.weights, max(model.info.image_size), "auto")
    reference = reference_statistics(
        request.reference, network, resize=request.resize, progress=progress
    )
    with Generator.open(
        bundle,
        backend=request.backend,
        device=request.device,
        precision=request.precision,
        threads=request.threads,
        max_batch=request.batch,
    ) as generator:
        times, others = _times(generator, candidates, request.seconds, progress)
        distance = _Distance(generator, network, reference, request.seed)
        points = list[PointInfo]()
        for name, settings in candidates.items():
            value = distance.of(settings, condition, functools.partial(_named, progress, name))
            points.append(
                PointInfo(settings=settings, image_ms=times[name], frechet_distance=value)
            )
        found = _curve(generator, request, network, chosen(points, request.within), others)
    _store(bundle.path, found)
    return Outcome(found, tuple(_warnings(found, network)))


def _candidates(model: Model, given: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Complete settings, by what they were called; no two the same."""
    found: dict[str, dict[str, Any]] = {}
    for each in given or _suggested(model):
        complete = complete_settings(model, each)
        if complete not in found.values():
            name = ", ".join(f"{key} {value}" for key, value in each.items())
            found[name or "the defaults"] = complete
    return found


def _suggested(model: Model) -> list[dict[str, Any]]:
    """The family's candidates, and the same with every smaller decoder that the bundle has."""
    found = list(family_of(model.info.kind).candidates(model))
    return found + [{**each, "decoder": name} for name in model.info.decoders for each in found]


def _condition(model: Model, request: PresetsRequest) -> Array:
    """Classes in turn, or the texts in turn."""
    info = model.info.condition
    if isinstance(info, ClassCondition):
        if request.text is not None:
            raise RequestError("this bundle is class-conditional: leave --text-file out")
        if request.images < len(info.ids):
            return info.examples(request.images)
        return np.resize(np.array(info.ids, np.int32), request.images)
    if request.text is None:
        raise RequestError("give the texts that the real images are of, with --text-file")
    return np.resize(request.text, (request.images, *request.text.shape[1:]))


def _times(
    generator: Generator,
    candidates: Mapping[str, dict[str, Any]],
    seconds: float,
    progress: Progress,
) -> tuple[dict[str, float], float | None]:
    """Median milliseconds of an image alone, by name, and what others took of the CPUs."""
    watch = OthersLoad()
    contenders = {
        name: bench.contender(generator, batch=1, settings=settings)
        for name, settings in candidates.items()
    }
    measured = bench.measure(contenders, seconds=seconds, progress=progress)
    return {each.name: each.total_ms.p50 for each in measured}, watch.share()


@dataclass(frozen=True)
class _Distance:
    """Fréchet distances of generated images to the reference."""

    generator: Generator
    network: Network
    reference: Statistics
    seed: int

    def of(self, settings: Mapping[str, Any], condition: Array, progress: Progress) -> float:
        """By these settings, ``[n]`` or more of the condition."""
        generator, model = self.generator, self.generator.model
        chosen = settings_of(model.info.defaults, settings)
        features = []
        for rows in batches(len(condition), _TOGETHER):
            seeds = np.arange(rows.start, rows.stop, dtype=np.uint64) + np.uint64(self.seed)
            request = generator.family.request(model, condition[rows], seeds, chosen)
            features.append(self.network(generator.run(request).images)[0])
            progress("images", rows.stop / len(condition))
        mean, covariance = gaussian(np.concatenate(features))
        reference = self.reference
        return max(
            0.0, frechet_of_gaussians(mean, covariance, reference.mean, reference.covariance)
        )


def _named(progress: Progress, name: str, what: str, done: float) -> None:
    progress(f"{what} by {name}", done)


def _curve(
    generator: Generator,
    request: PresetsRequest,
    network: Network,
    points: tuple[PointInfo, ...],
    others: float | None,
) -> CurveInfo:
    known = {"fewstep": __version__, **diagnose().packages}
    return CurveInfo(
        points=points,
        images=request.images,
        seed=request.seed,
        reference=request.reference.name,
        features=network.name,
        backend=generator.backend,
        precision=generator.precision,
        device=generator.device.name,
        processor=processor_name(),
        threads=request.threads or cores(),
        others_load=others,
        tools={name: each for name in _TOOLS if (each := known.get(name))},
    )


def _store(path: Path, curve: CurveInfo) -> None:
    """Into the bundle as it is now; its other presets stay."""
    with Bundle.locked(path) as now:
        model = now.manifest.model.model_dump()
        for point in curve.points:
            for name in point.presets:
                model["presets"][name] = point.settings
        now.update({}, model=model, curve=curve.model_dump())


def _warnings(curve: CurveInfo, network: Network) -> list[str]:
    found = []
    if curve.images <= network.width:
        found.append(
            f"a Fréchet distance over {network.width:,} features needs more than {network.width:,} "
            f"images, got {curve.images:,}: distances are too high"
        )
    if curve.others_load is not None and curve.others_load > bench.MUCH_LOAD:
        found.append(
            f"the machine was busy: other programs took {curve.others_load:.0%} of its CPUs"
        )
    return found
