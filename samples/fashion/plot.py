"""Draw the training curves and the evaluation curve into ``results/``.

python samples/fashion/plot.py    # training.png, var-training.png, curve.png into results/
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from training import FOLDER, LOGS

RESULTS = FOLDER / "results"
BLUE, ORANGE, GREY = "#1f5fa8", "#d9730d", "#6b6b6b"


def plot_curve(results: dict[str, Any], path: Path) -> None:
    """Fréchet distance and class accuracy against steps, with the reference lines."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    steps = [row["steps"] for row in results["rows"]]
    for axes, key, title in (
        (left, "frechet_distance", f"Fréchet distance to {results['reference']}"),
        (right, "accuracy", "Requested class recognised"),
    ):
        axes.plot(steps, [row[key] for row in results["rows"]], "o-", color=BLUE, label="generated")
        for (name, row), line in zip(results["references"].items(), ("--", ":"), strict=False):
            axes.axhline(row[key], color=GREY, linestyle=line, label=f"{name} images")
        axes.set_xscale("log", base=2)
        axes.set_xticks(steps, [str(s) for s in steps])
        axes.set_xlabel("steps")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    left.set_ylim(bottom=0)
    left.legend()
    _save(path)


def plot_training(path: Path, prefix: str, held_out: str) -> None:
    """Losses of both trainings against steps; ``held_out`` says how the held-out one is taken."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    tokenizer, transformer = _read(f"{prefix}tokenizer"), _read(f"{prefix}transformer")
    _lines(left, tokenizer, {"pixel": BLUE, "codebook": ORANGE})
    left.set_title("tokenizer", fontsize=10)
    _lines(right, transformer, {"loss": ORANGE, "held_out_loss": BLUE})
    right.set_title(f"transformer (held out: {held_out})", fontsize=10)
    _save(path)


def _lines(axes: Axes, columns: dict[str, list[float]], colours: dict[str, str]) -> None:
    for name, colour in colours.items():
        axes.plot(columns["step"], columns[name], color=colour, label=name.replace("_", " "))
    axes.set_xlabel("step")
    axes.set_yscale("log" if "pixel" in colours else "linear")
    axes.grid(alpha=0.3)
    axes.legend()


def _read(name: str) -> dict[str, list[float]]:
    with (LOGS / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows] for key in rows[0]}


def _save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(path, dpi=110)
    plt.close()


if __name__ == "__main__":
    plot_training(RESULTS / "training.png", "", "averaged weights, fixed masks")
    plot_training(RESULTS / "var-training.png", "var_", "averaged weights")
    evaluation = RESULTS / "evaluation.json"
    if evaluation.exists():
        plot_curve(json.loads(evaluation.read_text()), RESULTS / "curve.png")
