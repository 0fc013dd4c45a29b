"""The best hand-made schedule for a number of steps, by grid search: what a policy has to beat.

Three rounds on tuning seeds, against the last 1,000 *training* images of each class:

1. every combination of guidance, masking temperature and sampling temperature under the cosine
   curve, few images each; a ramp whose best value lies at the end of its candidates is continued
   beyond that end, for as long as it gets better;
2. the best of them with more images each and other seeds, and the first of them under every other
   mask ratio curve;
3. from the best of those, a step up and down on every axis, and once more from there.

The smallest Fréchet distance among those with at least 90 % of the classes recognised wins. Every
row is written as it is found, and the same command goes on from there after an interruption.

    python samples/fashion/grid_search.py --steps 4        # writes results/grid-search-4.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from evaluate import Judge, Row, generate, machine, show
from sample_bundle import sample_bundle
from training import FOLDER

from fewstep.runtime import Generator

GUIDANCE = (0.5, 1.0, 2.0, 4.0)
MASKING = (0.5, 1.0, 2.0, 4.0)
SAMPLING = (0.7, 0.8, 0.9, 1.0)
CURVES = ("cosine", "arccos", "square", "cubic", "linear", "square-root")
BEYOND = {
    "guidance": {0.5: 0.25, 0.25: 0.0, 4.0: 8.0},
    "masking_temperature": {0.5: 0.0, 4.0: 8.0},
    "sampling_temperature": {0.7: 0.6, 0.6: 0.5, 1.0: 1.1},
}
SEEDS = (10_000_000, 20_000_000)
BEST = 3
ACCURACY = 0.9
BATCH = 50


def settings_of(guidance: float, masking: float, sampling: float) -> dict[str, Any]:
    """Guidance rises from 0, masking temperature falls to 0, sampling temperature stays."""
    return {
        "schedule": "cosine",
        "guidance": (0.0, guidance),
        "masking_temperature": (masking, 0.0),
        "sampling_temperature": (sampling, sampling),
    }


class Search:
    """Scores settings, each once; keeps what it found in a file."""

    def __init__(self, generator: Generator, steps: int, out: Path) -> None:
        self._generator, self._steps, self._judge = generator, steps, Judge("train")
        self._out = out
        found = json.loads(out.read_text())["tried"] if out.exists() else []
        self.rows: list[Row] = [{**row, "settings": tupled(row["settings"])} for row in found]

    def row(self, settings: dict[str, Any], images: int, seed: int) -> Row:
        """The scores of one setting."""
        for known in self.rows:
            if (known["settings"], known["images"]) == (settings, images):
                return known
        given = {"steps": self._steps, **settings}
        made = generate(self._generator, images, seed=seed, batch=BATCH, settings=given)
        row: Row = {"settings": settings, "images": images, "seed": seed}
        row |= self._judge.score(made.images, made.labels)
        print(settings, flush=True)
        show("", row)
        self.rows.append(row)
        self.write(None)
        return row

    def write(self, chosen: dict[str, Any] | None) -> None:
        """Write every row, and the choice once it is made."""
        record = {
            "command": " ".join(["python", *sys.argv]),
            "machine": machine(),
            "steps": self._steps,
            "chosen": chosen,
            "tried": self.rows,
        }
        self._out.write_text(json.dumps(record, indent=2) + "\n")


def tupled(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they were before they went through JSON."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }


def first_round(search: Search, images: int) -> list[Row]:
    """The grid, continued where its best lies at an end."""
    axes = {
        "guidance": list(GUIDANCE),
        "masking_temperature": list(MASKING),
        "sampling_temperature": list(SAMPLING),
    }
    rows = _product(search, axes, images)
    while beyond := _beyond(min(rows, key=rank)["settings"], rows):
        rows += _product(search, beyond, images)
    return rows


def _beyond(best: dict[str, Any], rows: list[Row]) -> dict[str, list[float]] | None:
    """A value beyond an end where the best lies, if it was not tried yet."""
    around = {name: [max(best[name])] for name in BEYOND}
    for name, ends in BEYOND.items():
        (value,) = around[name]
        if value in ends:
            tried = around | {name: [ends[value]]}
            settings = settings_of(*(each[0] for each in tried.values()))
            if all(row["settings"] != settings for row in rows):
                return tried
    return None


def second_round(search: Search, rows: list[Row], images: int) -> list[Row]:
    """The best settings again, and the first of them under the other curves."""
    best = sorted(rows, key=rank)[:BEST]
    again = [search.row(row["settings"], images, SEEDS[1]) for row in best]
    settings = min(again, key=rank)["settings"]
    return again + [
        search.row({**settings, "schedule": curve}, images, SEEDS[1]) for curve in CURVES
    ]


def third_round(search: Search, rows: list[Row], images: int) -> list[Row]:
    """Neighbours of the best, and those of the best among them."""
    for _ in range(2):
        best = min(rows, key=rank)["settings"]
        rows = rows + [search.row(each, images, SEEDS[1]) for each in neighbours(best)]
    return rows


def neighbours(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Settings with one axis a step up or down: by half, or by 0.1 for the sampling temperature."""
    (_, guidance), (masking, _) = settings["guidance"], settings["masking_temperature"]
    sampling = settings["sampling_temperature"][0]
    steps: list[dict[str, Any]] = []
    for factor in (1.5, 1 / 1.5):
        steps.append({"guidance": (0.0, round(guidance * factor, 3))})
        steps.append({"masking_temperature": (round(masking * factor, 3), 0.0)})
    for by in (0.1, -0.1):
        value = round(sampling + by, 2)
        steps.append({"sampling_temperature": (value, value)})
    return [{**settings, **step} for step in steps]


def rank(row: Row) -> tuple[bool, float]:
    """Enough classes recognised first, then the smaller distance."""
    return row["accuracy"] < ACCURACY, row["frechet_distance"]


def _product(search: Search, axes: dict[str, list[float]], images: int) -> list[Row]:
    return [
        search.row(settings_of(*values), images, SEEDS[0])
        for values in itertools.product(*axes.values())
    ]


def main() -> None:
    """Search and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--images", type=int, default=500, help="of the first round")
    parser.add_argument("--more-images", type=int, default=1_000, help="of the second round")
    parser.add_argument("--bundle", type=Path, help="another bundle than the sample's")
    parser.add_argument("--threads", type=int, default=0, help="of the engines; 0 for every core")
    given = parser.parse_args()
    folder = given.bundle or sample_bundle().path
    out = FOLDER / "results" / f"grid-search-{given.steps}.json"
    with Generator.open(folder, max_batch=BATCH, threads=given.threads) as generator:
        search = Search(generator, given.steps, out)
        last = second_round(search, first_round(search, given.images), given.more_images)
        last = third_round(search, last, given.more_images)
    chosen = min(last, key=rank)["settings"]
    search.write(chosen)
    print("chosen:", json.dumps(chosen))


if __name__ == "__main__":
    main()
