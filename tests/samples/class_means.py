"""A crude judge of Fashion-MNIST images, and one that no training of the sample saw.

``class_means.png`` has the mean of the 6,000 training images of each class, side by side.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

CLASSES = 10


def nearest(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """``[n, 32, 32, 3]`` → the classes whose means they are nearest to, ``[n]``."""
    sheet = np.asarray(Image.open(Path(__file__).with_name("class_means.png")), np.float64)
    means, grey = np.split(sheet, CLASSES, axis=1), images.mean(3)
    distances = np.stack([np.square(grey - mean).mean((1, 2)) for mean in means], 1)
    return np.asarray(distances.argmin(1))
