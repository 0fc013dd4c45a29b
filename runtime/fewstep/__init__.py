"""fewstep: few-step token image generators, from checkpoints to images on NVIDIA edge GPUs.

import fewstep

with fewstep.open("bundle") as generator:
    images = generator.generate(class_ids=[0, 1, 2], steps=8, seed=0).images
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from typing import TYPE_CHECKING, Any

# The other folders on the path that have a `fewstep` bring more of this package.
__path__ = pkgutil.extend_path(__path__, __name__)

__version__ = "0.1.0"

# ONNX Runtime reads this once, when it is loaded, whoever loads it; child processes inherit it. A
# user's own setting stays: ORT_DISABLE_TELEMETRY=0 leaves its telemetry on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# NumPy's BLAS starts as many threads as the scheduler gives cores, and too many under a CPU quota.
importlib.import_module("fewstep.runtime.machine").limit_other_pools()

if TYPE_CHECKING:
    from fewstep.runtime import *  # noqa: F403 (all that it offers, and said only there)
    from fewstep.runtime.generator import Generator as Generator

    open = Generator.open
else:

    def __getattr__(name: str) -> Any:
        """``open``, and what :mod:`fewstep.runtime` offers, imported on first use."""
        runtime = importlib.import_module("fewstep.runtime")
        if name == "open":
            return runtime.Generator.open
        if name in dir(runtime):
            return getattr(runtime, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        runtime = importlib.import_module("fewstep.runtime")
        return sorted({*globals(), *dir(runtime), "open"})
