"""Evaluate the best of 1, 2 and 4 candidates as the bundle's judge chooses them.

Candidates are made once, four for every image, with the seeds of ``fewstep.runtime.best_of``: those
of the best of 2 are among them. Rows are judged as in ``evaluate.py``. *The distances use the very
features that the judge was trained on*, so there is another, on features that it has not seen: 128
averages over the last maps of the classifier. Time is that of the median batch, divided by its
images: of n candidates, and with n above 1 of judging them.

    fewstep calibrate policy BUNDLE --data samples/fashion/data/policy.npz … --keep-judge
    python samples/fashion/evaluate_best_of.py --bundle BUNDLE --json FILE
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from classifier import open_classifier
from data import CLASS_NAMES, load
from evaluate import Judge, Row, report_of, show, write
from features import Features, Images
from torch import nn

from fewstep.calibration.policy.distances import frechet_of_gaussians, gaussian
from fewstep.runtime import Generator
from fewstep.runtime.best_of import candidates
from fewstep.runtime.bundle import Bundle

COUNTS = (1, 2, 4)


def made(
    generator: Generator, count: int, *, seed: int, batch: int, settings: dict[str, Any]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], float, float]:
    """Grey images ``[count, 4, 32, 32]`` of all candidates, their scores ``[count, 4]``, and
    milliseconds per candidate of making and of judging."""
    labels, most = (np.arange(count) % len(CLASS_NAMES)).astype(np.int32), max(COUNTS)
    images, scores, times = [], [], []
    for first in range(0, count, batch):
        classes = labels[first : first + batch].repeat(most)
        own = range(seed + first, seed + first + len(classes) // most)
        seeds = [each for one in own for each in candidates(one, most)]
        start = time.perf_counter()
        result = generator.generate(class_ids=classes.tolist(), seed=seeds, **settings)
        generated = time.perf_counter()
        scores.append(generator.judge.scores(result.images, classes))
        end = time.perf_counter()
        times.append(np.array([generated - start, end - generated]) * 1e3 / len(classes))
        images.append(result.images.mean(3).round().astype(np.uint8))
    making, judging = np.median(times, 0).tolist()
    grey = np.concatenate(images)
    return (
        grey.reshape(count, most, *grey.shape[1:]),
        np.concatenate(scores).reshape(count, most),
        making,
        judging,
    )


@torch.no_grad()
def classifier_features(model: nn.Sequential, images: Images) -> Features:
    """Averages ``[n, 128]`` over the classifier's last maps, of grey images ``[n, 32, 32]``."""
    maps = next(k for k, layer in enumerate(model) if isinstance(layer, nn.Flatten))
    scaled = torch.from_numpy(images)[:, None].float() / 255
    parts = [model[:maps](part).mean((2, 3)) for part in torch.split(scaled, 500)]
    found: Features = torch.cat(parts).numpy()
    return found


def evaluate(arguments: argparse.Namespace) -> None:
    """Every row, written as it is found."""
    bundle, judge, rows = Bundle.read(arguments.bundle), Judge("held_out"), list[Row]()
    report = report_of(bundle, judge, {}, rows, arguments)
    del report["references"]
    classifier = open_classifier()
    real = gaussian(classifier_features(classifier, load("held_out").images))
    assert bundle.manifest.judge is not None
    report["judge"] = bundle.manifest.judge.model_dump(exclude={"graph"})
    labels = np.arange(arguments.images) % len(CLASS_NAMES)
    with Generator.open(bundle, max_batch=arguments.batch, threads=arguments.threads) as generator:
        for steps, schedule in ((s, name) for name in arguments.schedules for s in arguments.steps):
            settings = {"steps": steps}
            if schedule != "default":
                settings["schedule"] = schedule.format(steps=steps)
            images, scores, making, judging = made(
                generator,
                arguments.images,
                seed=arguments.seed,
                batch=arguments.batch,
                settings=settings,
            )
            for count in COUNTS:
                chosen = scores[:, :count].argmax(1)
                kept = images[np.arange(len(images)), chosen]
                took = count * (making + (judging if count > 1 else 0.0))
                name = f"{schedule.format(steps=steps)}, {steps} steps, best of {count}"
                row = {"name": name, "settings": settings, "best_of": count}
                row |= judge.score(kept, labels.astype(np.int64))
                others = gaussian(classifier_features(classifier, kept))
                row |= {
                    "classifier_frechet_distance": round(frechet_of_gaussians(*others, *real), 4),
                    "mean_score": round(float(scores[:, :count].max(1).mean()), 4),
                    "ms_per_image": round(took, 2),
                    "judge_ms_per_candidate": round(judging, 2),
                }
                rows.append(row)
                show(name, row)
                write(arguments.json, report)


def main() -> None:
    """Read the arguments and evaluate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="with a judge")
    parser.add_argument("--images", type=int, default=2_000, help="of every row")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8])
    parser.add_argument(
        "--schedules",
        nargs="+",
        default=["policy-{steps}-steps", "default"],
        help="names, with {steps} for the number of steps; default: the bundle's",
    )
    parser.add_argument("--seed", type=int, default=0, help="image i gets seed + i")
    parser.add_argument("--batch", type=int, default=50, help="images decoded together")
    parser.add_argument("--threads", type=int, default=0, help="of the engines; 0 for every core")
    parser.add_argument("--json", type=Path, help="write the results here")
    evaluate(parser.parse_args())


if __name__ == "__main__":
    main()
