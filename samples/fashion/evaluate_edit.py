"""Evaluate edits of held-out images: regions painted anew, and regions that become another class.

**Inpainting.** A box in the middle, or the left half, of a held-out image is painted anew as the
image's own class, with what is kept put back over the result. Compared with the truth: the mean
squared error of the region's pixels (grey, 0 … 1), and the distance of the whole images in the
classifier's features (128 averages over its last maps; Euclidean). Beside it stand fillings that
know nothing of tokens: the mean of the kept pixels; the mean of the class's training images; and
the training image whose kept pixels are nearest. *Through the tokenizer* is the truth, encoded and
decoded: what the tokens cost by themselves.

A squared error asks for the mean of what may be there. A sample is one of the things that may be
there, and pays for it: twice the error of the mean, if it is drawn from the very distribution. So a
mean may win the error, and lose in the features.

**Other classes.** The same regions, the left three quarters, and the whole become another class:
how often the classifier sees the new class, and how often the old one. Nothing is put back over
these results, so the squared error of what is kept says how much an edit changes beside its region.

    python samples/fashion/evaluate_edit.py            # writes results/edit.json
    python samples/fashion/evaluate_edit.py --var      # writes results/var-edit.json
    python samples/fashion/evaluate_edit.py --mar      # writes results/mar-edit.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import evaluate_mar
import evaluate_var
import numpy as np
import numpy.typing as npt
import torch
from classifier import classify, open_classifier
from data import CLASS_NAMES, IMAGE_SIZE, Split, load
from evaluate import Row, machine, per_class, write
from evaluate_best_of import classifier_features
from features import Images
from sample_bundle import add_forms, bundle_of
from training import FOLDER

from fewstep.runtime import Generator
from fewstep.runtime.bundle import Bundle

Mask = npt.NDArray[np.bool_]
Paint = Callable[[Mask], Images]


def masks() -> dict[str, Mask]:
    """What is painted anew, ``[32, 32]``, by name."""
    quarter, half = IMAGE_SIZE // 4, IMAGE_SIZE // 2
    found = {name: np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.bool_) for name in ("box", "half")}
    found["box"][quarter:-quarter, quarter:-quarter] = True
    found["half"][:, :half] = True
    return found


class Judge:
    """Compares edits with the truth and with the classes asked for."""

    def __init__(self) -> None:
        self._classifier = open_classifier()

    def distances(self, truth: Split, images: Images, mask: Mask) -> Row:
        """Of grey images ``[n, 32, 32]`` from the truth."""
        features = [classifier_features(self._classifier, each) for each in (images, truth.images)]
        return {
            "squared_error": squared_error(images, truth.images, mask),
            "feature_distance": round(
                float(np.linalg.norm(features[0] - features[1], axis=1).mean()), 4
            ),
            "recognised": self.recognised(images, truth.labels),
        }

    def recognised(self, images: Images, labels: npt.NDArray[np.int64]) -> float:
        """How many show their class, 0 … 1."""
        return round(float((classify(self._classifier, images) == labels).mean()), 4)


def squared_error(images: Images, truth: Images, where: Mask) -> float:
    """The mean over some pixels of grey images ``[n, 32, 32]``, as parts of 1."""
    error = ((images.astype(np.float64) - truth) / 255)[:, where] ** 2
    return round(float(error.mean()), 4)


def fillings(truth: Split, reconstruct: Callable[[Images], Images]) -> dict[str, Paint]:
    """Baselines by name: what they make of a mask; ``reconstruct`` is the tokenizer."""
    train = load("train")
    means = np.stack([train.images[train.labels == k].mean(0) for k in range(len(CLASS_NAMES))])

    def over(mask: Mask, filling: npt.NDArray[Any]) -> Images:
        images = truth.images.copy()
        images[:, mask] = np.rint(filling[:, mask])
        return images

    def mean(mask: Mask) -> Images:
        kept = truth.images[:, ~mask].mean(1)[:, None, None]
        return over(mask, np.broadcast_to(kept, truth.images.shape))

    def class_mean(mask: Mask) -> Images:
        return over(mask, means[truth.labels])

    def nearest(mask: Mask) -> Images:
        return over(mask, train.images[_nearest(train.images[:, ~mask], truth.images[:, ~mask])])

    through = reconstruct(truth.images)
    return {
        "through the tokenizer": lambda mask: over(mask, through),
        "mean of what is kept": mean,
        "mean of the class": class_mean,
        "nearest training image": nearest,
    }


def _nearest(known: Images, wanted: Images) -> npt.NDArray[np.int64]:
    """The row of ``known [n, p]`` that is nearest to each of ``wanted [m, p]``."""
    rows, columns = known.astype(np.float32), wanted.astype(np.float32)
    lengths = np.einsum("np,np->n", rows, rows)
    parts = [
        lengths - 2 * each @ rows.T for each in np.split(columns, range(100, len(columns), 100))
    ]
    found: npt.NDArray[np.int64] = np.concatenate([each.argmin(1) for each in parts])
    return found


def edited(
    generator: Generator, images: Images, labels: npt.NDArray[np.int64], seed: int, **asked: Any
) -> Images:
    """Every image edited as a class, image i from ``seed + i``; grey."""
    made = [
        generator.edit(image, int(label), seed=seed + i, **asked).pixels[0]
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    grey: Images = np.stack(made).mean(3).round().astype(np.uint8)
    return grey


def inpainting(
    generator: Generator,
    judge: Judge,
    truth: Split,
    ways: dict[str, Paint],
    seed: int,
    settings: dict[str, Any],
) -> list[Row]:
    """A row for every mask and way of filling it, edits among them."""
    ways["fewstep"] = lambda mask: edited(
        generator, truth.images, truth.labels, seed, mask=mask, blend=True, **settings
    )
    rows = []
    for name, mask in masks().items():
        for way, paint in ways.items():
            rows.append({"mask": name, "way": way, **judge.distances(truth, paint(mask), mask)})
            show(rows[-1])
    return rows


def other_classes(
    generator: Generator, judge: Judge, truth: Split, seed: int, settings: dict[str, Any]
) -> list[Row]:
    """A row for every region that becomes another class."""
    rng = np.random.default_rng(seed)
    wanted = (truth.labels + rng.integers(1, len(CLASS_NAMES), len(truth.labels))) % len(
        CLASS_NAMES
    )
    whole = np.ones((IMAGE_SIZE, IMAGE_SIZE), np.bool_)
    most = np.arange(IMAGE_SIZE) < IMAGE_SIZE * 3 // 4
    regions = masks() | {"three quarters": whole & most, "everything": whole}
    rows = []
    for name, mask in regions.items():
        images = edited(generator, truth.images, wanted, seed, mask=mask, **settings)
        row: Row = {"mask": name, "recognised_as_new": judge.recognised(images, wanted)}
        row["recognised_as_old"] = judge.recognised(images, truth.labels)
        if not mask.all():
            row["kept_squared_error"] = squared_error(images, truth.images, ~mask)
        rows.append(row)
        show(rows[-1])
    return rows


def reconstructing(given: argparse.Namespace) -> Callable[[Images], Images]:
    """What takes images through the tokenizer of the form that is asked for."""
    if given.var:
        return evaluate_var.reconstruct
    return evaluate_mar.reconstruct if given.mar else evaluate.reconstruct


def show(row: Row) -> None:
    """One line on the terminal."""
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def report_of(bundle: Bundle, given: argparse.Namespace) -> dict[str, Any]:
    """All rows, with what is needed to make them again."""
    judge, truth = Judge(), per_class(load("held_out"), slice(given.images // len(CLASS_NAMES)))
    settings = {} if given.steps is None else {"steps": given.steps}
    with Generator.open(bundle, threads=given.threads) as generator:
        ways = fillings(truth, reconstructing(given))
        rows = inpainting(generator, judge, truth, ways, given.seed, settings)
        changed = other_classes(generator, judge, truth, given.seed, settings)
    return {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "weights_sha256": {n: c.sha256 for n, c in bundle.manifest.provenance.checkpoints.items()},
        "images": given.images,
        "seed": given.seed,
        "settings": bundle.manifest.model.defaults.model_dump() | settings,
        "real_recognised": judge.recognised(truth.images, truth.labels),
        "inpainting": rows,
        "other_classes": changed,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_forms(parser)
    parser.add_argument("--images", type=int, default=500, help="held-out ones, multiple of 10")
    parser.add_argument("--steps", type=int, help="of the masked model")
    parser.add_argument("--seed", type=int, default=0, help="image i gets seed + i")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    name = "var-edit" if arguments.var else "mar-edit" if arguments.mar else "edit"
    found = report_of(bundle_of(arguments), arguments)
    write(arguments.json or FOLDER / "results" / f"{name}.json", found)
