"""Hyper-parameters that training scripts keep beside the weights."""

from __future__ import annotations

import argparse
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from fewstep.export import unpickling
from fewstep.export.checkpoint import Content

_OF_TRAINING = re.compile(r"optim|sched|callback|loop|scaler|rng|random|param_groups", re.I)
_MOST_DEPTH = 6


def hyper_parameters(
    content: Content, trail: Sequence[str]
) -> tuple[dict[str, Any], frozenset[str]]:
    """Settings by name, and the names that stand for several values.

    Of several values the outermost counts, and of those the first.

    Args:
        content: what was read.
        trail: keys that lead to the dictionary with the weights.
    """
    found: dict[str, Any] = {}
    disputed = set()
    places: list[Mapping[Any, Any]] = [content.tree]
    for key in trail:
        inside = next((each for name, each in places[-1].items() if str(name) == key), None)
        if not isinstance(inside, dict):
            break
        places.append(inside)
    for place in [*places, content.metadata]:
        settings = {
            str(name): unpickling.plain(each)
            for name, each in place.items()
            if not _OF_TRAINING.search(str(name)) and not _weights(name, each)
        }
        for name, each in _all(settings):
            first = found.setdefault(name, each) if each is not None else None
            if first is not each and first != each:  # NaN is itself, and equal to nothing
                disputed.add(name)
    return found, frozenset(disputed)


def _all(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings and those inside them, level by level."""
    level = [settings]
    for _ in range(_MOST_DEPTH):
        for each in level:
            yield from each.items()
        level = [inner for each in level for inner in each.values() if isinstance(inner, dict)]


def _weights(name: object, value: object, depth: int = 0) -> bool:
    """Whether an entry is weights, or holds some."""
    if isinstance(value, Tensor):
        return "." in str(name) or value.numel() != 1
    if isinstance(value, (argparse.Namespace, types.SimpleNamespace)):
        value = vars(value)
    if isinstance(value, Mapping) and depth < _MOST_DEPTH:
        return any(_weights(key, each, depth + 1) for key, each in value.items())
    return False
