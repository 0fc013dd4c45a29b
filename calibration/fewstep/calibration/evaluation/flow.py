"""From two places with images, or statistics of them, to a report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.calibration.evaluation import statistics
from fewstep.calibration.evaluation.images import ARRAYS, Images, names_of, open_images
from fewstep.calibration.evaluation.metrics import NEIGHBOURS, inception_score, precision_recall
from fewstep.calibration.evaluation.networks import (
    Network,
    Vectors,
    open_network,
    require_weights,
)
from fewstep.calibration.evaluation.statistics import Statistics
from fewstep.calibration.policy.distances import (
    frechet_of_gaussians,
    gaussian,
    kernel_distance,
)
from fewstep.runtime import machine
from fewstep.runtime.errors import CalibrationError
from fewstep.runtime.files import require_writable
from fewstep.runtime.progress import Progress, no_progress

_LEAST = 2  # images that have a covariance
_SUBSET = 1_000  # images in a subset of the kernel distance
_OF_PAPERS = 50_000  # images that papers generate for FID


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    ``metrics``: by name; those of EfficientNet say so in their names. ``titles``: the same for
    people. ``warnings``: what makes numbers worse than they look, and what could not be computed.
    """

    images: str
    count: int
    size: tuple[int, int]
    reference: str | None
    reference_count: int | None
    features: str
    metrics: dict[str, float]
    titles: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    saved: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {key: value for key, value in asdict(self).items() if key != "titles"}


@dataclass(frozen=True)
class Evaluated:
    """A set's features ``[n, d]`` and logits, if there are images, and its statistics."""

    statistics: Statistics
    features: Vectors | None = None
    logits: Vectors | None = None


def evaluate(
    images: Path,
    reference: Path | None,
    *,
    weights: Path | None = None,
    batch: int = 64,
    device: str = "auto",
    threads: int = 0,
    resize: int | None = None,
    save: Path | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Compare images with a reference.

    Args:
        images: a folder of pictures, or an ``.npz`` with ``arr_0``.
        reference: the same, or an ``.npz`` with ``mu`` and ``sigma`` (and perhaps images as well:
            then the distance is to the statistics, all else to the images); ``None`` only saves.
        weights: Inception's; without them features are EfficientNet's.
        batch: images that the network sees at once.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: CPU threads of the network; 0 uses every core.
        resize: cut the middle square out of every image and bring it to this side.
        save: write the statistics of ``images`` here.
        progress: called after every batch.

    Raises:
        CalibrationError: what is there cannot be used, or neither reference nor ``save``.
        DeviceError: no such device.
        MissingDependencyError: a package is not installed.
        OutputError: ``save`` cannot be written.
        RequestError: no number of threads.
    """
    machine.require_threads(threads)
    if weights is not None:
        require_weights(weights)
    if reference is None and save is None:
        raise CalibrationError("nothing to compare with: give --reference, or --save-statistics")
    if save is not None:
        statistics.check_name(save)
        require_writable(save)
    shown, known, real = open_images(images, resize), None, None
    if reference is not None:
        known, real = _reference(reference, resize)
    torch.set_num_threads(threads or machine.cores())
    network = open_network(weights, max(shown.size), device)
    if known is not None and reference is not None:
        statistics.check(reference, known, network)
    found = _evaluated(shown, network, batch, progress)
    if save is not None:
        statistics.write_statistics(save, found.statistics)
    compared = None if real is None else _evaluated(real, network, batch, progress)
    if compared is not None and known is not None:
        compared = Evaluated(known, compared.features)
    elif known is not None:
        compared = Evaluated(known)
    titled = dict(_metrics(found, compared, network, progress))
    return Evaluation(
        images=str(images),
        count=shown.count,
        size=shown.size,
        reference=None if reference is None else str(reference),
        reference_count=None if compared is None else compared.statistics.count,
        features=network.name,
        metrics={name: value for name, (_, value) in titled.items()},
        titles={name: title for name, (title, _) in titled.items()},
        warnings=tuple(_warnings(shown, real, compared, network)),
        saved=None if save is None else str(save),
    )


def reference_statistics(
    path: Path,
    network: Network,
    *,
    resize: int | None = None,
    batch: int = 64,
    progress: Progress = no_progress,
) -> Statistics:
    """Mean and covariance of real images, read or computed.

    Args:
        path: as ``reference`` of :func:`evaluate`.
        network: whose features.
        resize: as there.
        batch: as there.
        progress: called after every batch.

    Raises:
        CalibrationError: what is there cannot be used.
    """
    known, real = _reference(path, resize)
    if known is not None:
        statistics.check(path, known, network)
        return known
    assert real is not None
    return _evaluated(real, network, batch, progress).statistics


def _reference(path: Path, resize: int | None) -> tuple[Statistics | None, Images | None]:
    """Statistics and images of a reference, whichever there are."""
    if path.suffix != ".npz" or not path.is_file():
        return None, open_images(path, resize)
    names = names_of(path)
    if not names & {"mu", "sigma", *ARRAYS}:
        raise CalibrationError(
            f"{path} holds neither statistics (mu and sigma) nor images (arr_0): it has "
            f"{', '.join(sorted(names))[:200] or 'nothing'}"
        )
    known = statistics.read_statistics(path) if names & {"mu", "sigma"} else None
    return known, open_images(path, resize) if names & {*ARRAYS} else None


def _evaluated(images: Images, network: Network, batch: int, progress: Progress) -> Evaluated:
    if images.count < _LEAST:
        raise CalibrationError(f"{images.path} holds one image; at least {_LEAST} are needed")
    phase, done = f"features of {images.path}", 0
    progress(phase, 0.0)
    features, logits = [], []
    for part in images.batches(batch):
        vectors, scores = network(part)
        features.append(vectors)
        if scores is not None:
            logits.append(scores)
        done += len(part)
        progress(phase, done / images.count)
    joined = np.concatenate(features)
    if not np.isfinite(joined).all():
        raise CalibrationError(
            f"features of {images.path} are not all finite: the weights of {network.name} may be "
            "damaged"
        )
    counted = Statistics(*gaussian(joined), images.count, network.name)
    return Evaluated(counted, joined, np.concatenate(logits) if logits else None)


def _metrics(
    found: Evaluated, compared: Evaluated | None, network: Network, progress: Progress
) -> Iterator[tuple[str, tuple[str, float]]]:
    """Name, title and value of every metric that can be computed."""
    prefix, by = network.prefix, f" ({network.frechet.split()[0]} features)" * bool(network.prefix)
    if compared is not None:
        progress(network.frechet, 0.0)
        a, b = found.statistics, compared.statistics
        value = frechet_of_gaussians(a.mean, a.covariance, b.mean, b.covariance)
        value = max(0.0, value)  # equal sets may come out below by rounding
        yield f"{prefix}frechet_distance" if prefix else "fid", (network.frechet, value)
    if found.logits is not None:
        mean, deviation = inception_score(found.logits)
        yield "inception_score", ("Inception Score", mean)
        yield "inception_score_deviation", ("Inception Score, deviation over splits", deviation)
    if compared is None or compared.features is None or found.features is None:
        return
    progress(network.kernel, 0.0)
    mean, deviation = kernel_distance(found.features, compared.features, subset_size=_SUBSET)
    name = f"{prefix}kernel_distance" if prefix else "kid"
    yield name, (network.kernel, mean)
    yield f"{name}_deviation", (f"{network.kernel}, deviation over subsets", deviation)
    if min(len(found.features), len(compared.features)) > NEIGHBOURS:
        both = precision_recall(found.features, compared.features, progress=progress)
        for title, value in zip(("precision", "recall"), both, strict=True):
            yield f"{prefix}{title}", (f"{title}{by}", value)


def _warnings(
    shown: Images, real: Images | None, compared: Evaluated | None, network: Network
) -> Iterator[str]:
    if network.prefix:
        yield (
            f"numbers are of {network.name}: compare them only with each other, never with "
            "published FID; --weights FILE takes Inception's"
        )
    counts = {str(shown.path): shown.count}
    if compared is not None and real is not None and compared.statistics.count is not None:
        counts[str(real.path)] = compared.statistics.count
    for path, count in counts.items():
        if count <= network.width:
            yield (
                f"{path} has {count:,} images: a Fréchet distance over {network.width:,} features "
                f"needs more than {network.width:,}, and is too high with fewer"
            )
    if not network.prefix and network.width < shown.count < _OF_PAPERS:
        yield f"FID of {shown.count:,} images is higher than of the {_OF_PAPERS:,} of papers"
    if real is not None and real.size != shown.size:
        yield (
            f"images are {_spelled(shown.size)}, those of the reference {_spelled(real.size)}: the "
            "network resizes both, which counts as a difference"
        )
    if compared is not None and compared.features is None:
        yield (
            "precision, recall and kernel distance need images of the reference; statistics have "
            "none"
        )
    elif real is not None:
        yield from _few(shown, real, network)
    if compared is not None and compared.statistics.network is None:
        yield (
            "the statistics do not say which network they are of: they fit by the number of "
            "features alone"
        )


def _few(shown: Images, real: Images, network: Network) -> Iterator[str]:
    """Of metrics between images, when one side has few of them."""
    smaller = min(shown, real, key=lambda images: images.count)
    count, names = smaller.count, f"precision, recall and {network.kernel}"
    if count <= NEIGHBOURS:
        yield f"precision and recall need more than {NEIGHBOURS} images on both sides"
        names = network.kernel
    if count < _SUBSET:
        yield (
            f"{names} say little with {count:,} images: they need {_SUBSET:,} or more on both sides"
        )
        yield (
            f"subsets of {network.kernel} are {count:,} images, all that {smaller.path} has: its "
            "deviation is too small, and equal images come out below 0"
        )


def _spelled(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
