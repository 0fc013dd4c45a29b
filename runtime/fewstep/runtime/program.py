"""A decode as data: named buffers, and a list of operations on views of them.

A family makes the program (:mod:`fewstep.runtime.families`); a plan gives it memory and runs it
(:mod:`fewstep.runtime.plan`), on a GPU as one captured graph; ``observe`` walks it operation by
operation; profiles, estimates and tables read it. None of them knows what is decoded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fewstep.runtime.devices import ALIGNMENT, Array, Buffer, BufferSpec

ERROR = "error"
"""The status buffer that kernels flag unusable numbers in, ``[1]`` int32."""

PIXELS = "pixels"
"""The output buffer with the images, ``[B, H, W, 3]`` uint8."""


@dataclass(frozen=True)
class View:
    """Part of a named buffer: one of its rows, seen in a shape, and of that some rows.

    ``index``: along the first dimension. ``shape``: of as many elements as it has, from the start
    of the row (or buffer). ``rows``: first and last + 1 along the first dimension of what is left.
    """

    buffer: str
    index: int | None = None
    shape: tuple[int, ...] | None = None
    rows: tuple[int, int] | None = None

    def __getitem__(self, at: int | slice) -> View:
        """A row of the buffer, or rows of what this view is of."""
        if isinstance(at, int):
            if (self.index, self.shape, self.rows) != (None, None, None):
                raise ValueError(f"{self} is a part already: it has no row of its own")
            return View(self.buffer, index=at)
        if self.rows is not None or at.step is not None or at.stop is None:
            raise ValueError(f"{self} cannot be cut to {at}")
        return View(self.buffer, self.index, self.shape, (at.start or 0, at.stop))

    def reshaped(self, *shape: int) -> View:
        """The first elements of a row in another shape."""
        return View(self.buffer, self.index, shape)

    def of(self, buffer: Buffer) -> Buffer:
        """The part of the buffer itself."""
        if self.index is not None:
            buffer = buffer[self.index]
        if self.shape is not None:
            buffer = buffer.view(self.shape)
        return buffer if self.rows is None else buffer[slice(*self.rows)]

    def shape_in(self, buffers: Mapping[str, BufferSpec]) -> tuple[int, ...]:
        """Its shape, known without memory."""
        shape = buffers[self.buffer].shape
        shape = shape if self.index is None else shape[1:]
        shape = shape if self.shape is None else self.shape
        return shape if self.rows is None else (self.rows[1] - self.rows[0], *shape[1:])

    def bytes_in(self, buffers: Mapping[str, BufferSpec]) -> int:
        """Its size."""
        spec = buffers[self.buffer]
        return math.prod(self.shape_in(buffers)) * spec.itemsize

    def offset_in(self, buffers: Mapping[str, BufferSpec]) -> int:
        """Bytes from the start of the buffer to its own, on a GPU."""
        spec = buffers[self.buffer]
        start = 0 if self.index is None else self.index * spec.row_stride
        if self.rows is None:
            return start
        if self.index is None and self.shape is None:
            return self.rows[0] * spec.row_stride
        return start + self.rows[0] * math.prod(self.shape_in(buffers)[1:]) * spec.itemsize

    def wrong_in(self, buffers: Mapping[str, BufferSpec]) -> str:
        """Why it is no contiguous part of these buffers; empty if it is."""
        spec = buffers.get(self.buffer)
        if spec is None:
            return "there is no such buffer"
        whole = spec.shape
        if self.index is not None:
            if not whole or not 0 <= self.index < whole[0]:
                return f"the buffer has the shape {whole}"
            whole = whole[1:]
        seen = whole if self.shape is None else self.shape
        if math.prod(seen) > math.prod(whole):
            return f"there are only {math.prod(whole)} elements"
        first, end = self.rows or (0, seen[0] if seen else 1)
        if not 0 <= first <= end <= (seen[0] if seen else 1):
            return f"there are only the rows of {seen}"
        if self.index is None and spec.padded and (self.shape is not None or end - first > 1):
            return "padding lies between the rows of the buffer"
        return ""


@dataclass(frozen=True)
class Run:
    """Run a graph on views, by the names of its inputs and outputs.

    ``step``: of the decode. ``stage``: what its time counts for; the graph's name if empty.
    """

    graph: str
    bindings: Mapping[str, View]
    step: int = 0
    stage: str = ""


@dataclass(frozen=True)
class Launch:
    """Run a kernel of :mod:`fewstep.runtime.kernels` by name.

    ``writes``: the arguments that it writes. ``skips``: those that it may leave unread in part,
    so that nothing is certain about the bytes it moves. An empty ``stage`` counts for nothing.
    """

    kernel: str
    arguments: Mapping[str, View | int | float]
    writes: tuple[str, ...]
    step: int = 0
    stage: str = ""
    skips: tuple[str, ...] = ()

    @property
    def views(self) -> dict[str, View]:
        """The arguments in memory."""
        return {name: arg for name, arg in self.arguments.items() if isinstance(arg, View)}


@dataclass(frozen=True)
class Copy:
    """Copy one contiguous view to another of the same shape and type."""

    target: View
    source: View
    step: int = 0
    stage: str = ""


Op = Run | Launch | Copy


@dataclass(frozen=True)
class Repeat:
    """Operations that run one after the other, all of them ``times`` times.

    They are the same every time: what differs they read from memory, at a counter that the last of
    them advances. So what runs thousands of times is bound and captured once.
    """

    times: int
    ops: tuple[Op, ...]
    step: int = 0


@dataclass(frozen=True, eq=False)
class Kept:
    """Rows that are computed when they are first asked for, and kept for all programs.

    ``program`` computes them for a batch, from its input ``of``, whose rows say what is asked for:
    a class, say. ``names``: its buffers ``[B, …]`` whose rows are kept, in buffers of the same
    names that have ``entries`` rows, B at least; the least recently used go first. ``rows``: the
    input of the program that reads them which says for every image, over and over along its other
    dimensions, which row it has.
    """

    program: Program
    of: str
    names: tuple[str, ...]
    rows: str
    entries: int

    @property
    def buffers(self) -> dict[str, BufferSpec]:
        """What holds the rows."""
        own = {name: self.program.buffers[name] for name in self.names}
        return {
            name: replace(spec, shape=(self.entries, *spec.shape[1:]), role="internal")
            for name, spec in own.items()
        }


@dataclass(frozen=True, eq=False)
class Program:
    """Buffers and operations that make a batch of images.

    ``ops`` run in their order; each may read what those before it wrote. ``decisions``: buffers
    with a row a step of what was decided, which a replay can force. ``initial``: what input
    buffers start with, for those that never change, and so that a plan can be tried before
    anything is asked of it; other inputs start as zeros. ``constants``: by the name of a buffer
    that views may be of, the program that fills it; it is computed once for all programs that
    have a constant of this name. ``kept``: by a name that all programs share, rows that are
    computed once for each of the values that requests bring.
    """

    buffers: Mapping[str, BufferSpec]
    ops: tuple[Op | Repeat, ...]
    decisions: tuple[str, ...] = ()
    initial: Mapping[str, npt.ArrayLike] = field(default_factory=dict)
    constants: Mapping[str, Program] = field(default_factory=dict)
    kept: Mapping[str, Kept] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse views that no device could give, and those where no engine may read or write."""
        known = self.every_buffer
        for op in self.different():
            for view in views_of(op):
                wrong = view.wrong_in(known)
                if not wrong and view.buffer in self.decisions and view.index is None:
                    wrong = "what is decided is read and written a step at a time, by its index"
                if not wrong and isinstance(op, Run) and view.offset_in(known) % ALIGNMENT:
                    wrong = f"it does not start at a multiple of {ALIGNMENT} bytes"
                if wrong:
                    raise ValueError(f"{op} is on {view}: {wrong}")

    @property
    def shared(self) -> dict[str, BufferSpec]:
        """What programs have in common: constants, and rows that are kept."""
        found = {name: each.buffers[name] for name, each in self.constants.items()}
        for each in self.kept.values():
            found |= each.buffers
        return found

    @property
    def every_buffer(self) -> dict[str, BufferSpec]:
        """All that views may be of."""
        return {**self.buffers, **self.shared}

    @property
    def every_program(self) -> tuple[Program, ...]:
        """Those that compute what is shared, and itself."""
        return *self.constants.values(), *(each.program for each in self.kept.values()), self

    @property
    def bytes(self) -> int:
        """Memory of its own buffers; what is shared and activations inside engines come on top."""
        return sum(spec.bytes for spec in self.buffers.values())

    @property
    def graphs(self) -> tuple[str, ...]:
        """Graphs that it needs, in the order of their first run."""
        ops = (op for each in self.every_program for op in each.different())
        return tuple(dict.fromkeys(op.graph for op in ops if isinstance(op, Run)))

    @property
    def engine_stages(self) -> frozenset[str]:
        """Stages that graphs run in."""
        return frozenset(stage_of(op) for op in self.different() if isinstance(op, Run))

    def different(self) -> Iterator[Op]:
        """Every operation once, those that are repeated too."""
        for op in self.ops:
            yield from op.ops if isinstance(op, Repeat) else (op,)

    def unrolled(self) -> Iterator[Op]:
        """Every operation as often as it runs."""
        for op in self.ops:
            if isinstance(op, Repeat):
                yield from itertools.chain.from_iterable(itertools.repeat(op.ops, op.times))
            else:
                yield op

    def upstream(self, graph: str, outputs: Mapping[str, Collection[str]]) -> Program:
        """The operations that runs of a graph depend on, where all decisions are given.

        Args:
            graph: name of the graph.
            outputs: names of the outputs of every graph.
        """
        needed: set[str] = set()
        kept: list[Op | Repeat] = []
        for op in reversed(self.ops):
            each = op.ops if isinstance(op, Repeat) else (op,)
            written = {view.buffer for one in each for view in _written_by(one, outputs)}
            runs = any(isinstance(one, Run) and one.graph == graph for one in each)
            if runs or (written - set(self.decisions)) & needed:
                kept.append(op)
                needed |= {view.buffer for one in each for view in views_of(one)}
        return replace(self, ops=tuple(reversed(kept)))

    def runs(self) -> Iterator[tuple[Run, dict[str, tuple[int, ...]]]]:
        """Every run of a graph, with the shapes of its inputs and outputs by name."""
        known = self.every_buffer
        for op in self.unrolled():
            if isinstance(op, Run):
                yield op, {name: view.shape_in(known) for name, view in op.bindings.items()}


def stage_of(op: Op) -> str:
    """What the time of an operation counts for; empty if for nothing."""
    return op.stage or (op.graph if isinstance(op, Run) else "")


def views_of(op: Op) -> tuple[View, ...]:
    """All views that an operation reads or writes."""
    if isinstance(op, Run):
        return tuple(op.bindings.values())
    if isinstance(op, Launch):
        return tuple(op.views.values())
    return op.target, op.source


def _written_by(op: Op, outputs: Mapping[str, Collection[str]]) -> tuple[View, ...]:
    if isinstance(op, Run):
        return tuple(op.bindings[name] for name in outputs[op.graph])
    return tuple(op.views[name] for name in op.writes) if isinstance(op, Launch) else (op.target,)


def packed(rows: Sequence[Array]) -> Array:
    """A table ``[rows, width]``, a row for every array, read in order and followed by zeros.

    Rows start at multiples of :data:`~fewstep.runtime.devices.ALIGNMENT` bytes, so that each may
    begin a tensor of an engine.
    """
    unit = ALIGNMENT // rows[0].itemsize
    width = -(-max(row.size for row in rows) // unit) * unit
    found = np.zeros((len(rows), width), rows[0].dtype)
    for row, values in zip(found, rows, strict=True):
        row[: values.size] = values.ravel()
    return found
