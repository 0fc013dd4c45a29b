"""A sheet of generated images: one row per class.

python samples/fashion/grid.py --steps 8        # writes samples/fashion/results/grid.png
python samples/fashion/grid.py --var            # writes samples/fashion/results/var-grid.png
python samples/fashion/grid.py --mar            # writes samples/fashion/results/mar-grid.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from data import CLASS_NAMES
from PIL import Image
from sample_bundle import add_forms, bundle_of
from training import FOLDER

from fewstep.runtime import Generator


def sheet(
    bundle: Path, settings: dict[str, Any], *, columns: int, seed: int, scale: int
) -> Image.Image:
    """``columns`` images of every class, black borders of the images touching."""
    ids = [label for label in range(len(CLASS_NAMES)) for _ in range(columns)]
    with Generator.open(bundle) as generator:
        images = generator.generate(class_ids=ids, seed=seed, **settings).images
    rows, size = len(CLASS_NAMES), images.shape[1]
    # [rows·columns, H, W, 3] → [rows·H, columns·W, 3]
    tiled = images.reshape(rows, columns, size, size, 3).transpose(0, 2, 1, 3, 4)
    pixels = np.ascontiguousarray(tiled.reshape(rows * size, columns * size, 3))
    picture = Image.fromarray(pixels)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_forms(parser)
    parser.add_argument("--bundle", type=Path, help="another bundle than the sample's")
    parser.add_argument("--steps", type=int, default=8, help="of the masked model")
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=int, default=2, help="pixels per pixel")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    folder = given.bundle or bundle_of(given).path
    name = "var-grid.png" if given.var else "mar-grid.png" if given.mar else "grid.png"
    settings = {} if given.var or given.mar else {"steps": given.steps}
    given.out = given.out or FOLDER / "results" / name
    picture = sheet(folder, settings, columns=given.columns, seed=given.seed, scale=given.scale)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(given.out)
    print(given.out)
