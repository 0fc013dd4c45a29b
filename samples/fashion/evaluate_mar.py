"""Evaluate the MAR sample as ``evaluate.py`` does the masked one, at many step budgets.

The same judge, numbers of images, seeds and classes; the reconstructed row is of this tokenizer.
Then every budget's latency: one image at a time, the budgets taking turns. Rows that the file has
already are kept, if they are of the same weights, settings, images and seeds.

    python samples/fashion/evaluate_mar.py --images 2000     # writes results/mar-evaluation.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from data import CLASS_NAMES, load
from evaluate import Judge, Row, per_class, pixels, report_of, rows_of, show
from features import Images
from sample_bundle import mar_bundle
from train_mar import encoded, tokenizer
from training import FOLDER

from fewstep.runtime import Generator, bench
from fewstep.runtime.bundle import Bundle

Settings = dict[str, Any]


def _lazy(every: int, first: int, part: float) -> Settings:
    return {
        "refresh": every,
        "refresh_first": first,
        "recompute": (part, part),
        "reuse_guidance": True,
    }


BUDGETS: dict[str, Settings] = {
    "64 × 100": {"iterations": 64, "diffusion_steps": "100"},
    "16 × 25": {"iterations": 16, "diffusion_steps": "25"},
    "16 × 25:5": {"iterations": 16, "diffusion_steps": "25:5"},
    "16 × 25:5, cached": {"iterations": 16, "diffusion_steps": "25:5", **_lazy(3, 3, 0.5)},
    "12 × 25:5": {"iterations": 12, "diffusion_steps": "25:5"},
    "8 × 25:10": {"iterations": 8, "diffusion_steps": "25:10"},
    "8 × 25:5": {"iterations": 8, "diffusion_steps": "25:5"},
    "6 × 25:10": {"iterations": 6, "diffusion_steps": "25:10"},
    "4 × 25:10": {"iterations": 4, "diffusion_steps": "25:10"},
}
"""By iterations × diffusion steps; 64 iterations decide a token each. All else is the default."""


@torch.no_grad()
def reconstruct(images: Images) -> Images:
    """Grey images ``[n, 32, 32]`` through the KL tokenizer and back."""
    model, parts = tokenizer(), list[torch.Tensor]()
    moments = encoded(images)
    for start in range(0, len(moments), 250):
        mean = moments[start : start + 250, : model.embed_dim]
        parts.append(model.unclamped(mean).mean(1))
    return pixels(torch.cat(parts) / 2 + 0.5)


def latencies(bundle: Path | Bundle, budgets: dict[str, Settings], runs: int) -> dict[str, Any]:
    """Median milliseconds of an image by budget, and of its stages."""
    with Generator.open(bundle, profile=True) as generator:
        contenders = {
            name: bench.contender(generator, batch=1, settings=settings)
            for name, settings in budgets.items()
        }
        measured = bench.measure(contenders, runs=runs)
    found = {}
    for each in measured:
        stages = {name: round(taken.p50, 3) for name, taken in each.stages_ms.items()}
        found[each.name] = {"ms": round(each.total_ms.p50, 2), "stages_ms": stages}
    return found


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every row, with what is needed to make them again."""
    bundle, judge = arguments.bundle or mar_bundle(), Judge("held_out")
    budgets = {name: BUDGETS[name] for name in arguments.budgets or BUDGETS}
    real = per_class(load("train"), slice(arguments.images // len(CLASS_NAMES)))
    reference = judge.score(reconstruct(real.images), real.labels)
    show("reconstructed", reference)
    rows: list[Row] = []
    with Generator.open(bundle, max_batch=arguments.batch) as generator:
        report = report_of(generator.bundle, judge, reference, rows, arguments)
        known = _known(report, arguments.json)
        for name, settings in budgets.items():
            if known.get(name, {}).get("settings") == plain(settings):
                rows.append(known[name])
            else:
                rows += rows_of(generator, judge, {name: settings}, arguments)
                write(report, arguments.json)
    taken = latencies(bundle, budgets, arguments.runs) if arguments.runs else {}
    for row in rows:
        row |= taken.get(row["name"], {})
    return report


def _known(report: dict[str, Any], path: Path) -> dict[str, Row]:
    """Rows of a file, by name, where they were made in the same way."""
    if not path.exists():
        return {}
    found, same = json.loads(path.read_text()), ("weights_sha256", "settings", "images", "seed")
    alike = all(found.get(name) == plain(report[name]) for name in same)
    return {row["name"]: row for row in found["rows"]} if alike else {}


def plain(value: Any) -> Any:
    """As it comes back from a file."""
    return json.loads(json.dumps(value))


def write(report: dict[str, Any], path: Path) -> None:
    """Put a report into its file."""
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="another bundle than the sample's")
    parser.add_argument("--budgets", nargs="*", choices=BUDGETS, help="these alone")
    parser.add_argument("--images", type=int, default=2000, help="multiple of 10")
    parser.add_argument("--seed", type=int, default=0, help="image i gets seed + i")
    parser.add_argument("--batch", type=int, default=200, help="images decoded together")
    parser.add_argument("--runs", type=int, default=15, help="for the latency; 0 leaves it out")
    parser.add_argument("--json", type=Path, default=FOLDER / "results" / "mar-evaluation.json")
    given = parser.parse_args()
    write(evaluate(given), given.json)
