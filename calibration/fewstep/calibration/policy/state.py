"""The resumable state of a training: one file, replaced as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fewstep.runtime.errors import CalibrationError
from fewstep.runtime.files import replacing

CHECKPOINT = "checkpoint.pt"

Row = dict[str, Any]
"""The metrics of one update, plain numbers and lists."""

Log = Callable[[Row], None]
"""Takes the row of every update."""


@dataclass
class TrainingState:
    """How far a training is.

    ``history``: a row of metrics per update, plain numbers and lists. ``best``: update, Fréchet
    distance and weights of the best actor so far.
    """

    update: int = 0
    history: list[Row] = field(default_factory=list)
    best: dict[str, Any] | None = None


def save(folder: Path, signature: Mapping[str, Any], reached: TrainingState, weights: Any) -> None:
    """Write the checkpoint; the one before stays until the new one is whole.

    Raises:
        OutputError: the folder is not writable, or the disk is full.
    """
    content = {"signature": dict(signature), **vars(reached), "weights": weights}
    with replacing(folder / CHECKPOINT) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # what PyTorch makes of a full disk
            raise OSError(_first_line(error)) from error


def load(folder: Path, signature: Mapping[str, Any]) -> tuple[TrainingState, Any] | None:
    """The state to go on from, or ``None`` if there is none.

    Raises:
        CalibrationError: the checkpoint is damaged, or of another training.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        known = content.pop("signature")
        reached = TrainingState(content["update"], content["history"], content["best"])
        weights = content["weights"]
    except Exception as error:  # damage shows as any type, from struct.error to AssertionError
        raise CalibrationError(
            f"{path} is damaged ({_first_line(error)}); begin anew with --restart"
        ) from error
    different = sorted(
        key for key in known.keys() | signature.keys() if known.get(key) != signature.get(key)
    )
    if different:
        said = ", ".join(
            f"{each} {known.get(each)} instead of {signature.get(each)}" for each in different
        )
        raise CalibrationError(
            f"{path} is of another training: {said}; begin anew with --restart, or choose another "
            "--work folder"
        )
    return reached, weights


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
