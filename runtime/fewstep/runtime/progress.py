"""How long work reports that it goes on: one shape of callback for all of it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Takes what is being done, and the fraction of it that is done, 0 … 1."""


def no_progress(phase: str, done: float) -> None:
    """Reports nothing."""
