"""Texts as callers give them: prompts, arrays of states, files of states."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.runtime.devices import Array
from fewstep.runtime.errors import RequestError


def prompts_of(given: object) -> list[Any] | None:
    """The prompts that were given, one or several, not checked yet; ``None`` for what is no text.

    An empty list is one of prompts, and a list with a text among others too.
    """
    if isinstance(given, np.ndarray):
        return np.atleast_1d(given).tolist() if given.dtype.kind == "U" and given.ndim < 2 else None
    if isinstance(given, str):
        return [given]
    if not isinstance(given, Sequence) or isinstance(given, (bytes, bytearray)):
        return None
    return list(given) if not given or any(isinstance(each, str) for each in given) else None


def numbers(given: object) -> Array | None:
    """What was given as an array, if it is one of numbers."""
    try:
        found = np.asarray(given)
    except (TypeError, ValueError, RuntimeError):  # rows of different lengths, a tensor on a GPU
        return None
    return found if found.ndim and found.dtype.kind in "fiubc" else None


def finite(states: Array, name: str) -> Array:
    """States as float32.

    Raises:
        RequestError: they are no floats, or not all finite in float32.
    """
    if states.dtype.kind != "f":
        raise RequestError(f"{name} must hold finite floats, got {states.dtype}")
    with np.errstate(over="ignore"):
        found: Array = states.astype(np.float32)
    if wrong := int(found.size - np.isfinite(found).sum()):
        raise RequestError(
            f"{name} must hold finite floats: {wrong:,} of {found.size:,} are NaN or infinite in "
            "float32; encode the text again"
        )
    return found


def shown_shape(*sides: object) -> str:
    """A shape as messages have it."""
    return f"[{', '.join(map(str, sides))}]"


def read_text(path: Path) -> Array:
    """Text states ``[B, L, D]`` of a ``.npy`` file.

    Raises:
        RequestError: there is no such file, or it is no such array.
    """
    try:
        states = np.load(path, allow_pickle=False)
    except OSError as error:
        raise RequestError(
            f"{path} is not a .npy array that can be read: {_reason(error)}"
        ) from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:  # what numpy says is not for users
        raise RequestError(
            f"{path} is not a .npy array of text states [B, L, D], or it is damaged"
        ) from error
    if not isinstance(states, np.ndarray) or states.ndim != 3:
        raise RequestError(f"{path}: expected one array [B, L, D]")
    return states


def _reason(error: OSError) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
