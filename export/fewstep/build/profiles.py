"""Optimization profiles of a bundle's graphs: what shapes their engines accept and are tuned for.

The shapes are those of the family's programs for one image and for ``max_batch``: their least and
most are the ends of every profile. There is one profile for each ``opt_batch``, tuned for the
largest run of the graph in the program that most requests of so many images ask for.

A builder that is given profiles which contradict each other leaves a line in its log and goes on.
:func:`wrong_profiles` finds that before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError
from fewstep.runtime.families import Family, Model, family_of, model_of
from fewstep.runtime.program import Program
from fewstep.runtime.records import BuildOptions, GraphInfo, ShapeRange, TensorInfo

Profile = dict[str, ShapeRange]
"""A range of shapes for every input with a dimension that varies."""

Wrong = tuple[str, Sequence[str], str]
"""What is wrong, with which inputs, and what to do."""

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
    if idle := sorted(bundle.manifest.graphs.keys() - {graph for graph, _ in every}):
        raise BundleError(
            f"{bundle.path}: no program of the family {model.info.kind} runs {', '.join(idle)}"
        )
    return {
        name: tuple(
            _profile([shapes for graph, shapes in every if graph == name], best[batch][name])
            for batch in options.opt_batch
        )
        for name in bundle.manifest.graphs
    }


def wrong_profiles(graph: GraphInfo, profiles: Sequence[Profile]) -> Iterator[Wrong]:
    """What a builder would not take, or take and ignore, in the profiles of a graph."""
    varying = [name for name, info in graph.inputs.items() if info.varies]
    if varying and not profiles:
        what = "expected an optimization profile for inputs whose shape varies, received none"
        yield what, varying, "give every such input a range of shapes"
    for index, profile in enumerate(profiles):
        for what, inputs, remedy in _wrong_profile(graph.inputs, varying, profile):
            yield f"profile {index}, {what}", inputs, remedy


def _wrong_profile(
    inputs: Mapping[str, TensorInfo], varying: Sequence[str], profile: Profile
) -> Iterator[Wrong]:
    if missing := [name for name in varying if name not in profile]:
        yield "inputs without a range", missing, "give every input whose shape varies a range"
    if foreign := [name for name in profile if name not in inputs]:
        yield "ranges for inputs that do not exist", foreign, f"the inputs are {', '.join(inputs)}"
    sizes: dict[str, dict[tuple[int, int, int], list[str]]] = {}
    for name in (each for each in profile if each in inputs):
        shape, limits = inputs[name].shape, profile[name]
        if what := _wrong_range(shape, limits):
            yield what, [name], f"the bundle states the shape {list(shape)}"
            continue
        for axis, size in enumerate(shape):
            if isinstance(size, str):
                three = (limits.min[axis], limits.opt[axis], limits.max[axis])
                sizes.setdefault(size, {}).setdefault(three, []).append(name)
    for size, ranges in sizes.items():
        if len(ranges) > 1:
            said = [f"{'/'.join(names)} {list(three)}" for three, names in ranges.items()]
            what = f"dimension '{size}' is one and the same, but has several [min, opt, max]"
            yield what, said, f"give '{size}' the same range in every input"


def _wrong_range(shape: tuple[int | str, ...], limits: ShapeRange) -> str:
    three = (limits.min, limits.opt, limits.max)
    said = f"received min {list(limits.min)}, opt {list(limits.opt)}, max {list(limits.max)}"
    if any(len(each) != len(shape) for each in three):
        return f"expected {len(shape)} dimensions, {said}"
    for size, low, best, high in zip(shape, *three, strict=True):
        if not low <= best <= high:
            return f"expected min ≤ opt ≤ max, {said}"
        if not isinstance(size, str) and (low, high) != (size, size):
            return f"expected the fixed size {size}, {said}"
    return ""


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
    """Graph and shapes of the inputs that vary, of every run; those of what is shared included."""
    for part in program.every_program:
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
