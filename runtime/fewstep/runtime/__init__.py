"""fewstep's runtime: from a bundle to images, without torch.

from fewstep.runtime import Generator

with Generator.open("bundle") as generator:
    images = generator.generate(class_ids=[0, 1, 2], steps=8, seed=0).images
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.runtime.bundle import Bundle as Bundle
    from fewstep.runtime.errors import BundleError as BundleError
    from fewstep.runtime.errors import CalibrationError as CalibrationError
    from fewstep.runtime.errors import CheckpointError as CheckpointError
    from fewstep.runtime.errors import DeviceError as DeviceError
    from fewstep.runtime.errors import DeviceLostError as DeviceLostError
    from fewstep.runtime.errors import EngineError as EngineError
    from fewstep.runtime.errors import ExportError as ExportError
    from fewstep.runtime.errors import FewstepError as FewstepError
    from fewstep.runtime.errors import MissingDependencyError as MissingDependencyError
    from fewstep.runtime.errors import OutOfMemoryError as OutOfMemoryError
    from fewstep.runtime.errors import OutputError as OutputError
    from fewstep.runtime.errors import RequestError as RequestError
    from fewstep.runtime.generator import Generator as Generator
    from fewstep.runtime.result import Result as Result
    from fewstep.runtime.result import Trace as Trace
    from fewstep.runtime.schedule import Schedule as Schedule

# Imported on first use: NumPy and pydantic alone take longer than `import fewstep.runtime` may.
_HOMES = {
    "Bundle": "bundle",
    "Generator": "generator",
    "Result": "result",
    "Schedule": "schedule",
    "Trace": "result",
    "BundleError": "errors",
    "CalibrationError": "errors",
    "CheckpointError": "errors",
    "DeviceError": "errors",
    "DeviceLostError": "errors",
    "EngineError": "errors",
    "ExportError": "errors",
    "FewstepError": "errors",
    "MissingDependencyError": "errors",
    "OutOfMemoryError": "errors",
    "OutputError": "errors",
    "RequestError": "errors",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
