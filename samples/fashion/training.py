"""What the training scripts of this folder share: set-up, learning rate, log, weights."""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "weights"
LOGS = FOLDER / "logs"


def config(part: str, file: str = "config.json", folder: Path = FOLDER) -> Any:
    """What a configuration says: the constructor arguments of ``transformer`` or ``tokenizer``."""
    return json.loads((folder / file).read_text())[part]


def cosine_rate(step: int, total: int, warm_up: int = 200) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to zero."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(1, total - warm_up))


def by_the_clock(
    description: str | None, minutes: float, batch: int = 64
) -> tuple[float, int, int]:
    """Minutes, images of a batch and seed of a training, from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    return given.minutes, given.batch, given.seed


class Budget:
    """How far a training of so many minutes is, for a schedule that ends when the time does."""

    def __init__(self, minutes: float) -> None:
        self._start, self._seconds = time.monotonic(), 60 * minutes

    def spent(self) -> float:
        """The part of the time that is over, 0 … 1."""
        return min(1.0, (time.monotonic() - self._start) / self._seconds)


class Log:
    """A CSV of training figures, one row per interval, also printed."""

    def __init__(self, name: str, folder: Path = FOLDER) -> None:
        logs = folder / "logs"
        logs.mkdir(exist_ok=True)
        self._path = logs / f"{name}.csv"
        self._start = time.monotonic()
        self._columns: list[str] = []

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Append one row; the first call starts the file afresh."""
        row = {"step": step, "seconds": round(time.monotonic() - self._start)}
        row |= {name: round(float(value), 5) for name, value in figures.items()}  # type: ignore[misc]
        first = not self._columns
        self._columns = self._columns or list(row)
        with self._path.open("w" if first else "a", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            if first:
                writer.writeheader()
            writer.writerow(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def save_weights(model: torch.nn.Module, name: str, folder: Path = FOLDER) -> None:
    """Write half-precision weights under the official key names, with the command."""
    weights = folder / "weights"
    weights.mkdir(exist_ok=True)
    half = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in model.state_dict().items()
    }
    metadata = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    path = weights / f"{name}.safetensors"
    temporary = path.with_suffix(".partial")
    save_file(half, temporary, metadata)
    temporary.chmod(0o644)
    temporary.rename(path)
