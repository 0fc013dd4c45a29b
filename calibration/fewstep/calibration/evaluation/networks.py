"""Networks that turn images into features, and what numbers by them are called.

* **Inception** (the network of FID, Inception Score and KID) on weights that the user names, by
  torch-fidelity, which computes what TensorFlow's graph of 2015 does, its resizing included.
* **EfficientNet-Lite0** otherwise: its weights come with a package, so it needs no download. Its
  numbers compare with nothing but each other, and are never called FID.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import pickle
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.runtime.errors import CalibrationError, DeviceError, MissingDependencyError, missing

Vectors = npt.NDArray[np.float32]

_INCEPTION = "inception-v3-compat"
_KNOWN = (
    "weights-inception-2015-12-05-6726825d.pth (torch-fidelity) or "
    "pt_inception-2015-12-05-6726825d.pth (pytorch-fid)"
)


class Network(ABC):
    """``name`` tells features apart that cannot be compared; ``width`` is how many there are.

    ``prefix``: of the metrics' names in reports; ``frechet``, ``kernel``: their names for people.
    """

    name: str
    width: int
    prefix: str
    frechet: str
    kernel: str

    @abstractmethod
    def __call__(self, images: npt.NDArray[np.uint8]) -> tuple[Vectors, Vectors | None]:
        """Features ``[b, width]`` and, if the network classifies, logits ``[b, classes]`` of
        ``images [b, H, W, 3]``."""


class EfficientNet(Network):
    """1,280 averages of EfficientNet-Lite0's last map; images are brought to 64 … 224 pixels."""

    prefix = "efficientnet_"
    frechet = "EfficientNet Fréchet distance"
    kernel = "EfficientNet kernel distance"

    def __init__(self, image_side: int, device: torch.device) -> None:
        from fewstep.calibration.policy.features import EfficientNetLite0

        self._network, self._device = EfficientNetLite0(image_side).to(device), device
        self.width = self._network.width
        side = self._network.input_size
        self.name = f"EfficientNet-Lite0 at {side}×{side}"

    def __call__(self, images: npt.NDArray[np.uint8]) -> tuple[Vectors, None]:
        return self._network.pooled(images, self._device), None


class Inception(Network):
    """2,048 features before Inception's last layer, and its logits without bias."""

    name = "Inception-v3 (2015-12-05)"
    prefix = ""
    frechet = "FID"
    kernel = "KID"
    width = 2048

    def __init__(self, weights: Path, device: torch.device) -> None:
        state, layers = _state(weights), ["2048", "logits_unbiased"]
        extractor = inception_class()
        buffer = io.BytesIO()  # the library would unpickle whatever a file holds
        torch.save(state, buffer)
        buffer.seek(0)
        try:
            made = extractor(_INCEPTION, layers, feature_extractor_weights_path=buffer)
        except RuntimeError as error:
            raise CalibrationError(
                f"{weights} is not Inception as FID uses it ({_first_line(error)}): expected "
                f"{_KNOWN}"
            ) from error
        self._network, self._device = made.to(device), device

    def __call__(self, images: npt.NDArray[np.uint8]) -> tuple[Vectors, Vectors]:
        batch = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        with torch.no_grad():
            features, logits = self._network(batch.to(self._device))
        return features.cpu().numpy(), logits.cpu().numpy()


def open_network(weights: Path | None, image_side: int, device: str) -> Network:
    """Inception with ``weights``, or EfficientNet without.

    Args:
        weights: Inception's, as torch-fidelity or pytorch-fid publish them.
        image_side: pixels; EfficientNet's input depends on it.
        device: ``auto``, ``cpu`` or ``cuda`` (``cuda:1`` is the second).

    Raises:
        CalibrationError: the weights are not there, or none of Inception's.
        DeviceError: no such device.
        MissingDependencyError: a package is not installed.
    """
    chosen = _device(device)
    if weights is not None:
        return Inception(weights, chosen)
    try:
        return EfficientNet(image_side, chosen)
    except ImportError as error:
        raise missing(str(error.name), "evaluation") from error


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(
            f"PyTorch cannot use the device '{name}': {_first_line(error)}; use auto, cpu or cuda"
        ) from error
    return found


def inception_class() -> Any:
    """torch-fidelity's Inception, without torchvision.

    Only other networks of the package need torchvision, but its ``__init__`` imports them all, and
    PyPI's torchvision does not load beside a PyTorch without CUDA. So ``__init__`` is left out.

    Raises:
        MissingDependencyError: torch-fidelity is not installed, or a version without that module.
    """
    package, module = "torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise MissingDependencyError(
            "torch-fidelity is not installed; install it with: pip install --no-deps torch-fidelity"
        )
    whole = package in sys.modules
    if not whole:
        sys.modules[package] = importlib.util.module_from_spec(spec)  # its place, and no content
    try:
        return importlib.import_module(module).FeatureExtractorInceptionV3
    except ImportError as error:
        raise MissingDependencyError(
            f"this version of torch-fidelity has another Inception ({_first_line(error)}); install "
            "a newer one with: pip install --no-deps --upgrade torch-fidelity"
        ) from error
    finally:
        if not whole:  # who imports the package afterwards gets all of it
            for name in [each for each in sys.modules if each.split(".")[0] == package]:
                del sys.modules[name]


def require_weights(path: Path) -> None:
    """Refuse a place without a file, before any work.

    Raises:
        CalibrationError: nothing is there, or a folder.
    """
    if not path.is_file():
        what = f"{path} is a folder" if path.is_dir() else f"no such file: {path}"
        raise CalibrationError(f"{what}; --weights expects {_KNOWN}")


def _state(path: Path) -> dict[str, Tensor]:
    """Tensors by name; nothing of the file is executed."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CalibrationError(f"cannot read {path}: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise CalibrationError(f"{path} holds no weights: expected {_KNOWN}") from error
    if not isinstance(state, dict) or not all(isinstance(each, Tensor) for each in state.values()):
        raise CalibrationError(f"{path} holds no tensors by name: expected {_KNOWN}")
    return state


def _first_line(error: BaseException) -> str:
    """What an error of another library says, short."""
    return " ".join(str(error).split())[:160]
