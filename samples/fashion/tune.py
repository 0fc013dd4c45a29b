"""Choose a bundle's default settings, without looking at the evaluation's images.

One setting at a time, in the order of ``MASKED``, ``VAR`` or ``MAR``: every candidate generates 500
images (seeds from 10,000,000, far from the evaluation's) that are compared with the last 1,000
*training* images of each class; the smallest Fréchet distance among those with at least 90 % of the
requested classes recognised is kept for the next setting.

    python samples/fashion/tune.py          # 8 steps; writes results/tuning.json, prints the choice
    python samples/fashion/tune.py --var    # writes results/var-tuning.json
    python samples/fashion/tune.py --mar    # 16 iterations; writes results/mar-tuning.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from evaluate import Judge, Row, generate, show
from sample_bundle import add_forms, bundle_of
from training import FOLDER

from fewstep.runtime import Generator

MASKED: dict[str, list[Any]] = {
    "guidance": [(0.0, 2.0), (0.0, 1.0), (0.0, 3.0)],
    "masking_temperature": [(4.5, 0.0), (2.0, 0.0), (1.0, 0.0)],
    "schedule": ["cosine", "arccos"],
    "sampling_temperature": [(1.0, 1.0), (1.0, 0.7), (0.8, 0.8)],
}
VAR: dict[str, list[Any]] = {
    "guidance": [(0.0, 1.5), (0.0, 3.0), (1.0, 1.0), (2.0, 2.0)],
    "top_k": [(200.0, 200.0), (512.0, 512.0), (50.0, 50.0)],
    "top_p": [(0.96, 0.96), (1.0, 1.0), (0.9, 0.9), (0.8, 0.8)],
    "sampling_temperature": [(1.0, 1.0), (1.0, 0.8), (0.9, 0.9)],
}
MAR: dict[str, list[Any]] = {
    "guidance": [(1.0, 1.0), (1.0, 1.5), (1.0, 2.0), (1.0, 2.9)],
    "temperature": [(each, each) for each in (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)],
}
SEED = 10_000_000
ACCURACY = 0.9
BATCH = 50


def tune(
    bundle: Path, candidates: dict[str, list[Any]], images: int, fixed: dict[str, Any]
) -> tuple[dict[str, Any], list[Row]]:
    """The settings chosen and every row tried; ``fixed`` ones are given with all of them."""
    judge = Judge("train")
    rows: list[Row] = []
    best: dict[str, Any] = {name: values[0] for name, values in candidates.items()}
    with Generator.open(bundle, max_batch=BATCH) as generator:

        def row_of(settings: dict[str, Any]) -> Row:
            for known in rows:
                if known["settings"] == settings:
                    return known
            given = {**fixed, **settings}
            made = generate(generator, images, seed=SEED, batch=BATCH, settings=given)
            row: Row = {"settings": settings, **judge.score(made.images, made.labels)}
            print(settings, flush=True)
            show("", row)
            rows.append(row)
            return row

        for name, values in candidates.items():
            tried = [row_of(best | {name: value}) for value in values]
            best = min(tried, key=_rank)["settings"]
    return best, rows


def _rank(row: Row) -> tuple[bool, float]:
    return row["accuracy"] < ACCURACY, row["frechet_distance"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_forms(parser)
    parser.add_argument("--bundle", type=Path, help="another bundle than the sample's")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=8, help="of the masked model")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.var:
        name, candidates, fixed = "var-tuning", VAR, dict[str, Any]()
    elif given.mar:
        name, candidates = "mar-tuning", MAR
        fixed = {"iterations": 16, "diffusion_steps": "25", "max_timestep": 950}
    else:
        name, candidates, fixed = "tuning", MASKED, {"steps": given.steps}
    folder = given.bundle or bundle_of(given).path
    given.out = given.out or FOLDER / "results" / f"{name}.json"
    chosen, tried = tune(folder, candidates, given.images, fixed)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "command": " ".join(["python", *sys.argv]),
        "images": given.images,
        **fixed,
        "seed": SEED,
        "chosen": chosen,
        "tried": tried,
    }
    given.out.write_text(json.dumps(record, indent=2) + "\n")
    print("chosen:", json.dumps({**fixed, **chosen}))
