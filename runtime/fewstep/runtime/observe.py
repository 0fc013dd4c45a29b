"""Walking a program: every run of a graph with its inputs and outputs on the host.

Decisions may be forced to recorded ones, so that a run is judged by itself and one wrong token
cannot hide behind another. Verification, ranges, layers and calibration data come from here.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.runtime.binder import Binder
from fewstep.runtime.devices import Array, Device
from fewstep.runtime.engines import Engine
from fewstep.runtime.program import Launch, Op, Program, Run, View


@dataclass(frozen=True)
class Call:
    """One run of a graph: arrays by the names of its inputs and outputs."""

    graph: str
    step: int
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


def observe(
    program: Program,
    device: Device,
    engines: Mapping[str, Engine],
    inputs: Mapping[str, npt.ArrayLike],
    forced: Mapping[str, Array] | None = None,
) -> Iterator[Call]:
    """Run a program operation by operation.

    Args:
        program: without anything that is shared.
        device: where to run it; nothing is captured.
        engines: by graph name.
        inputs: by buffer name, broadcast to the buffer's shape.
        forced: of the program's ``decisions``, by buffer name, what operations read in the place
            of what the program decides: ``[steps, images, …]``, a row a step. A row that is longer
            than their view of it is cut, and images are repeated where the view has more rows.

    Raises:
        EngineError: a graph cannot be run.
        OutOfMemoryError: there is not enough memory.
    """
    if program.shared:
        raise ValueError("a program that is observed computes everything itself")
    wanted = {name: rows for name, rows in (forced or {}).items() if name in program.decisions}
    with contextlib.ExitStack() as stack:
        workspace = stack.enter_context(device.workspace(program.buffers))
        binder = stack.enter_context(contextlib.closing(Binder(device, engines, workspace, {})))
        for name, values in {**program.initial, **inputs}.items():
            workspace.write(name, values)
        workspace.send()
        for op in program.unrolled():
            for view in _read_by(op, engines):
                if view.buffer in wanted and view.index is not None:  # a decision's always has one
                    target, row = binder.buffer(view), wanted[view.buffer][view.index]
                    device.upload(target, _fitted(row, target.shape).astype(target.dtype))
            binder.call(op)()
            if isinstance(op, Run):
                graph, bound = engines[op.graph], op.bindings
                read, written = (
                    {name: device.download(binder.buffer(bound[name])) for name in names}
                    for names in (graph.inputs, graph.outputs)
                )
                yield Call(op.graph, op.step, read, written)


def _read_by(op: Op, engines: Mapping[str, Engine]) -> tuple[View, ...]:
    if isinstance(op, Run):
        return tuple(op.bindings[name] for name in engines[op.graph].inputs)
    if isinstance(op, Launch):
        return tuple(view for name, view in op.views.items() if name not in op.writes)
    return (op.source,)


def _fitted(row: Array, shape: tuple[int, ...]) -> Array:
    """A recorded row ``[images, …]`` as a view of this shape wants it.

    A view with as many dimensions has a part of each; another one folds the first numbers of every
    image, such as tokens into a map.
    """
    if row.ndim != len(shape):
        row = row.reshape(len(row), -1)[:, : math.prod(shape[1:])].reshape(-1, *shape[1:])
    cut = row[(slice(None), *(slice(size) for size in shape[1:]))]
    return np.resize(cut, shape)
