"""Evaluate the emoji sample: on texts it was trained with, on held-out pairs, on held-out emoji.

Of each split one image a (base, style) pair is asked for, without a skin tone, and compared with
the true one by EfficientNet-Lite0's 1,280 features on 64×64:

* ``distance``: mean of 1 − cosine between an image and the true one;
* ``top_1``, ``top_5``: how often the true image is the nearest, or one of the five nearest, among
  all true images of the split in the *same style*; ``chance_1``, ``chance_5``: by guessing;
* ``kernel_distance``, ``frechet_distance``: from all true images of the split. Both grow as images
  get fewer, so compare rows of one split only, and with no published number.
* ``style``: how often the nearest of the three styles' mean features is the style asked for.

Rows of reference: *reconstructed*, the true images through the tokenizer, which no generation with
it can beat; *copied*, the training image of the same style whose text's states (their mean) are the
nearest to the text's, what a lookup would draw; *other text*, the generated images in another order
within their style: what a model that ignores names would reach.

    python samples/emoji/emoji_evaluate.py        # writes results/evaluation.json
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from emoji_bundle import emoji_bundle
from emoji_data import SPLITS, STYLES, Emojis, load
from emoji_text import Known
from emoji_tokenizer import FOLDER
from emoji_transformer import decode, tokenize, tokenizer

from fewstep.calibration.policy.distances import frechet_distance, kernel_distance
from fewstep.calibration.policy.features import EfficientNetLite0
from fewstep.runtime import Generator
from fewstep.runtime.doctor import processor_name

Images = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Row = dict[str, Any]

NETWORK = "EfficientNet-Lite0, 64×64, 1,280 features"
TUNED_ON = 120
BATCH = 40
SEED = 0


def one_a_pair(split: str, *, limit: int | None = None) -> Emojis:
    """The first image of each (base, style) pair of a split, in a recorded random order.

    Held-out pairs that settings were tuned on are left out; see :func:`tuning_pairs`.
    """
    found = _pairs(split)
    if split == "new_pair":
        found = found.where(np.arange(TUNED_ON, len(found.images)))
    return found.where(np.arange(min(limit or len(found.images), len(found.images))))


def tuning_pairs() -> Emojis:
    """The held-out pairs that settings are tuned on, and nothing is evaluated with."""
    return _pairs("new_pair").where(np.arange(TUNED_ON))


def _pairs(split: str) -> Emojis:
    emojis = load(split)
    emojis = emojis.where(~emojis.toned)
    keys = np.char.add(np.char.add(emojis.bases, " "), emojis.styles)
    first = np.unique(keys, return_index=True)[1]
    return emojis.where(np.random.default_rng(0).permutation(first))


@dataclass(frozen=True)
class Truth:
    """True images of a split with their features ``[n, 1280]``, and the styles' mean features."""

    emojis: Emojis
    features: Features
    centres: Features


class Judge:
    """Scores images against true ones."""

    def __init__(self) -> None:
        self._network = EfficientNetLite0(64)
        train = load("train")
        some = np.random.default_rng(1).permutation(np.flatnonzero(~train.toned))[:600]
        features, styles = self.features(train.images[some]), train.styles[some]
        self._centres = np.stack([features[styles == style].mean(0) for style in STYLES])

    def features(self, images: Images) -> Features:
        """Of images ``[n, 64, 64, 3]``."""
        return self._network.pooled(images, torch.device("cpu"))

    def truth(self, emojis: Emojis) -> Truth:
        """The true images of texts."""
        return Truth(emojis, self.features(emojis.images), self._centres)

    def score(self, images: Images, truth: Truth) -> Row:
        """Figures of images ``[n, 64, 64, 3]``, each made for the text of the same row."""
        return figures(self.features(images), truth)


def figures(features: Features, truth: Truth) -> Row:
    """The figures that the module describes, of features ``[n, 1280]``."""
    similar = _unit(features) @ _unit(truth.features).T
    same = truth.emojis.styles[:, None] == truth.emojis.styles[None]
    right = np.diag(similar).copy()
    before = (np.where(same, similar, -1.0) > right[:, None]).sum(1)  # nearer than the true one
    among = same.sum(1)
    nearest = (_unit(features) @ _unit(truth.centres).T).argmax(1)
    kernel, _ = kernel_distance(features, truth.features)
    return {
        "distance": round(float(1 - right.mean()), 4),
        "top_1": round(float((before < 1).mean()), 4),
        "top_5": round(float((before < 5).mean()), 4),
        "median_rank": int(np.median(before)) + 1,
        "chance_1": round(float((1 / among).mean()), 4),
        "chance_5": round(float(np.minimum(1, 5 / among).mean()), 4),
        "kernel_distance": round(kernel, 4),
        "frechet_distance": round(frechet_distance(features, truth.features), 1),
        "style": round(float((np.array(STYLES)[nearest] == truth.emojis.styles).mean()), 4),
    }


def _unit(features: Features) -> Features:
    unit: Features = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit


def generate(
    generator: Generator, states: npt.NDArray[np.float16], settings: dict[str, Any], seed: int
) -> Images:
    """An image of each text's states ``[n, L, D]``, image i from seed ``seed + i``."""
    parts = []
    for start in range(0, len(states), BATCH):
        text = states[start : start + BATCH].astype(np.float32)
        parts.append(generator.generate(text=text, seed=seed + start, **settings).images)
    return np.concatenate(parts)


def copied(emojis: Emojis, known: Known) -> Images:
    """The training image of the same style with the nearest text, for each."""
    train = load("train")
    train = train.where(~train.toned)
    wanted, have = (_meaning(part, known) for part in (emojis, train))
    same = emojis.styles[:, None] == train.styles[None]
    chosen = np.where(same, wanted @ have.T, -1.0).argmax(1)
    return train.where(chosen).images


def _meaning(emojis: Emojis, known: Known) -> Features:
    """Mean states of the long names, of unit length."""
    states = known.states[known.rows(emojis.texts[:, 0])].astype(np.float32)
    return _unit(states.sum(1))  # a mean but for its length


def another(styles: npt.NDArray[np.str_]) -> Indices:
    """For each row another one of the same style: the next."""
    other = np.arange(len(styles))
    for style in STYLES:
        rows = np.flatnonzero(styles == style)
        other[rows] = np.roll(rows, 1)
    return other


def evaluate(split: str, judge: Judge, generator: Generator, limit: int) -> Row:
    """Every row of a split."""
    known, emojis = Known(), one_a_pair(split, limit=limit)
    truth, model = judge.truth(emojis), tokenizer()
    states = known.states[known.rows(emojis.texts[:, 0])]
    made = judge.features(generate(generator, states, {}, SEED))
    rows = {
        "generated": figures(made, truth),
        "reconstructed": judge.score(decode(model, tokenize(model, emojis.images)), truth),
        "copied": judge.score(copied(emojis, known), truth),
        "other text": figures(made[another(emojis.styles)], truth),
    }
    for name, row in rows.items():
        print(f"{split:>10} {name:>14}: {row}", flush=True)
    return {"images": len(emojis.images), "bases": len(set(emojis.bases)), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=300, help="of each split at most")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bundle, judge = emoji_bundle(), Judge()
    with Generator.open(bundle, max_batch=BATCH, threads=given.threads) as generator:
        splits = {name: evaluate(name, judge, generator, given.images) for name in SPLITS}
    manifest = bundle.manifest
    report = {
        "command": " ".join(["python", *sys.argv]),
        "machine": processor_name(),
        "weights_sha256": {n: c.sha256 for n, c in manifest.provenance.checkpoints.items()},
        "features": NETWORK,
        "seed": SEED,
        "settings": manifest.model.defaults.model_dump(),
        "splits": splits,
    }
    results = FOLDER / "results"
    results.mkdir(exist_ok=True)
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    (results / "evaluation.json").write_text(text)


if __name__ == "__main__":
    main()
