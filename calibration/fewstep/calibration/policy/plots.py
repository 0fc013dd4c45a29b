"""Reward, Fréchet distance and the learned schedule, drawn as a training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fewstep.calibration.policy.state import Row
from fewstep.runtime.files import replacing

_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d9730d", "#6b6b6b"


def draw(
    rows: Sequence[Row],
    parameters: Sequence[str],
    hand_made: npt.NDArray[np.float32],
    folder: Path,
) -> None:
    """Write ``training.png`` and ``schedule.png``.

    Args:
        rows: of a training's history.
        parameters: names of the A parameters of a step.
        hand_made: those of the schedule to compare with, ``[T, A]``.
        folder: where the pictures go.

    Raises:
        OutputError: the folder is not writable, or the disk is full.
    """
    _draw_training(rows, folder / "training.png")
    evaluated = [row for row in rows if "schedule" in row]
    if evaluated:
        _draw_schedule(evaluated[-1], parameters, hand_made, folder / "schedule.png")


def _draw_training(rows: Sequence[Row], path: Path) -> None:
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, key, title in zip(
        panels,
        ("reward", "frechet_distance", "discriminator_accuracy"),
        ("Mean reward of exploring rollouts", "Fréchet distance", "Discriminator's accuracy"),
        strict=True,
    ):
        found = [(row["update"], row[key]) for row in rows if key in row]
        if found:
            axes.plot(*zip(*found, strict=True), "o-" if len(found) < 40 else "-", color=_BLUE)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("update")
        axes.grid(alpha=0.3)
    _save(figure, path)


def _draw_schedule(
    row: Row, parameters: Sequence[str], fixed: npt.NDArray[np.float32], path: Path
) -> None:
    mean = np.array(row["schedule"]["mean"])
    deviation = np.array(row["schedule"]["deviation"])
    figure = Figure(figsize=(3.5 * len(parameters), 3.2), layout="constrained")
    panels = figure.subplots(1, len(parameters))
    for column, axes in enumerate(panels):
        _draw_parameter(axes, mean[:, column], deviation[:, column], fixed[:, column])
        axes.set_title(parameters[column], fontsize=10)
    panels[0].legend(fontsize=8)
    _save(figure, path)


def _draw_parameter(axes: Axes, mean: np.ndarray, deviation: np.ndarray, fixed: np.ndarray) -> None:
    steps = np.arange(1, len(mean) + 1)
    axes.fill_between(steps, mean - deviation, mean + deviation, color=_BLUE, alpha=0.2)
    axes.plot(steps, mean, "o-", color=_BLUE, label="policy, mean ± spread over images")
    axes.plot(steps, fixed, "s--", color=_GREY, label="hand-made")
    axes.set_xticks(steps)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
