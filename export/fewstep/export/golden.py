"""Recording golden rollouts with PyTorch: what engines are verified against."""

from __future__ import annotations

import numpy as np

from fewstep.runtime.devices import Array
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import record as record_rollout

GOLDEN_FILE = "golden.npz"
IMAGES = 2
"""Images of every golden rollout."""


def record(generator: Generator) -> None:
    """Record the golden rollouts of a generator's bundle into its folder.

    They are short: the settings of the family's ``rollouts``, two images each.
    """
    arrays: dict[str, Array] = {}
    for name, settings in generator.family.rollouts(generator.model).items():
        arrays |= record_rollout(generator, name, settings, IMAGES).arrays()
    np.savez_compressed(generator.bundle.path / GOLDEN_FILE, **arrays)  # type: ignore[arg-type]
