"""The networks of published models as files have them: names, sizes, and what is beside them.

A module of this package is a family's: its ``PARTS`` has a :class:`Part` for every class of
network.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fewstep.export.wrappers import Wanted


@dataclass(frozen=True)
class Preset:
    """A published size: constructor arguments under the name of its data set."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """How one class of network is published.

    Args:
        title: what it is called.
        option: how its file is passed: an option, or a place in a folder that is one.
        sizes: the published ones, recognised by keys and shapes.
        form: under which :mod:`fewstep.export.foreign` knows its files, if it does.
        settings: constructor arguments that a checkpoint may state, and that must then agree.
            Others share their names with settings of training scripts.
        settings_beside: a name without which the file's settings are another network's.
        other_name: the key under which another system has a tensor.
        other_system: that system.
        rules: what to look for besides keys.
    """

    title: str
    option: str
    sizes: tuple[Preset, ...] = ()
    form: str = ""
    settings: tuple[str, ...] = ()
    settings_beside: str = ""
    other_name: Callable[[str], str] = str
    other_system: str = ""
    rules: Wanted = Wanted(frozenset())

    @property
    def one(self) -> str:
        """One of it: its title with an article."""
        return f"{'an' if self.title[0].lower() in 'aeiou' else 'a'} {self.title}"

    def wanted(self, keys: Collection[str], *, whole: bool = False) -> Wanted:
        """What to look for, of a model whose state dict has ``keys``.

        ``whole``: what is seldom exported is wanted too: a tokenizer's encoder.
        """
        unused = () if whole else self.rules.unused
        exported = frozenset(key for key in keys if not key.startswith(unused))
        aliases = {name: key for key in exported if (name := self.other_name(key)) != key}
        system = self.other_system
        return replace(self.rules, keys=exported, aliases=aliases, alias_of=system, unused=unused)


Kind = Callable[..., nn.Module]
"""The class of a network."""


@functools.cache
def siblings(kind: Kind) -> Mapping[Kind, Part]:
    """The parts of the family that has this class of network."""
    return next(parts for parts in _families() if kind in parts)


def others(kind: Kind) -> Mapping[Kind, Part]:
    """The parts of all other families."""
    return {k: part for parts in _families() if kind not in parts for k, part in parts.items()}


def part_of(kind: Kind) -> Part:
    """How this class of network is published."""
    return siblings(kind)[kind]


def _families() -> list[Mapping[Kind, Part]]:
    modules = (
        importlib.import_module(f"{__name__}.{each.name}")
        for each in pkgutil.iter_modules(__path__)
    )
    return [module.PARTS for module in modules]
