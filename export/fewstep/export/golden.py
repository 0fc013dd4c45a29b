"""Recording golden rollouts with PyTorch: what engines are verified against."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fewstep.export.torch_engine import TorchEngine
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import record as record_rollout

GOLDEN_FILE = "golden.npz"
_IMAGES = 2


def record(bundle: Bundle, engines: Mapping[str, TorchEngine]) -> None:
    """Record the golden rollouts of a bundle into its folder.

    They are short: the settings of the family's ``rollouts``, two images each.
    """
    arrays: dict[str, Array] = {}
    with Generator(bundle, CpuDevice(), engines, max_batch=_IMAGES) as generator:
        for name, settings in generator.family.rollouts(generator.model).items():
            arrays |= record_rollout(generator, name, settings, _IMAGES).arrays()
    np.savez_compressed(bundle.path / GOLDEN_FILE, **arrays)  # type: ignore[arg-type]
