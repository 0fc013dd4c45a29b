"""What belongs to one fake module: its version, its GPU, its journal, and what users derive from.

Everything that the module makes keeps a reference to its :class:`Library` and logs through it.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.emulated_cuda.fake_tensorrt.values import enumeration, instance

Flavour = Literal["tensorrt", "tensorrt-rtx"]

Severity = enumeration(
    "Severity", ordered=True, INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4
)
_NO_GPU = "cudaError 35: CUDA driver version is insufficient for CUDA runtime version"
_KINDS = ("Builder", "ICudaEngine", "IExecutionContext", "Runtime")
_OTHER_LOGGER = (
    "The logger passed in differs from one already registered for an existing builder, runtime, "
    "or refitter, and is ignored by what they share"
)


@dataclass(frozen=True)
class Entry:
    """One thing that happened; ``entry["name"]`` gives what is known of it."""

    kind: str
    details: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.details[name]


@dataclass
class Library:
    """State of one module.

    ``capability``: compute capability of the GPU in tenths, 87 for 8.7; ``None`` without a GPU.
    """

    flavour: Flavour
    version: tuple[int, ...]
    capability: int | None
    journal: list[Entry] = field(default_factory=list)
    alive: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)

    @property
    def rtx(self) -> bool:
        return self.flavour == "tensorrt-rtx"

    def note(self, kind: str, **details: Any) -> None:
        """Write into the journal."""
        self.journal.append(Entry(kind, details))

    def refuse(self, logger: Any, where: str, why: str) -> None:
        """Log an error the way the real module does, and write it into the journal."""
        self.note("refused", where=where, why=why)
        say(logger, Severity.ERROR, f"{where}: Error Code 3: API Usage Error ({why})")
        if self.capability is None:  # it looks for a CUDA error after each of its own
            say(logger, Severity.ERROR, f"catchCudaError: Error Code 1: Cuda Runtime ({_NO_GPU})")

    def refuse_without_gpu(self, logger: Any, where: str) -> None:
        """The same for what needs a GPU."""
        self.note("refused", where=where, why=_NO_GPU)
        say(logger, Severity.ERROR, f"{where}: Error Code 1: Cuda Runtime ({_NO_GPU})")

    def register(self, owner: Any) -> None:
        """A new builder or runtime; all that live at a time should have the same logger."""
        others = [made for made in self.alive if _kind(made) in ("Builder", "Runtime")]
        if any(other.logger is not owner.logger for other in others):
            say(owner.logger, Severity.WARNING, _OTHER_LOGGER)
        self.alive.add(owner)

    def live(self) -> dict[str, int]:
        """How many builders, runtimes, engines and contexts there are, by class."""
        kinds = [_kind(made) for made in self.alive]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


class _Checked(type):
    """pybind11 looks whether the constructor of its own base class was called."""

    def __call__(cls, *arguments: Any, **keywords: Any) -> Any:
        made = super().__call__(*arguments, **keywords)
        if not hasattr(made, "_constructed"):
            base = next(base.__name__ for base in cls.__mro__ if base.__module__ == __name__)
            raise TypeError(f"{base}.__init__() must be called when overriding __init__")
        return made


class ILogger(metaclass=_Checked):
    """What users derive their logger from."""

    Severity = Severity
    INTERNAL_ERROR, ERROR = Severity.INTERNAL_ERROR, Severity.ERROR
    WARNING, INFO, VERBOSE = Severity.WARNING, Severity.INFO, Severity.VERBOSE

    def __init__(self) -> None:
        self._constructed = True

    def log(self, severity: Any, msg: str) -> None:
        raise RuntimeError('Tried to call pure virtual function "ILogger::log"')


class Logger(ILogger):
    """Prints."""

    def __init__(self, min_severity: Any = Severity.WARNING) -> None:
        super().__init__()
        self.min_severity = instance(min_severity, Severity)

    def log(self, severity: Any, msg: str) -> None:
        if severity <= self.min_severity:
            print(f"[TRT] [{severity.name[0]}] {msg}")


class IProgressMonitor(metaclass=_Checked):
    """What users derive their progress report from."""

    def __init__(self) -> None:
        self._constructed = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise RuntimeError('Tried to call pure virtual function "phase_start"')

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise RuntimeError('Tried to call pure virtual function "step_complete"')

    def phase_finish(self, phase_name: str) -> None:
        raise RuntimeError('Tried to call pure virtual function "phase_finish"')


def _kind(made: Any) -> str:
    """The public class of an object."""
    return next(base.__name__ for base in type(made).__mro__ if base.__name__ in _KINDS)


def say(logger: Any, severity: Any, message: str) -> None:
    """Pass a message to a logger."""
    called(logger.log, severity, message)


def called(method: Any, *arguments: Any) -> Any:
    """What a user's method returns. Exceptions do not leave it: they are printed, and it is None.

    The real module does so even with ``KeyboardInterrupt``.
    """
    try:
        return method(*arguments)
    except BaseException as error:
        what = f"{type(error).__name__}: {error}"
        print(f"[ERROR] Exception caught in {method.__name__}(): {what}", file=sys.stderr)
        return None
