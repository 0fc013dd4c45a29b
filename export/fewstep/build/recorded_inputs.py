"""Inputs that a graph had in the golden rollouts: what its layers are compared on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.engines.select import open_engine
from fewstep.runtime.families import family_of, model_of
from fewstep.runtime.generator import Generator
from fewstep.runtime.records import GraphInfo, TensorInfo
from fewstep.runtime.verify import recordings, replay


@dataclass(frozen=True)
class Place:
    """Where one row of recorded inputs comes from."""

    rollout: str
    step: int
    image: int


@dataclass(frozen=True)
class RecordedInputs:
    """Inputs of runs of a graph that differ in their rows alone, all rows together."""

    inputs: dict[str, Array]
    places: tuple[Place, ...]


def recorded_inputs(bundle: Bundle, graph: str, reference: Bundle) -> list[RecordedInputs]:
    """Inputs of a graph at every step of every golden rollout.

    What other graphs give it comes from the reference's, so that a fault of theirs is not taken
    for one of this graph.
    """
    info, found = bundle.graph(graph), dict[object, list[tuple[dict[str, Array], list[Place]]]]()
    with engines_before(reference, graph) as generator:
        for recording in recordings(bundle).values():
            images = range(len(recording.seeds))
            for each in replay(generator, recording, graph):
                inputs = dict(each.call.inputs)
                sizes = (
                    value.shape[axis]
                    for name, value in inputs.items()
                    if (axis := row_axis(info.inputs[name])) is not None
                )
                rows = next(sizes, 1)
                own = images[each.images]
                places = [
                    Place(recording.name, each.call.step, own[row % len(own)])
                    for row in range(rows)
                ]
                found.setdefault(_but_rows(inputs, info), []).append((inputs, places))
    return [_together(runs, info) for runs in found.values()]


def _together(
    runs: Sequence[tuple[dict[str, Array], list[Place]]], info: GraphInfo
) -> RecordedInputs:
    """Runs whose inputs have the same shape but for their rows, as one."""
    inputs = {}
    for name, tensor in info.inputs.items():
        values, axis = [each[name] for each, _ in runs], row_axis(tensor)
        inputs[name] = values[0] if axis is None else np.concatenate(values, axis)
    return RecordedInputs(inputs, tuple(place for _, places in runs for place in places))


def _but_rows(inputs: Mapping[str, Array], info: GraphInfo) -> tuple[object, ...]:
    """What has to be equal in runs that are put together: all but the rows of what has rows."""
    found: list[object] = []
    for name, value in inputs.items():
        rows = row_axis(info.inputs[name])
        found.append(tuple(size for axis, size in enumerate(value.shape) if axis != rows))
        if rows is None:
            found.append(value.tobytes())
    return tuple(found)


def row_axis(tensor: TensorInfo) -> int | None:
    """Along which a tensor has rows for images, if along any."""
    return tensor.shape.index("batch") if "batch" in tensor.shape else None


@contextlib.contextmanager
def engines_before(bundle: Bundle, graph: str) -> Iterator[Generator]:
    """A generator with the fp32 engines of a graph, and of those that its inputs depend on."""
    model, family = model_of(bundle), family_of(bundle.manifest.model.kind)
    programs = [family.program(model, key) for key in family.corners(model, 1)]
    names = {name for each in programs for name in each.upstream(graph, model.outputs).graphs}
    device = CpuDevice()
    engines = {name: open_engine(bundle, name, device, 0, "fp32") for name in names}
    with Generator(bundle, device, engines) as generator:
        yield generator


def one_row(value: Array, axis: int | None, row: int) -> Array:
    """One row, all along the other axes; everything where there are no rows."""
    return value if axis is None else np.take(value, [row], axis)
