"""Draw the training curves and the evaluation curve into ``results/``.

python samples/fashion/plot.py    # {,var-,mar-}training.png, {,mar-}curve.png into results/
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


def plot_budgets(results: dict[str, Any], path: Path) -> None:
    """Fréchet distance against the time of an image, a point for every step budget."""
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    for row in results["rows"]:
        at = row["ms"], row["frechet_distance"]
        colour = ORANGE if "cached" in row["name"] else BLUE
        axes.plot(*at, "o", color=colour)
        axes.annotate(row["name"], at, xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel(f"milliseconds of an image, {results['machine']['cpu']}")
    axes.set_title(f"Fréchet distance to {results['reference']}", fontsize=10)
    axes.grid(alpha=0.3)
    _save(path)


def plot_training(path: Path, prefix: str, held_out: str) -> None:
    """Losses of both trainings against steps; ``held_out`` says how the held-out one is taken."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    tokenizer, transformer = _read(f"{prefix}tokenizer"), _read(f"{prefix}transformer")
    second = "codebook" if "codebook" in tokenizer else "divergence"
    _lines(left, tokenizer, {"pixel": BLUE, second: ORANGE})
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
    plot_training(RESULTS / "mar-training.png", "mar_", "averaged weights")
    for name, draw in {"": plot_curve, "mar-": plot_budgets}.items():
        evaluation = RESULTS / f"{name}evaluation.json"
        if evaluation.exists():
            draw(json.loads(evaluation.read_text()), RESULTS / f"{name}curve.png")
