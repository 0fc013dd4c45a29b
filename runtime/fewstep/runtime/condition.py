"""What images are conditioned on: classes, by id or name, or the states of a text.

A bundle says which in its manifest; every family shares both kinds.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from fewstep.runtime.devices import Array
from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.records import Strict


class ClassCondition(Strict):
    """Images are conditioned on a class id, 0 … ``num_classes − 1``.

    ``unconditional_id`` is the id that stands for "no class".
    """

    kind: Literal["class"] = "class"
    num_classes: PositiveInt
    unconditional_id: int = Field(ge=0)
    class_names: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known, names = self.num_classes, self.class_names
        if not known <= self.unconditional_id < 2**31:
            raise ValueError("unconditional_id is one of the classes, or no int32")
        if names is not None and len(names) != known:
            raise ValueError(f"class_names: expected {known} names, got {len(names)}")
        return self

    def label(self, class_id: int) -> str:
        """The class's name, or ``class 7``."""
        if self.class_names and 0 <= class_id < len(self.class_names):
            return self.class_names[class_id]
        return f"class {class_id}"

    def class_id(self, name: str) -> int:
        """The id of a class by its number or, in any case, its name.

        Raises:
            RequestError: no such name. Numbers are not checked here.
        """
        with contextlib.suppress(ValueError):
            return int(name)
        names = self.class_names or ()
        if not names:
            raise RequestError(f"class '{name}' is not a number, and this bundle names no classes")
        known = {each.lower(): index for index, each in enumerate(names)}
        if name.lower() not in known:
            raise RequestError(choose("class", name, names))
        return known[name.lower()]

    def array(self, class_ids: Sequence[int]) -> Array:
        """Class ids as ``[B]`` int32.

        Raises:
            RequestError: empty, not integers, or out of range.
        """
        try:
            ids = np.atleast_1d(np.asarray(class_ids))
        except ValueError:  # rows of different lengths
            raise RequestError(f"class_ids must be a list of integers, got {class_ids!r}") from None
        if ids.size == 0 or ids.ndim != 1 or ids.dtype.kind not in "iu":
            is_array = isinstance(class_ids, np.ndarray)
            found = f"{ids.dtype} {list(ids.shape)}" if is_array else repr(class_ids)
            raise RequestError(f"class_ids must be a list of integers, got {found}")
        if wrong := sorted({int(i) for i in ids if not 0 <= i < self.num_classes}):
            offenders = ", ".join(map(str, wrong))
            raise RequestError(f"class ids must be 0 … {self.num_classes - 1}, got {offenders}")
        return ids.astype(np.int32)

    def examples(self, count: int) -> Array:
        """``count`` class ids, evenly spread over the classes."""
        return np.linspace(0, self.num_classes - 1, count).astype(np.int32)


class TextCondition(Strict):
    """Images are conditioned on text states ``[length, width]`` float32 from an outside encoder.

    ``unconditional_file`` holds the states of the empty text (``text`` in an ``.npz``), which
    guidance needs.
    """

    kind: Literal["text"] = "text"
    length: PositiveInt
    width: PositiveInt
    unconditional_file: str | None = Field(default=None, min_length=1)

    def array(self, text: Array) -> Array:
        """Text states as ``[B, L, D]`` float32.

        Raises:
            RequestError: another shape, or numbers that are not finite.
        """
        states = np.asarray(text)
        if states.ndim != 3 or states.shape[1:] != (self.length, self.width) or not len(states):
            raise RequestError(
                f"text must have shape [B, {self.length}, {self.width}], got {list(states.shape)}"
            )
        if states.dtype.kind != "f" or not np.isfinite(states).all():
            raise RequestError(f"text must hold finite floats, got {states.dtype}")
        return states.astype(np.float32)

    def examples(self, count: int) -> Array:
        """States of ``count`` texts that nobody wrote: standard normal, always the same."""
        shape = (count, self.length, self.width)
        return np.random.default_rng(0).standard_normal(shape, np.float32)


Condition = ClassCondition | TextCondition


def condition_of(info: Condition, class_ids: Sequence[int] | None, text: Array | None) -> Array:
    """The condition in the bundle's own kind: ``[B]`` int32 or ``[B, L, D]`` float32.

    Raises:
        RequestError: the other kind was given, or none, or a bad value.
    """
    if isinstance(info, ClassCondition):
        if text is not None or class_ids is None:
            raise RequestError("this bundle is class-conditional: give class_ids, not text")
        return info.array(class_ids)
    if class_ids is not None or text is None:
        raise RequestError("this bundle is text-conditional: give text states, not class_ids")
    return info.array(text)


def read_text(path: Path) -> Array:
    """Text states ``[B, L, D]`` of a ``.npy`` file.

    Raises:
        RequestError: the file is no such array.
    """
    try:
        states = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RequestError(f"{path} is not a .npy array: {error}") from error
    if not isinstance(states, np.ndarray) or states.ndim != 3:
        raise RequestError(f"{path}: expected one array [B, L, D]")
    return states
