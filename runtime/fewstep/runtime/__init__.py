"""fewstep's runtime: from a bundle to images, without torch. What it offers is in ``fewstep``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from fewstep.runtime.bundle import Bundle as Bundle
    from fewstep.runtime.generator import Generator as Generator
    from fewstep.runtime.result import Result as Result
else:
    # Imported on first use: NumPy and pydantic alone take longer than `import fewstep` may.
    _HOMES = {"Bundle": "bundle", "Generator": "generator", "Result": "result"}

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES})
