"""The exceptions of fewstep, all under :class:`FewstepError`.

Each message says what was expected, what was received and what to do next. The command line
prints it as one line; anything that is *not* a ``FewstepError`` is a defect of fewstep.
"""

from __future__ import annotations

import contextlib
import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

_SHOWN = 60  # characters of a value in messages


class FewstepError(Exception):
    """Base of every error that fewstep raises on purpose."""


class RequestError(FewstepError, ValueError):
    """A generation request that the bundle cannot serve (class, steps, schedule, ...)."""


class BundleError(FewstepError, ValueError):
    """A bundle that is damaged, foreign, newer than this version, or unsafe to read."""


class CheckpointError(FewstepError, ValueError):
    """A checkpoint that does not hold the model it is said to hold."""


class ExportError(FewstepError, RuntimeError):
    """An ONNX graph that could not be made or does not agree with PyTorch."""


class EngineError(FewstepError, RuntimeError):
    """A graph that the backend refuses, or that computes something unusable."""


class CalibrationError(FewstepError, ValueError):
    """Calibration data that do not fit the bundle, or a training that cannot go on."""


class DeviceError(FewstepError, RuntimeError):
    """A device that is absent, lost, closed or out of memory."""


class DeviceLostError(DeviceError):
    """A GPU that this process cannot use any more; a new process can."""


class OutOfMemoryError(DeviceError):
    """A device without room for what was asked; a smaller batch may fit."""


class MissingDependencyError(FewstepError, ImportError):
    """An optional package is absent; the message names the extra that installs it."""


class OutputError(FewstepError, OSError):
    """A result could not be written."""


class FewstepWarning(UserWarning):
    """Something that is no error but worth knowing; the command line shows it as a note."""


@contextlib.contextmanager
def warnings_told(say: Callable[[str], bool]) -> Iterator[None]:
    """In the block warnings of fewstep go to ``say``; others, and those that it returns false for,
    are shown as usual."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not (issubclass(category, FewstepWarning) and say(str(message))):
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def missing(package: str, extra: str) -> MissingDependencyError:
    """The error for an absent optional package, naming the extra that brings it."""
    return MissingDependencyError(
        f"{package} is not installed; install it with: pip install 'fewstep[{extra}]'"
    )


def shortened(line: str, most: int = 1_800) -> str:
    """A line with its middle left out if it has more than ``most`` characters."""
    if len(line) <= most:
        return line
    half = most // 2
    return f"{line[:half]} … ({len(line) - 2 * half:,} characters left out) … {line[-half:]}"


def brief(value: object) -> str:
    """What was given, as Python writes it, in one short line."""
    line = " ".join(repr(value).split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


def choose(what: str, received: str, choices: Iterable[str]) -> str:
    """Say that ``received`` is none of ``choices`` and suggest the nearest one."""
    known = sorted(choices)
    near = difflib.get_close_matches(received, known, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"unknown {what} '{received}'; expected one of: {', '.join(known)}.{hint}"
