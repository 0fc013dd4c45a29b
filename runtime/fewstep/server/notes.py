"""Warnings of fewstep about one request, that a text is cut short say, as notes of its answer."""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar

from fewstep.runtime.errors import FewstepWarning, warnings_told

_notes: ContextVar[deque[str] | None] = ContextVar("notes", default=None)
_MOST = 16


@contextlib.contextmanager
def warnings_noted() -> Iterator[None]:
    """In the block warnings of fewstep go to :func:`noting`, where they are of a request. Nothing
    is kept of them, so that a server that runs for long does not grow."""

    def note(text: str) -> bool:
        notes = _notes.get()
        if notes is not None and text not in notes:
            notes.append(text)
        return notes is not None

    with warnings_told(note):
        warnings.filterwarnings("always", category=FewstepWarning)
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
