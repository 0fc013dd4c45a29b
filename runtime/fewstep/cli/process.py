"""What a process owes to those around it: streams that never cost a result, signals that clean up.

Characters that a stream's encoding lacks are replaced. A reader that has gone, as with ``| head``,
wants no more of it and is no error; work goes on. SIGTERM and SIGHUP end a command as Ctrl-C does.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import gc
import io
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Iterator
from types import FrameType
from typing import TextIO

from fewstep.runtime.errors import OutputError, warnings_told

_DEGRADED = "fewstep-degraded"
_NEAREST = {"→": "->", "…": "...", "×": "x", "·": ".", "–": "-", "−": "-", "µ": "u"}
_COLLECT_AFTER = 50_000  # new objects; Python's own number is 700
_ENDING = (signal.SIGTERM, signal.SIGHUP)


def collect_seldom() -> None:
    """Look for garbage seldom, and not when the process ends.

    Imports make about 100,000 objects and no garbage. To look through all of them again
    and again, and once more at the end, took a third of the time of ``fewstep generate``.
    """
    gc.set_threshold(_COLLECT_AFTER)
    atexit.register(gc.freeze)


def prepare_streams() -> None:
    """Replace what an encoding lacks, and give closed streams a place to write to."""
    codecs.register_error(_DEGRADED, _degraded)
    for descriptor in (0, 1, 2):  # otherwise the next file that is opened gets the number
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_DEGRADED)


def _degraded(error: UnicodeError) -> tuple[bytes, int]:
    """The bytes of a file's name as they are, and what is nearest to a character in ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = b""
    for each in error.object[error.start : error.end]:
        is_byte = "\udc80" <= each <= "\udcff"
        found += each.encode("ascii", "surrogateescape") if is_byte else _nearest(each)
    return found, error.end


def _nearest(character: str) -> bytes:
    plain = _NEAREST.get(character) or unicodedata.normalize("NFKD", character)
    return plain.encode("ascii", "ignore") or b"?"


def flush_results() -> None:
    """Write what is left to standard output; quiet if nobody reads it any more.

    Raises:
        OutputError: it cannot be written, as on a full disk.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    except OSError as error:
        silence(sys.stdout)
        raise unprinted(error) from error


def unprinted(error: OSError) -> OutputError:
    """The error for results that standard output does not take."""
    return OutputError(f"cannot write to standard output: {error.strerror or error}")


def silence(stream: TextIO) -> None:
    """Let a stream that cannot be written to lead nowhere."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class UnfailingStderr(io.TextIOBase):
    """Standard error, as it is at the time; what cannot be said there costs no result."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Its encoding."""
        return getattr(sys.stderr, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return sys.stderr is not None and sys.stderr.isatty()

    def fileno(self) -> int:
        """Its descriptor."""
        return sys.stderr.fileno()

    def write(self, text: str) -> int:
        """Write if that is possible."""
        stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # that below rich's own
        if stream is not None:
            try:
                stream.write(text)
                stream.flush()
            except OSError:
                silence(stream)
        return len(text)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise ``SystemExit`` in the block: 143, 129; those ignored stay so.

    Outside the main thread, where Python takes no signals, nothing is changed.
    """
    here = threading.current_thread() is threading.main_thread()
    ours = [each for each in _ENDING if here and signal.getsignal(each) is signal.SIG_DFL]
    for each in ours:
        signal.signal(each, _end)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    for each in _ENDING:  # the first is enough: what cleans up is not interrupted
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


@contextlib.contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Show warnings of fewstep as notes, each once; others as they are."""
    from fewstep.cli.common import say_note

    noted = set[str]()

    def say(text: str) -> bool:
        if text not in noted:
            say_note(text)
        noted.add(text)
        return True

    with warnings_told(say):
        yield
