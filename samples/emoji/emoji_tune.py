"""Choose the bundle's default settings on held-out pairs that nothing is evaluated with.

One setting at a time: every candidate draws the same 120 texts with seeds from 10,000,000; the one
whose images are nearest to the true ones (``distance`` of ``emoji_evaluate.py``) is kept.

    python samples/emoji/emoji_tune.py    # writes results/tuning.json, prints the choice
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from emoji_bundle import emoji_bundle
from emoji_evaluate import BATCH, Judge, Row, generate, tuning_pairs
from emoji_text import Known
from emoji_tokenizer import FOLDER

from fewstep.runtime import Generator

CANDIDATES: dict[str, list[Any]] = {
    "guidance": [(0.0, 2.0), (0.0, 4.0), (2.0, 2.0), (0.0, 0.0)],
    "sampling_temperature": [(0.8, 0.8), (1.0, 1.0), (0.5, 0.5)],
    "masking_temperature": [(2.0, 0.0), (4.5, 0.0), (0.5, 0.0)],
}
STEPS = 8
SEED = 10_000_000


def tune() -> tuple[dict[str, Any], list[Row]]:
    """The settings chosen and every row tried."""
    known, judge, emojis = Known(), Judge(), tuning_pairs()
    truth, states = judge.truth(emojis), known.states[known.rows(emojis.texts[:, 0])]
    best: dict[str, Any] = {name: values[0] for name, values in CANDIDATES.items()}
    rows: list[Row] = []
    with Generator.open(emoji_bundle(), max_batch=BATCH, threads=1) as generator:
        for name, values in CANDIDATES.items():
            for value in values:
                settings = {"steps": STEPS, **best, name: value}
                if not any(row["settings"] == settings for row in rows):
                    images = generate(generator, states, settings, SEED)
                    rows.append({"settings": settings, **judge.score(images, truth)})
                    print(rows[-1], flush=True)
            best = min(rows, key=lambda row: row["distance"])["settings"]
    return best, rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen, tried = tune()
    record = {"command": " ".join(["python", *sys.argv]), "seed": SEED, "chosen": chosen}
    (FOLDER / "results").mkdir(exist_ok=True)
    text = json.dumps({**record, "tried": tried}, indent=2) + "\n"
    (FOLDER / "results" / "tuning.json").write_text(text)
    print("chosen:", json.dumps(chosen))
