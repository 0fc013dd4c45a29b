"""Compare policies with the best hand-made schedule: several seeds of many images each.

Every contender makes the same images (equal classes and seeds, none of which were used in tuning),
judged as in ``evaluate.py`` against all held-out images. ``hand-made`` is what ``grid_search.py``
found for 4 steps; any other name is a schedule or policy of the bundle. Rows are
written as they are found, and the same command goes on from there.

    python samples/fashion/compare.py --steps 4 hand-made policy-4-steps   # results/policy-4.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from evaluate import Judge, Row, generate, machine, show
from grid_search import tupled
from sample_bundle import sample_bundle
from training import FOLDER

from fewstep.runtime import Generator

HAND_MADE = "hand-made"
SEEDS = (0, 1_000_000, 2_000_000)
BATCH = 50
FIGURES = ("frechet_distance", "kernel_distance", "accuracy")


def settings_of(name: str) -> dict[str, Any]:
    """What ``Generator.generate`` is given for a contender."""
    if name != HAND_MADE:
        return {"schedule": name}
    found = json.loads((FOLDER / "results" / "grid-search-4.json").read_text())
    return tupled(found["chosen"])


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every row that is not in the file yet, and the means."""
    out: Path = arguments.json
    rows: list[Row] = json.loads(out.read_text())["rows"] if out.exists() else []
    known = {(row["schedule"], row["seed"], row["precision"]) for row in rows}
    judge = Judge("held_out")
    with Generator.open(
        arguments.bundle,
        max_batch=BATCH,
        precision=arguments.precision,
        threads=arguments.threads,
    ) as generator:
        for seed in arguments.seeds:
            for name in arguments.schedules:
                if (name, seed, arguments.precision) in known:
                    continue
                made = generate(
                    generator,
                    arguments.images,
                    seed=seed,
                    batch=BATCH,
                    settings={"steps": arguments.steps, **settings_of(name)},
                )
                score = judge.score(made.images, made.labels)
                rows.append(
                    {
                        "schedule": name,
                        "seed": seed,
                        "precision": arguments.precision,
                        "images": arguments.images,
                        "settings": settings_of(name),
                        **score,
                    }
                )
                show(f"{name}, seed {seed}", score)
                _write(out, _summary(arguments, rows))
    summary = _summary(arguments, rows)
    _write(out, summary)
    return summary


def _write(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n")


def _summary(arguments: argparse.Namespace, rows: list[Row]) -> dict[str, Any]:
    """Means and deviations of every contender over its seeds, and how many those are."""
    means: dict[str, Any] = {}
    for name in dict.fromkeys((row["schedule"], row["precision"]) for row in rows):
        mine = [row for row in rows if (row["schedule"], row["precision"]) == name]
        means[" ".join(name)] = {"seeds": len(mine)} | {
            figure: {
                "mean": round(float(np.mean([row[figure] for row in mine])), 4),
                "deviation": round(float(np.std([row[figure] for row in mine])), 4),
            }
            for figure in FIGURES
        }
    return {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "steps": arguments.steps,
        "means": means,
        "rows": rows,
    }


def main() -> None:
    """Read the arguments, compare and print the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("schedules", nargs="+")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=0, help="of the engines; 0 for every core")
    parser.add_argument("--bundle", type=Path, help="another bundle than the sample's")
    parser.add_argument("--json", type=Path, help="results/policy-STEPS.json")
    given = parser.parse_args()
    given.bundle = given.bundle or sample_bundle().path
    given.json = given.json or FOLDER / "results" / f"policy-{given.steps}.json"
    for name, mean in compare(given)["means"].items():
        distance = mean["frechet_distance"]
        print(
            f"{name:30s} Fréchet {distance['mean']:.1f} ± {distance['deviation']:.1f}  "
            f"recognised {100 * mean['accuracy']['mean']:.2f} %  ({mean['seeds']} seeds)"
        )


if __name__ == "__main__":
    main()
