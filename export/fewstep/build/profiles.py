"""Optimization profiles of a bundle's graphs: what shapes their engines accept and are tuned for.

The shapes are those of the family's programs for one image and for ``max_batch``: their least and
most are the ends of every profile. There is one profile for each ``opt_batch``, tuned for the
largest run of the graph in the program that most requests of so many images ask for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.families import Family, Model, family_of, model_of
from fewstep.runtime.program import Program
from fewstep.runtime.records import BuildOptions, ShapeRange

Profile = dict[str, ShapeRange]

Shapes = dict[str, tuple[int, ...]]
"""Of a graph's inputs, by name, in one of its runs."""


def profiles(bundle: Bundle, options: BuildOptions) -> dict[str, tuple[Profile, ...]]:
    """One profile per ``options.opt_batch`` for every graph, over the inputs that vary.

    Raises:
        BundleError: a file that programs are made of is damaged.
    """
    family, model = family_of(bundle.manifest.model.kind), model_of(bundle)
    every = [
        run
        for batch in {1, options.max_batch}
        for key in family.corners(model, batch)
        for run in _runs(family.program(model, key), model)
    ]
    best = {batch: _typical(family, model, batch) for batch in options.opt_batch}
    return {
        name: tuple(
            _profile([shapes for graph, shapes in every if graph == name], best[batch][name])
            for batch in options.opt_batch
        )
        for name in bundle.manifest.graphs
    }


def _typical(family: Family, model: Model, batch: int) -> dict[str, Shapes]:
    """The largest run of every graph in the first program that has it."""
    found: dict[str, Shapes] = {}
    for key in family.corners(model, batch):
        largest: dict[str, Shapes] = {}
        for graph, shapes in _runs(family.program(model, key), model):
            largest[graph] = max(largest.get(graph, shapes), shapes, key=_elements)
        found = {**largest, **found}
    return found


def _runs(program: Program, model: Model) -> Iterator[tuple[str, Shapes]]:
    """Graph and shapes of the inputs that vary, of every run; those of constants included."""
    for part in (program, *program.constants.values()):
        for run, shapes in part.runs():
            inputs = model.graphs[run.graph].inputs
            yield run.graph, {name: shapes[name] for name, each in inputs.items() if each.varies}


def _profile(runs: list[Shapes], best: Shapes) -> Profile:
    def ends(name: str, of: Any) -> tuple[int, ...]:
        return tuple(of(sizes) for sizes in zip(*(run[name] for run in runs), strict=True))

    return {
        name: ShapeRange(min=ends(name, min), opt=shape, max=ends(name, max))
        for name, shape in best.items()
    }


def _elements(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
