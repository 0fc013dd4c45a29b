"""What images are conditioned on: classes, by id or name, or texts.

A bundle says which in its manifest; every family shares both kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from fewstep.runtime.class_names import class_id_of, class_ids_of, label_of, matches
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import RequestError, brief
from fewstep.runtime.given_texts import finite, numbers, prompts_of, shown_shape
from fewstep.runtime.records import Strict

if TYPE_CHECKING:
    from fewstep.runtime.prompts import Tokenizer

_SHOWN_NAMES = 20


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
    def files(self) -> set[str]:
        """Files of the bundle that it names: none."""
        return set()

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
    """A graph of the bundle that reads texts.

    It takes ``ids [B, tokens]`` int32, padded with ``pad_id``, and gives states
    ``text [B, length, width]`` float32. Prompts become ids by ``tokenizer_file``; one with more
    than ``tokens`` is truncated. ``examples``: ids of some texts without padding, for golden
    rollouts and benchmarks.
    """

    graph: Literal["text_encoder"] = "text_encoder"
    tokenizer_file: str = Field(default="tokenizer.json", min_length=1)
    tokens: PositiveInt
    pad_id: int = Field(ge=0, lt=2**31)
    examples: tuple[tuple[int, ...], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(not 1 <= len(ids) <= self.tokens for ids in self.examples):
            raise ValueError(f"examples: expected 1 … {self.tokens} ids each")
        if any(not 0 <= each < 2**31 for ids in self.examples for each in ids):
            raise ValueError("examples: ids must be 0 … 2^31 − 1")
        return self

    def padded(self, count: int) -> Array:
        """Ids of ``count`` examples in turn, ``[count, tokens]`` int32."""
        found = np.full((count, self.tokens), self.pad_id, np.int32)
        for row in range(count):
            ids = self.examples[row % len(self.examples)]
            found[row, : len(ids)] = ids
        return found

    def checked(self, ids: Array, name: str, rows: tuple[str, ...]) -> Array:
        """Ids ``[*rows, tokens]`` as int32, if they are; ``name``: what to call them.

        Raises:
            RequestError: another shape, or one below 0.
        """
        if ids.shape[len(rows) :] != (self.tokens,) or not ids.size or ids.min() < 0:
            raise RequestError(
                f"ids of {name} must be at least 0 in shape {shown_shape(*rows, self.tokens)}, got "
                f"{shown_shape(*ids.shape)}{f' from {ids.min()}' if ids.size else ''}"
            )
        return ids.astype(np.int32)


class TextCondition(Strict):
    """Images are conditioned on text states ``[length, width]`` float32.

    ``unconditional_file`` holds the states of the empty text (``text`` in an ``.npz``), which
    guidance needs. ``encoder``: of prompts; without it states come from outside.
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

    @property
    def files(self) -> set[str]:
        """Files of the bundle that it names."""
        tokenizer = self.encoder and self.encoder.tokenizer_file
        return {each for each in (self.unconditional_file, tokenizer) if each}

    def describe(self) -> str:
        """The shape of the states, whether there are those of the empty text, and an encoder."""
        nothing = "with" if self.has_unconditional else "without"
        reads = (
            "no text encoder"
            if self.encoder is None
            else f"the text encoder reads {self.encoder.tokens} tokens"
        )
        return (
            f"text states {self.length} × {self.width}, {nothing} those of the empty text; {reads}"
        )

    def array(self, text: object, *, negative: bool = False) -> Array:
        """Text states as ``[B, L, D]`` float32; ids ``[B, tokens]`` as int32, where there is an
        encoder.

        Args:
            text: them, as an array or what becomes one.
            negative: it is that of a negative text alone, ``[L, D]`` or ``[tokens]``; so is what
                is returned.

        Raises:
            RequestError: no array, another shape, or numbers that are not finite.
        """
        name, rows = ("negative", ()) if negative else ("text", ("B",))
        expected, states = shown_shape(*rows, self.length, self.width), numbers(text)
        if states is None or not (states.ndim > 1 or hasattr(text, "__array__")):
            prompts = "a prompt, or " if negative else "prompts, or "
            kinds = f"{prompts if self.encoder is not None else ''}states {expected}"
            raise RequestError(f"{name} must be {kinds}, got {brief(text)}")
        if self.encoder is not None and states.ndim == 1 + len(rows) and states.dtype.kind in "iu":
            return self.encoder.checked(states, name, rows)
        if states.shape[len(rows) :] != (self.length, self.width) or not states.size:
            one = states.shape == (self.length, self.width)
            hint = f"; of one text give states[None], [1, {self.length}, {self.width}]"
            found = shown_shape(*states.shape)
            raise RequestError(
                f"{name} must have shape {expected}, got {found}{hint if one else ''}"
            )
        return finite(states, name)

    def examples(self, count: int) -> Array:
        """Ids of ``count`` examples; without an encoder states of texts that nobody wrote: standard
        normal, always the same."""
        if self.encoder is not None:
            return self.encoder.padded(count)
        shape = (count, self.length, self.width)
        return np.random.default_rng(0).standard_normal(shape, np.float32)


Condition = ClassCondition | TextCondition

Described = int | str | Sequence[int | str] | Array
"""What images are asked for: class ids or names, prompts, one or several; or text states."""

Text = str | Sequence[str] | Array
"""Prompts, one or several; states ``[B, L, D]`` float32, or ids ``[B, tokens]`` int32."""


def condition_of(
    info: Condition,
    class_ids: Sequence[int] | None,
    text: Text | None,
    tokenizer: Tokenizer | None = None,
) -> Array:
    """The condition in the bundle's own kind: ``[B]`` int32; ``[B, L, D]`` float32, or ids
    ``[B, tokens]`` int32 of prompts.

    Args:
        info: of the bundle.
        class_ids: one an image, for class-conditional bundles.
        text: one an image, for text-conditional ones.
        tokenizer: of prompts; ``None`` where the bundle reads none.

    Raises:
        RequestError: the other kind was given, or none, or a bad value.
        BundleError: the tokenizer's file is damaged.
        MissingDependencyError: tokenizers is not installed.
    """
    if isinstance(info, ClassCondition):
        if text is not None:
            raise RequestError("this bundle is class-conditional: give class_ids, not text")
        if class_ids is None:
            raise RequestError(
                "nothing to generate; this bundle is class-conditional: give class_ids"
            )
        return info.array(class_ids)
    if class_ids is not None:
        raise RequestError("this bundle is text-conditional: give text, not class_ids")
    if text is None:
        raise RequestError("nothing to generate; this bundle is text-conditional: give text")
    prompts = prompts_of(text)
    if prompts is None:
        return info.array(text)
    if tokenizer is None:
        raise no_encoder(info)
    return info.array(tokenizer.ids(prompts))


def negative_of(info: Condition, negative: str | Array, tokenizer: Tokenizer | None) -> Array:
    """What guidance leads away from: states ``[L, D]`` float32, or ids ``[tokens]`` int32.

    Args:
        info: of the bundle.
        negative: a prompt, or states ``[L, D]``.
        tokenizer: as of :func:`condition_of`.

    Raises:
        RequestError: the bundle has no such thing, several were given, or a bad value.
        BundleError: as :func:`condition_of`.
        MissingDependencyError: as there.
    """
    if not info.has_unconditional or isinstance(info, ClassCondition):
        raise RequestError("negative is for text-conditional bundles that have guidance")
    prompts = prompts_of(negative)
    if prompts is None:
        return info.array(negative, negative=True)
    if not isinstance(negative, str):
        raise RequestError(
            f"negative must be one prompt, of all images, got {brief(negative)}: join several to "
            "one ('snow, rain'), or generate once for each"
        )
    if tokenizer is None:
        raise no_encoder(info, negative=True)
    return info.array(tokenizer.ids(prompts)[0], negative=True)


def no_encoder(info: TextCondition, *, negative: bool = False) -> RequestError:
    """The error for prompts where nothing reads them."""
    rows, name = ([], "negative as") if negative else (["B"], "text")
    shape = shown_shape(*rows, info.length, info.width)
    return RequestError(
        f"this bundle has no text encoder: give {name} states {shape}, or export it with one"
    )
