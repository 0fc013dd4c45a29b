"""Warnings of fewstep about one request, that a text is cut short say, as notes of its answer."""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TextIO

from fewstep.runtime.errors import FewstepWarning

_notes: ContextVar[deque[str] | None] = ContextVar("notes", default=None)
_MOST = 16


@contextlib.contextmanager
def warnings_noted() -> Iterator[None]:
    """In the block warnings of fewstep go to :func:`noting`, where they are of a request. Nothing
    is kept of them, so that a server that runs for long does not grow."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=FewstepWarning)
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            notes = _notes.get()
            if notes is None or not issubclass(category, FewstepWarning):
                usual(message, category, filename, lineno, file, line)
            elif str(message) not in notes:
                notes.append(str(message))

        warnings.showwarning = show
        yield


@contextlib.contextmanager
def noting() -> Iterator[deque[str]]:
    """What this thread or task is warned of in the block."""
    found = deque[str](maxlen=_MOST)
    before = _notes.set(found)
    try:
        yield found
    finally:
        _notes.reset(before)


def note_nothing() -> None:
    """This thread's warnings were noted before, where requests were checked."""
    _notes.set(deque(maxlen=0))
