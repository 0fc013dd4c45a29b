"""From what is asked of a model, in words of any API, to a job that is checked without engines."""

from __future__ import annotations

import functools
import json
import math
import secrets
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewstep.runtime.asked import asked
from fewstep.runtime.condition import condition_of, negative_of
from fewstep.runtime.edit.windows import growth_of
from fewstep.runtime.errors import RequestError
from fewstep.runtime.examples import complete_settings, example_request
from fewstep.runtime.families import Family, Model, family_of
from fewstep.runtime.program import Program
from fewstep.runtime.settings import settings_of
from fewstep.server.errors import FieldError, blamed
from fewstep.server.job import Job, Step, shown_steps
from fewstep.server.notes import noting

MAX_IMAGES = 16
"""Of one request."""

MAX_WINDOWS = 128
"""Of all images of one edit together: what grows is painted in windows of the model's size."""

MAX_PROMPT = 4_000
"""Characters of a prompt."""

_MOST_SEED = 2**32  # of seeds that are drawn: any reader of JSON holds them exactly
_MOST_CHECKED = 256
_LONGEST_KEPT = 2_000  # characters of settings


@dataclass(frozen=True)
class Order:
    """What is asked of a model.

    ``settings``: of its family, by their names here or in diffusers. ``edit``: arguments of
    ``Generator.edit`` about the picture. ``seed``: ``None`` draws one. ``partial_images``: how many
    images before the last are wanted.
    """

    prompt: str
    count: int = 1
    seed: int | None = None
    negative: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    edit: Mapping[str, Any] | None = None
    partial_images: int = 0

    def job(
        self, model: Model, checks: Checks, on_step: Callable[[Step], None] | None = None
    ) -> Job:
        """The job, checked.

        Args:
            model: that it is for.
            checks: of the model's settings.
            on_step: called in the worker's thread after every step.

        Raises:
            RequestError: what the model cannot serve.
            FieldError: the same, where it is known which field is to blame.
        """
        self._check()
        first = secrets.randbelow(_MOST_SEED) if self.seed is None else self.seed
        seeds = tuple(first + each for each in range(self.count))
        negative = {"negative": self.negative} if self.negative else {}
        checked = checks(self.settings)
        settings = {**checked.settings, **negative}
        with noting() as notes:
            condition = self._condition(model)
        shown = shown_steps(self.partial_images, checked.steps) if on_step else frozenset[int]()
        edit, in_windows = None, 1
        if self.edit is not None:
            in_windows = self._windows(model)
            wanted = next(iter(condition.values()))[0]
            edit = {"wanted": wanted, "count": self.count, "seed": first, **self.edit}
        watched = "watched" if on_step else "plain"
        kind = ("edit" if edit else watched, shown, json.dumps(settings))
        told = edit, on_step, shown, (*checked.notes, *notes), in_windows
        return Job(kind, condition, seeds, settings, checked.steps, *told)

    def _condition(self, model: Model) -> dict[str, Any]:
        """Classes or texts, one an image, by the name of the argument of ``Generator.request``."""
        info = model.info.condition
        try:
            condition, _ = asked(info, self.prompt, self.count)
        except RequestError as error:
            raise FieldError("prompt", str(error)) from error
        whole = {"class_ids": None, "text": None, **condition}
        condition_of(info, tokenizer=model.tokenizer, **whole)
        if self.negative and self.negative.strip():
            negative_of(info, self.negative, model.tokenizer)
        return condition

    def _windows(self, model: Model) -> int:
        """In about how many windows each image of the edit is painted; refuses too many."""
        height, width = model.info.image_size
        found, most = windows_of(model, self.edit or {}), MAX_WINDOWS // self.count
        if found > most:
            field = "outpaint" if self.edit and "outpaint" in self.edit else "mask"
            raise FieldError(
                field,
                f"about {found:,} windows of {width}x{height} would be painted, for each of "
                f"{self.count} images; {MAX_WINDOWS} in all are the most: let the picture grow by "
                "less, mark less of it, use a smaller one, or ask for fewer images",
            )
        return found

    def _check(self) -> None:
        if not 1 <= self.count <= MAX_IMAGES:
            raise FieldError("n", f"n must be 1 … {MAX_IMAGES}, got {self.count}")
        if len(self.prompt) > MAX_PROMPT or len(self.negative or "") > MAX_PROMPT:
            raise FieldError("prompt", f"a prompt may have at most {MAX_PROMPT:,} characters")
        if not 0 <= (self.seed or 0) <= 2**64 - self.count:
            raise FieldError("seed", f"seeds must be 0 … 2^64 − 1, got {self.seed}")


def windows_of(model: Model, edit: Mapping[str, Any]) -> int:
    """About how many windows :mod:`fewstep.runtime.edit.windows` has for an edit.

    Those of a model's size beside each other take one where at most half is painted anew, else two:
    the second one knows what the first one painted.

    Args:
        model: that makes it.
        edit: arguments of ``Generator.edit``, whose picture is fitted: ``image [H, W, 3]``,
            ``mask [H, W]`` and ``outpaint`` if there are such.
    """
    size, growth = edit["image"].shape[:2], edit.get("outpaint")
    left, top, right, bottom = growth_of(growth).values() if growth else (0, 0, 0, 0)
    unknown = edit.get("mask", np.zeros(size, np.bool_))
    unknown = np.pad(unknown, ((top, bottom), (left, right)), constant_values=True)
    if unknown.shape == model.info.image_size:
        return 1
    for axis, (length, origin) in enumerate(zip(model.info.image_size, (top, left), strict=True)):
        starts = np.unique([0, *range(origin % length, unknown.shape[axis], length)])
        unknown = np.add.reduceat(unknown, starts, axis, dtype=np.int64)
    half = math.prod(model.info.image_size) / 2
    return int(np.ceil(unknown / half).sum())


def own_settings(family: Family, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their own names: those of diffusers are translated, their numbers too.

    Raises:
        FieldError: one is given by both names, is no number, or names a file.
    """
    found = {}
    for name, value in given.items():
        alias = family.Settings.diffusers.get(name)
        if alias is None:
            found[name] = value
            continue
        if alias.name in given:
            raise FieldError(name, f"{name} is {alias.name} here: give one of them")
        try:
            found[alias.name] = alias.value(value) if alias.less else value
        except TypeError:
            raise FieldError(name, f"{name} must be a number, got {value!r}") from None
    if (file := family.Settings.file_of(found)) is not None:
        raise RequestError(f"a request cannot name files, got {file!r}")
    return found


@dataclass(frozen=True)
class Checked:
    """What is known of settings: the complete ones, as JSON has them; the steps that there will be;
    what the client should know."""

    settings: Mapping[str, Any]
    steps: int
    notes: tuple[str, ...]


class Checks:
    """Checks settings for a model. Many requests have the same ones, and checking them is half of
    what a request costs that is then answered with 429: so what was found of the last is kept."""

    def __init__(self, model: Model) -> None:
        self._model, self._family = model, family_of(model.info.kind)
        self._found = functools.lru_cache(_MOST_CHECKED)(self._check)
        self._steps = functools.lru_cache(_MOST_CHECKED)(self._count_steps)

    def __call__(self, settings: Mapping[str, Any]) -> Checked:
        """Settings as :attr:`Order.settings` has them.

        Raises:
            RequestError: what the model cannot serve.
            FieldError: the same, where it is known which field is to blame.
        """
        text = json.dumps(settings, sort_keys=True)
        check = self._found if len(text) <= _LONGEST_KEPT else self._check
        return check(text)

    def _check(self, settings: str) -> Checked:
        model, family = self._model, self._family
        with noting() as notes:
            try:
                found = complete_settings(model, own_settings(family, json.loads(settings)))
                request = example_request(model, settings_of(model.info.defaults, found))
            except RequestError as error:
                raise blamed(error, family.Settings.model_fields) from error
        return Checked(found, self._steps(family.key(model, request, 1)), tuple(notes))

    def _count_steps(self, key: Hashable) -> int:
        """Of requests that need the program of a key, as those of many settings do."""
        program: Program = self._family.program(self._model, key)
        return max(op.step for op in program.ops) + 1
