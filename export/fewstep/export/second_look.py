"""A second look at a fresh bundle: does what it makes look like images?

``verify`` compares a bundle with PyTorch, so it cannot see what both have wrong: the range of
pixel values, the class that stands for none, weights that were never trained. This looks at what
comes out instead. Nothing here is proof, so what is found is said, and stops nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.export.source import Graph
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator
from fewstep.runtime.observe import Call, observe

_GUIDANCE = 3.0
_OUTSIDE, _MARGIN = 0.2, 0.05
"""Fraction of an image's values that may leave 0 … 1, and by how much they have to, to count.

Decoders overshoot a little at edges; one that was trained on another range leaves it by far.
"""
_UNSURE, _SURE = 0.98, 0.001
"""Mean entropy of the first step's logits, as a fraction of the largest possible one."""
_FLAT = 2 / 255
"""Standard deviation of pixel values under which nothing can be seen."""
_SHEET_CLASSES, _SHEET_COLUMNS = 10, 4


def second_look(
    generator: Generator, graphs: Mapping[str, Graph], *, ranged: bool = True
) -> tuple[str, ...]:
    """What is odd about the images and logits of a bundle, a line each; nothing if all is well.

    Args:
        generator: of the fresh bundle, on engines that can be trusted.
        graphs: what was exported, by name.
        ranged: whether the form has an option for the range of pixel values.
    """
    info, settings = generator.model.info.condition, _settings(generator)
    two = _two(info)
    calls = list(_calls(generator, two, settings))
    images = _images(generator, calls)
    found = [*_range(calls, graphs, ranged=ranged), *_entropy(generator, calls)]
    if (images.std(axis=(1, 2, 3)) < _FLAT).any():
        found.append(
            "the images are of one colour: is the tokenizer the one that the transformer was "
            "trained with" + (", and its pixel range right (--pixel-range)?" if ranged else "?")
        )
    first, second = next(iter(two.values()))
    if not np.array_equal(first, second) and np.array_equal(images[0], images[1]):
        found.append("two different conditions give the same image: does the model use them?")
    if settings.get("guidance") == _GUIDANCE:
        plain = _images(generator, _calls(generator, two, settings | {"guidance": 0.0}))
        if np.array_equal(plain, images):
            found.append(
                "guidance changes nothing: is the class that stands for no class the right one "
                "(unconditional in --config)?"
            )
    return tuple(found)


def write_contact_sheet(generator: Generator, path: Path) -> None:
    """A picture of what the bundle makes, a row for each of up to ten classes or texts.

    Raises:
        OutputError: the place is not writable.
    """
    from fewstep.cli.pictures import grid, save

    info = generator.model.info.condition
    if isinstance(info, ClassCondition):
        ids = info.examples(min(len(info.ids), _SHEET_CLASSES)).tolist()
        labels = [info.label(each) for each in ids]
        shown: dict[str, Any] = {"class_ids": np.repeat(ids, _SHEET_COLUMNS).tolist()}
    else:
        labels = [f"text {row}" for row in range(_SHEET_COLUMNS)]
        shown = {"text": info.examples(_SHEET_COLUMNS).repeat(_SHEET_COLUMNS, 0)}
    result = generator.generate(**shown, seed=0)
    rows = result.images.reshape(len(labels), _SHEET_COLUMNS, *result.images.shape[1:])
    save(grid(rows, labels, generator.bundle.manifest.name), path)


def _settings(generator: Generator) -> dict[str, Any]:
    """Those of a golden rollout, which is short, with guidance that has to show where it can."""
    settings = dict(next(iter(generator.family.rollouts(generator.model).values())))
    guided = settings | {"guidance": _GUIDANCE}
    try:
        generator.request(**_two(generator.model.info.condition), **guided)
    except RequestError:  # a policy guides, nothing can be guided with, or there is no such setting
        return settings
    return guided


def _two(info: Any) -> dict[str, Any]:
    """Two conditions as different as the bundle has them."""
    if isinstance(info, ClassCondition):
        return {"class_ids": info.examples(2).tolist()}
    return {"text": info.examples(2)}


def _calls(generator: Generator, two: dict[str, Any], settings: dict[str, Any]) -> Iterator[Call]:
    """Every run of a graph in one generation, of one noise for both images."""
    request = generator.request(**two, seed=[0, 0], **settings)
    family, model, rows = generator.family, generator.model, slice(0, 2)
    program = family.program(model, family.key(model, request, 2, constants=False))
    yield from observe(
        program, generator.device, generator.engines, family.inputs(model, request, rows)
    )


def _images(generator: Generator, calls: Iterable[Call]) -> Array:
    """The images of a generation, ``[2, 3, H, W]`` in 0 … 1: what its last run gave."""
    *_, last = calls
    kinds = generator.family.kinds
    return next(each for name, each in last.outputs.items() if kinds.get(name) == "image")


@torch.no_grad()
def _range(calls: list[Call], graphs: Mapping[str, Graph], *, ranged: bool) -> Iterator[str]:
    call = calls[-1]
    unclamped = graphs[call.graph].unclamped
    if unclamped is None:
        return
    values = unclamped(*(torch.from_numpy(each) for each in call.inputs.values())).numpy()
    outside = float(((values < -_MARGIN) | (values > 1 + _MARGIN)).mean())
    if outside > _OUTSIDE:
        low, high = np.quantile(values, (0.01, 0.99))
        yield (
            f"{outside:.0%} of the decoder's values leave 0 … 1 (most lie in {low:.2f} … "
            f"{high:.2f}): "
            + (
                "give the range that the tokenizer was trained on, such as --pixel-range=-1:1"
                if ranged
                else "a trained tokenizer's hardly do"
            )
        )


def _entropy(generator: Generator, calls: list[Call]) -> Iterator[str]:
    kinds = generator.family.kinds
    logits = (
        each for call in calls for n, each in call.outputs.items() if kinds.get(n) == "logits"
    )
    first = next(logits, np.zeros((1, 0))).astype(np.float64)
    if not first.size:
        return
    weights = np.exp(first - first.max(-1, keepdims=True))
    chances = weights / weights.sum(-1, keepdims=True)
    surprise = -np.log(np.maximum(chances, np.finfo(float).tiny))
    share = float((chances * surprise).sum(-1).mean() / math.log(first.shape[-1]))
    if share > _UNSURE:
        yield "the first logits are almost uniform: are these the trained weights?"
    elif share < _SURE:
        yield (
            "the first logits are certain of every token before any is decided: are these the "
            "trained weights, and the head count of --config right?"
        )
