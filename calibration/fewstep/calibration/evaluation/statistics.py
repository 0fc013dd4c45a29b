"""Gaussians of features in files: ``mu`` and ``sigma`` of an ``.npz``, as pytorch-fid and ADM write
them. Ours also say of how many images and by which network."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewstep.calibration.evaluation.networks import Network
from fewstep.calibration.policy.distances import Matrix
from fewstep.runtime.errors import CalibrationError, OutputError
from fewstep.runtime.files import replacing


@dataclass(frozen=True)
class Statistics:
    """``mean [d]`` and ``covariance [d, d]`` float64; number of images and network, if known."""

    mean: Matrix
    covariance: Matrix
    count: int | None = None
    network: str | None = None


def read_statistics(path: Path) -> Statistics:
    """Statistics of an ``.npz`` with ``mu`` and ``sigma``.

    Raises:
        CalibrationError: it cannot be read, or what it holds is no mean and covariance.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            mean, covariance = archive["mu"], archive["sigma"]
            count = int(archive["count"]) or None if "count" in archive else None
            network = str(archive["network"]) or None if "network" in archive else None
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as e:
        raise CalibrationError(f"{path} holds no statistics (mu and sigma): {e}") from e
    width = len(mean) if mean.ndim else 0
    numbers = mean.dtype.kind == covariance.dtype.kind == "f"
    if not numbers or mean.shape != (width,) or covariance.shape != (width, width):
        raise CalibrationError(
            f"{path}: expected mu [d] and sigma [d, d], got {mean.dtype} {list(mean.shape)} and "
            f"{covariance.dtype} {list(covariance.shape)}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise CalibrationError(f"{path}: mu and sigma must be finite")
    return Statistics(mean.astype(np.float64), covariance.astype(np.float64), count, network)


def check(path: Path, statistics: Statistics, network: Network) -> None:
    """Refuse statistics of other features.

    Raises:
        CalibrationError: they are.
    """
    width = len(statistics.mean)
    remedy = "name Inception's weights with --weights" if width == 2048 else "give the images"
    if statistics.network not in (None, network.name):
        raise CalibrationError(
            f"{path} is of {statistics.network}, not of {network.name}: distances between the two "
            f"mean nothing; {remedy}"
        )
    if width != network.width:
        raise CalibrationError(
            f"{path} is of {width:,} features, {network.name} has {network.width:,}; {remedy}"
        )


def check_name(path: Path) -> None:
    """Refuse names that are no ``.npz``.

    Raises:
        OutputError: it is.
    """
    if path.suffix != ".npz":
        raise OutputError(f"{path}: statistics are written as .npz")


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write ``mu``, ``sigma``, ``count`` and ``network``.

    Raises:
        OutputError: the place is not writable.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            mu=statistics.mean,
            sigma=statistics.covariance,
            count=np.array(statistics.count or 0),
            network=np.array(statistics.network or ""),
        )
