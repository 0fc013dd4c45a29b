"""Optimization profiles of a bundle's graphs: what batches their engines accept and are tuned for.

With guidance the transformer runs conditional and unconditional halves together, twice as many
rows as there are images; without it, and at the first step, as many as images. So its profiles
start at 1 and end at twice ``max_batch``, tuned for twice ``opt_batch``; every other graph sees one
row per image.
"""

from __future__ import annotations

from fewstep.runtime.manifest import BuildOptions, GraphInfo, ShapeRange

Profile = dict[str, ShapeRange]


def profiles(name: str, graph: GraphInfo, options: BuildOptions) -> tuple[Profile, ...]:
    """One profile per ``options.opt_batch``, for inputs with a dimension that varies."""
    rows = 2 if name == "transformer" else 1
    return tuple(
        _profile(graph, best=rows * batch, most=rows * options.max_batch)
        for batch in options.opt_batch
    )


def _profile(graph: GraphInfo, *, best: int, most: int) -> Profile:
    return {
        name: ShapeRange(
            min=_shape(info.shape, 1), opt=_shape(info.shape, best), max=_shape(info.shape, most)
        )
        for name, info in graph.inputs.items()
        if any(isinstance(size, str) for size in info.shape)
    }


def _shape(shape: tuple[int | str, ...], batch: int) -> tuple[int, ...]:
    """The only dimension that varies in a masked graph is its batch."""
    return tuple(batch if isinstance(size, str) else size for size in shape)
