"""Recording golden rollouts with PyTorch: what engines are verified against."""

from __future__ import annotations

import numpy as np

from fewstep.runtime.devices import Array
from fewstep.runtime.editing import ENCODER
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import Recording
from fewstep.runtime.verify import record as record_rollout

GOLDEN_FILE = "golden.npz"
IMAGES = 2
"""Images of every golden rollout."""

_STRENGTH = 0.5  # so that there are tokens that stay, and others


def record(generator: Generator) -> None:
    """Record the golden rollouts of a generator's bundle into its folder.

    They are short: the settings of the family's ``rollouts``, two images each. Of an editable
    model there is one more, which varies the images of the first.
    """
    arrays: dict[str, Array] = {}
    family, model = generator.family, generator.model
    rollouts = family.rollouts(model)
    made = {name: record_rollout(generator, name, rollouts[name], IMAGES) for name in rollouts}
    if model.info.editable:
        name, first = next(iter(made.items()))
        edit = {"image": _drawn(first)} | family.variation(model, _STRENGTH, first.seeds)
        made[ENCODER] = record_rollout(generator, ENCODER, rollouts[name], IMAGES, edit)
    for recording in made.values():
        arrays |= recording.arrays()
    np.savez_compressed(generator.bundle.path / GOLDEN_FILE, **arrays)  # type: ignore[arg-type]


def _drawn(recording: Recording) -> Array:
    """The images of a rollout, ``[B, 3, H, W]`` in 0 … 1, as files of pictures have them."""
    (image,) = list(recording.runs.values())[-1].outputs.values()
    drawn: Array = np.rint(image * 255) / np.float32(255)
    return drawn
