"""Small pictures, and Inception with random weights in a file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

Pixels = npt.NDArray[np.uint8]


def blobs(count: int, *, seed: int, noise: float = 0.0, side: int = 16) -> Pixels:
    """Smooth random pictures ``[count, side, side, 3]``, with noise on them if wanted."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 4, 4, 3))
    smooth = coarse.repeat(side // 4, 1).repeat(side // 4, 2)
    noisy = smooth + noise * rng.standard_normal(smooth.shape)
    found: Pixels = noisy.clip(0, 255).astype(np.uint8)
    return found


def write_pictures(folder: Path, pictures: Pixels, *, classes: int = 1) -> Path:
    """A folder of PNGs, in a folder for each class if there are several."""
    for number, pixels in enumerate(pictures):
        place = folder / str(number % classes) if classes > 1 else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:05}.png")
    return folder


def averages(monkeypatch: pytest.MonkeyPatch, *others: ModuleType) -> None:
    """Has ``evaluate``, and other flows, take a network of 12 features, averages over quarters of
    the image, in the place of EfficientNet: large covariances take seconds."""
    from fewstep.calibration.evaluation import flow, networks

    class Averages(networks.Network):
        name, prefix, width = "EfficientNet of averages", "efficientnet_", 12
        frechet, kernel = networks.EfficientNet.frechet, networks.EfficientNet.kernel

        def __call__(self, images: Pixels) -> tuple[npt.NDArray[np.float32], None]:
            count, half = len(images), images.shape[1] // 2
            quarters = images.reshape(count, 2, half, 2, half, 3).mean((2, 4))
            return quarters.reshape(count, 12).astype(np.float32), None

    for each in (flow, *others):
        monkeypatch.setattr(each, "open_network", lambda *_: Averages())


@pytest.fixture
def inception_file(tmp_path: Path) -> Path:
    """Random weights under the names of ``weights-inception-2015-12-05-6726825d.pth``."""
    torch = pytest.importorskip("torch")
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    from tests.calibration.evaluation.inception import random_state

    path = tmp_path / "inception.pth"
    torch.save(random_state(), path)
    return path
