"""Features of images by EfficientNet-Lite0, for ``fewstep.calibration.policy.distances``.

The network is that of ``fewstep.calibration.policy.features``. An image is enlarged to 64×64
(bilinear), which doubles the pixels exactly and costs less than half of 96×96.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fewstep.calibration.policy.features import EfficientNetLite0

Images = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]

NETWORK = "EfficientNet-Lite0, 64×64, 1,280 features"
INPUT_SIZE = 64


def network() -> EfficientNetLite0:
    """The pretrained network, ready to run."""
    return EfficientNetLite0(INPUT_SIZE)


def extract(model: EfficientNetLite0, images: Images) -> Features:
    """Features ``[n, 1280]`` of grey images ``[n, 32, 32]``."""
    return model.pooled(np.repeat(images[..., None], 3, axis=3), torch.device("cpu"))


def cached(model: EfficientNetLite0, images: Images, path: Path) -> Features:
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
