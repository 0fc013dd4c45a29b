"""The names of ImageNet's 1,000 classes, which authors' checkpoints know by number only.

``imagenet_classes.txt`` holds them with the data set's ids of the classes and WordNet's
attribution.
"""

from __future__ import annotations

import functools
from importlib.resources import files

_NAMES_FROM = len("n01440764 ")


@functools.cache
def class_names() -> tuple[str, ...]:
    """The 1,000 names in the order of ILSVRC 2012, each with its synonyms: "tench, Tinca tinca".

    Two classes are named "crane": the bird (134) and the machine (517).
    """
    text = files("fewstep.export").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    lines = text.splitlines()
    return tuple(line[_NAMES_FROM:] for line in lines if not line.startswith("#"))
