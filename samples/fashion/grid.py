"""A sheet of generated images: one row per class.

python samples/fashion/grid.py --steps 8        # writes samples/fashion/results/grid.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from data import CLASS_NAMES
from PIL import Image
from sample_bundle import sample_bundle
from training import FOLDER

from fewstep.runtime import Generator


def sheet(bundle: Path, *, steps: int, columns: int, seed: int, scale: int) -> Image.Image:
    """``columns`` images of every class, black borders of the images touching."""
    ids = [label for label in range(len(CLASS_NAMES)) for _ in range(columns)]
    with Generator.open(bundle) as generator:
        images = generator.generate(class_ids=ids, steps=steps, seed=seed).images
    rows, size = len(CLASS_NAMES), images.shape[1]
    # [rows·columns, H, W, 3] → [rows·H, columns·W, 3]
    tiled = images.reshape(rows, columns, size, size, 3).transpose(0, 2, 1, 3, 4)
    pixels = np.ascontiguousarray(tiled.reshape(rows * size, columns * size, 3))
    picture = Image.fromarray(pixels)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="another bundle than the sample's")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=int, default=2, help="pixels per pixel")
    parser.add_argument("--out", type=Path, default=FOLDER / "results" / "grid.png")
    given = parser.parse_args()
    folder = given.bundle or sample_bundle().path
    picture = sheet(
        folder, steps=given.steps, columns=given.columns, seed=given.seed, scale=given.scale
    )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(given.out)
    print(given.out)
