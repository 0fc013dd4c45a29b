"""Evaluate the VAR sample as ``evaluate.py`` does the masked one, and what its savings cost.

The same judge, numbers of images, seeds and classes; the reconstructed row is of this tokenizer.
A row for the bundle's default settings, and one for each of ``SAVINGS``.

    python samples/fashion/evaluate_var.py --images 2000     # writes results/var-evaluation.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import CLASS_NAMES, load
from evaluate import Judge, per_class, pixels, report_of, rows_of, show
from features import Images
from sample_bundle import var_bundle
from train_var import prepared, tokenizer
from training import FOLDER

from fewstep.runtime import Generator

SAVINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "first 4 scales guided": {"guided_scales": 4},
    "first 2 scales guided": {"guided_scales": 2},
    "last scale left out": {"scales": 5},
    "first scale reused": {"reuse_first": True},
}


@torch.no_grad()
def reconstruct(images: Images) -> Images:
    """Grey images ``[n, 32, 32]`` through the multi-scale tokenizer and back."""
    model, parts = tokenizer(), list[torch.Tensor]()
    tokens = prepared(images, np.zeros(len(images), np.int64)).tokens.long()
    sides = model.v_patch_nums
    for start in range(0, len(tokens), 250):
        maps = torch.split(tokens[start : start + 250], [side * side for side in sides], 1)
        grids = [each.reshape(-1, side, side) for each, side in zip(maps, sides, strict=True)]
        parts.append(model.unclamped(model.quantize.f_hat(grids)).mean(1))
    return pixels(torch.cat(parts) / 2 + 0.5)


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every row, with what is needed to make them again."""
    bundle, judge = arguments.bundle or var_bundle(), Judge("held_out")
    real = per_class(load("train"), slice(arguments.images // len(CLASS_NAMES)))
    reference = judge.score(reconstruct(real.images), real.labels)
    show("reconstructed", reference)
    with Generator.open(bundle, max_batch=arguments.batch) as generator:
        rows = rows_of(generator, judge, SAVINGS, arguments)
    return report_of(generator.bundle, judge, reference, rows, arguments)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="another bundle than the sample's")
    parser.add_argument("--images", type=int, default=2000, help="multiple of 10")
    parser.add_argument("--seed", type=int, default=0, help="image i gets seed + i")
    parser.add_argument("--batch", type=int, default=50, help="images decoded together")
    parser.add_argument("--json", type=Path, default=FOLDER / "results" / "var-evaluation.json")
    given = parser.parse_args()
    results = evaluate(given)
    given.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
