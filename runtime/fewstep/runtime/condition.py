"""What images are conditioned on: classes, by id or name, or the states of a text.

A bundle says which in its manifest; every family shares both kinds.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from fewstep.runtime.class_names import class_id_of, class_ids_of, label_of, matches
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import RequestError
from fewstep.runtime.records import Strict

_SHOWN_NAMES = 20
_MOST_IMAGES = 100_000


class ClassCondition(Strict):
    """Images are conditioned on a class id, 0 … ``num_classes − 1``.

    ``unconditional_id`` is the id that stands for "no class", which guidance needs; it may be one
    of these, and is then no class. ``None``: the model has none.
    """

    kind: Literal["class"] = "class"
    num_classes: PositiveInt
    unconditional_id: int | None = Field(ge=0, lt=2**31)
    class_names: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known, names = self.num_classes, self.class_names
        if known == 1 and self.unconditional_id == 0:
            raise ValueError("no class is left beside unconditional_id")
        if names is not None and len(names) != known:
            raise ValueError(f"class_names: expected {known} names, got {len(names)}")
        return self

    @property
    def has_unconditional(self) -> bool:
        """Whether there is a condition of no condition, which guidance needs."""
        return self.unconditional_id is not None

    @property
    def ids(self) -> list[int]:
        """The ids of all classes, in order."""
        return [each for each in range(self.num_classes) if each != self.unconditional_id]

    def label(self, class_id: int) -> str:
        """The class's name, no other's (see :mod:`fewstep.runtime.class_names`), or ``class 7``."""
        return label_of(class_id, self.class_names or ())

    def matches(self, name: str) -> tuple[int, ...]:
        """The ids of all classes that a number or a name finds; numbers are not checked here."""
        return matches(name, self.class_names or (), self.num_classes)

    def class_id(self, name: str) -> int:
        """The id of a class by its number or by its name, in any case, or one of its synonyms.

        Raises:
            RequestError: no such name, or one that several classes have. Numbers are not checked
                here.
        """
        return class_id_of(name, self.class_names or (), self.num_classes)

    def class_ids(self, names: str) -> list[int]:
        """The ids of classes with commas between them; a name may have commas of its own.

        Raises:
            RequestError: as :meth:`class_id`.
        """
        return class_ids_of(names, self.class_names or (), self.num_classes)

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
        nothing = self.unconditional_id
        hint = f" ({nothing} stands for no class)" if nothing in ids.tolist() else ""
        wrong = sorted({int(i) for i in ids if not 0 <= i < self.num_classes or i == nothing})
        if wrong:
            offenders = ", ".join(map(str, wrong))
            raise RequestError(
                f"class ids must be 0 … {self.num_classes - 1}, got {offenders}{hint}"
            )
        return ids.astype(np.int32)

    def describe(self) -> str:
        """How many classes, which id stands for none of them, and their names."""
        nothing_id = self.unconditional_id
        count = self.num_classes - int(nothing_id is not None and nothing_id < self.num_classes)
        nothing = (
            "none stands for no class, so there is no guidance"
            if nothing_id is None
            else f"id {nothing_id} stands for no class"
        )
        text = f"{count:,} {'class' if count == 1 else 'classes'}"
        if not self.class_names:
            return f"{text}; {nothing}"
        first = [self.label(each) for each in range(min(len(self.class_names), _SHOWN_NAMES))]
        more = ", …" if len(self.class_names) > _SHOWN_NAMES else ""
        return f"{text} ({', '.join(first)}{more}); {nothing}"

    def examples(self, count: int) -> Array:
        """``count`` class ids, evenly spread over the classes."""
        known = np.array(self.ids, np.int32)
        return known[np.linspace(0, len(known) - 1, count).astype(np.int32)]


class TextEncoder(Strict):
    """A graph ``text_encoder`` of the bundle: ``ids [B, tokens]`` int32 → ``text [B, length,
    width]`` float32 states, with ``tokenizer.json`` beside it.

    ``tokens``: ids per text. Shorter texts are padded with ``pad_id``, longer ones are truncated as
    the tokenizer does.
    """

    graph: Literal["text_encoder"] = "text_encoder"
    tokenizer_file: str = Field(default="tokenizer.json", min_length=1)
    tokens: PositiveInt
    pad_id: int = Field(ge=0, lt=2**31)


class TextCondition(Strict):
    """Images are conditioned on text states ``[length, width]`` float32, from the bundle's encoder
    or an outside one.

    ``unconditional_file`` holds the states of the empty text (``text`` in an ``.npz``), which
    guidance needs. ``encoder``: what makes states of texts, if the bundle has it.
    """

    kind: Literal["text"] = "text"
    length: PositiveInt
    width: PositiveInt
    unconditional_file: str | None = Field(default=None, min_length=1)
    encoder: TextEncoder | None = None

    @property
    def has_unconditional(self) -> bool:
        """Whether there is a condition of no condition, which guidance needs."""
        return self.unconditional_file is not None

    def describe(self) -> str:
        """The shape of the states, and whether there are those of the empty text."""
        nothing = "with" if self.has_unconditional else "without"
        return f"text states {self.length} × {self.width}, {nothing} those of the empty text"

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

Described = int | str | Sequence[int | str] | Array
"""What images are asked for: class ids or names, one or several, or text states."""


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


def asked(info: Condition, wanted: Described, count: int) -> tuple[dict[str, Any], list[str]]:
    """Classes or texts, as arguments of ``Generator.generate``.

    Args:
        info: of the bundle.
        wanted: a class id or name, or several; or text states ``[B, L, D]``.
        count: images of each.

    Returns:
        The arguments, for ``count`` images of each class or text in turn; and a label for each
        image.

    Raises:
        RequestError: the other kind of condition, an unknown class, a count below 1, more than
            100,000 images.
    """
    if not isinstance(count, (int, np.integer)) or count < 1:
        raise RequestError(f"count must be an integer of at least 1, got {count!r}")
    array = np.asarray(wanted) if hasattr(wanted, "__array__") else None
    if array is not None and array.dtype.kind != "f":
        array = None
    if array is not None or isinstance(info, TextCondition):
        other: Any = wanted if array is None else None
        states = condition_of(info, other, array)
        _check_images(len(states) * int(count))
        labels = [f"text {row}" for row in range(len(states)) for _ in range(count)]
        return {"text": states.repeat(count, 0)}, labels
    several: Any = wanted if isinstance(wanted, (Sequence, np.ndarray)) else [wanted]
    several = [wanted] if isinstance(wanted, str) else several
    named = [info.class_id(each) if isinstance(each, str) else each for each in several]
    found = info.array(named)
    _check_images(len(found) * int(count))
    ids = found.repeat(count).tolist()
    return {"class_ids": ids}, [info.label(each) for each in ids]


def _check_images(count: int) -> None:
    """Refuse more than one result can be expected to hold."""
    if count > _MOST_IMAGES:
        raise RequestError(
            f"{count:,} images are too many for one call, at most {_MOST_IMAGES:,}: call it for "
            "some at a time, with seed= for the first of them"
        )


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
