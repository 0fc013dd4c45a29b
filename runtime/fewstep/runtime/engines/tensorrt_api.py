"""The Python modules ``tensorrt`` (10.3 … 11) and ``tensorrt_rtx`` (1.x), by what they share.

Both log instead of raising, so what was logged goes into the errors of this package.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fewstep.runtime.errors import EngineError, MissingDependencyError
from fewstep.runtime.records import EngineBackend

MODULES: dict[EngineBackend, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}

_INSTALL: dict[EngineBackend, str] = {
    "tensorrt": "on a Jetson with: sudo apt install python3-libnvinfer, in an environment made "
    "with --system-site-packages; elsewhere with: pip install tensorrt",
    "tensorrt-rtx": "with: pip install 'fewstep[rtx]'",
}
OLDEST = (10, 3)
"""Of ``tensorrt``, that of JetPack 6: older ones lack strong typing as it is used here."""


@dataclass(frozen=True)
class TensorRt:
    """One of the two modules."""

    backend: EngineBackend
    module: Any

    @property
    def version(self) -> str:
        """The module's version, for example ``"10.3.0"``."""
        return str(self.module.__version__)

    @property
    def messages(self) -> Messages:
        """What the module logs; one for the process, as it keeps the first logger it is given."""
        return _messages(self.module)

    def __str__(self) -> str:
        return f"{self.backend} {self.version}"


def load(backend: EngineBackend) -> TensorRt:
    """Import the module of a backend.

    Raises:
        MissingDependencyError: it is not installed, or its libraries do not load.
        EngineError: it is too old.
    """
    name = MODULES[backend]
    try:
        module = importlib.import_module(name)
        module.__version__  # noqa: B018 — what an uninstalled package left behind has none
    except (AttributeError, ImportError, OSError, RuntimeError) as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == name
        problem = "is not installed" if absent else f"does not load ({error})"
        raise MissingDependencyError(
            f"the Python module {name} {problem}; install it {_INSTALL[backend]}"
        ) from error
    found = TensorRt(backend, module)
    if backend == "tensorrt" and _numbers(found.version) < OLDEST:
        raise EngineError(
            f"{found} is too old; fewstep needs TensorRT {OLDEST[0]}.{OLDEST[1]} or newer "
            "(JetPack 6)"
        )
    return found


class Messages:
    """Errors and warnings that TensorRT logged since :meth:`clear`, each once.

    ``logger`` is what its constructors take.
    """

    def __init__(self, module: Any) -> None:
        self._errors: list[str] = []
        self._warnings: list[str] = []
        self.logger = _logger(module, self._log)
        severity = module.ILogger.Severity
        self._kept = {
            severity.INTERNAL_ERROR: self._errors,
            severity.ERROR: self._errors,
            severity.WARNING: self._warnings,
        }

    def clear(self) -> None:
        """Forget what was logged so far."""
        self._errors.clear()
        self._warnings.clear()

    def errors(self, *, building: bool = False) -> list[str]:
        """Errors in their order; while ``building``, without those about an absent driver."""
        return [text for text in self._errors if not (building and _NO_DRIVER.search(text))]

    def warnings(self) -> tuple[str, ...]:
        """Warnings in their order, without those about an absent driver."""
        return tuple(text for text in self._warnings if not _NO_DRIVER.search(text))

    def _log(self, severity: Any, text: str) -> None:
        kept = self._kept.get(severity)
        if kept is not None and text.strip() not in kept and len(kept) < _MOST:
            kept.append(text.strip())


_MOST = 50
# A builder needs no GPU, and says often that there is none.
_NO_DRIVER = re.compile(r"cudaError 35\b|CUDA initialization failure with error: 35\b")


@functools.cache
def _messages(module: Any) -> Messages:
    return Messages(module)


def _logger(module: Any, log: Callable[[Any, str], None]) -> Any:
    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            log(severity, text)

    return Logger()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
