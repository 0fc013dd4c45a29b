"""Choose the bundle's default settings for 8 steps, without looking at the evaluation's images.

One setting at a time, in the order of ``CANDIDATES``: every candidate generates 500 images
(seeds from 10,000,000, far from the evaluation's) that are compared with the last 1,000 *training*
images of each class; the smallest Fréchet distance among those with at least 90 % of the
requested classes recognised is kept for the next setting.

    python samples/fashion/tune.py        # writes results/tuning.json, prints the choice
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from evaluate import Judge, Row, generate, show
from sample_bundle import sample_bundle
from training import FOLDER

from fewstep.runtime import Generator

CANDIDATES: dict[str, list[Any]] = {
    "guidance": [(0.0, 2.0), (0.0, 1.0), (0.0, 3.0)],
    "masking_temperature": [(4.5, 0.0), (2.0, 0.0), (1.0, 0.0)],
    "schedule": ["cosine", "arccos"],
    "sampling_temperature": [(1.0, 1.0), (1.0, 0.7), (0.8, 0.8)],
}
SEED = 10_000_000
ACCURACY = 0.9
BATCH = 50


def tune(bundle: Path, images: int, steps: int) -> tuple[dict[str, Any], list[Row]]:
    """The settings chosen and every row tried."""
    judge = Judge("train")
    rows: list[Row] = []
    best: dict[str, Any] = {name: candidates[0] for name, candidates in CANDIDATES.items()}
    with Generator.open(bundle, max_batch=BATCH) as generator:

        def row_of(settings: dict[str, Any]) -> Row:
            for known in rows:
                if known["settings"] == settings:
                    return known
            made = generate(generator, images, steps, seed=SEED, batch=BATCH, settings=settings)
            row: Row = {"settings": settings, **judge.score(made.images, made.labels)}
            print(settings, flush=True)
            show("", row)
            rows.append(row)
            return row

        for name, candidates in CANDIDATES.items():
            tried = [row_of(best | {name: value}) for value in candidates]
            best = min(tried, key=_rank)["settings"]
    return best, rows


def _rank(row: Row) -> tuple[bool, float]:
    return row["accuracy"] < ACCURACY, row["frechet_distance"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="another bundle than the sample's")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path, default=FOLDER / "results" / "tuning.json")
    given = parser.parse_args()
    folder = given.bundle or sample_bundle().path
    chosen, tried = tune(folder, given.images, given.steps)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "command": " ".join(["python", *sys.argv]),
        "images": given.images,
        "steps": given.steps,
        "seed": SEED,
        "chosen": chosen,
        "tried": tried,
    }
    given.out.write_text(json.dumps(record, indent=2) + "\n")
    print("chosen:", json.dumps({"steps": given.steps, **chosen}))
