"""A program with memory, ready to run: on a GPU it is captured into one graph, or into several
where it repeats so much that one would be too large.

Engines are bound once for every set of views that they run on: a captured graph keeps addresses,
so what is bound never moves. Nothing is read back before the end.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fewstep.runtime.binder import Binder, Call
from fewstep.runtime.devices import Array, Buffer, Device, Direct, Part, Replay
from fewstep.runtime.engines import Engine
from fewstep.runtime.errors import EngineError
from fewstep.runtime.kept import KeptRows
from fewstep.runtime.program import ERROR, Op, Program, Repeat, stage_of

AfterStep = Callable[[int, Mapping[str, Array]], None]
"""Takes a step that is over, and what the buffers of :meth:`Plan.run` hold by then."""


class Plan:
    """The memory and the captured sequence of one program.

    Args:
        program: what to run.
        device: where.
        engines: by graph name; more than the program needs may be there.
        constants: buffers that the program takes as computed, by name.
        kept: rows that it takes as computed when a request needs them.

    Raises:
        OutOfMemoryError: there is not enough memory; nothing is held.
        EngineError: an engine does not take its buffers, or cannot be captured.
        DeviceError: the sequence cannot be captured.
    """

    def __init__(
        self,
        program: Program,
        device: Device,
        engines: Mapping[str, Engine],
        constants: Mapping[str, Buffer],
        kept: Sequence[KeptRows] = (),
    ) -> None:
        self.program, self._device, self._kept = program, device, kept
        self._used = [engines[name] for name in program.graphs]
        outputs = [name for name, spec in program.buffers.items() if spec.role == "output"]
        self._read = tuple(dict.fromkeys((*outputs, *program.decisions)))
        with contextlib.ExitStack() as stack:
            self.workspace = device.workspace(program.buffers)
            stack.callback(self.workspace.close)
            shared = {name: buffer for each in kept for name, buffer in each.buffers.items()}
            self._binder = Binder(device, engines, self.workspace, {**constants, **shared})
            stack.callback(self._binder.close)
            self._sequence = Direct(
                [
                    Part(self.workspace.send),
                    *_parts(program.ops, device, self._binder),
                    Part(self.workspace.fetch),
                ]
            )
            for name, values in program.initial.items():
                self.workspace.write(name, values)
            specs = {each.of: program.buffers[each.of] for each in kept}
            self._asked = {name: np.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}
            self._segments: list[tuple[int, Replay]] = []
            self.replay = self._captured(self._sequence.parts)
            stack.pop_all()

    @property
    def captured(self) -> bool:
        """Whether the program runs as captured graphs."""
        return not isinstance(self.replay, Direct)

    def run(
        self, inputs: Mapping[str, npt.ArrayLike], after_step: AfterStep | None = None
    ) -> dict[str, Array]:
        """Run the program once.

        Args:
            inputs: by buffer name, broadcast to the buffer's shape; the others keep theirs.
            after_step: called between steps; of what it is given, later steps' rows hold nothing
                yet. Where the program is :attr:`captured`, every step is a graph then.

        Returns:
            Copies of the output buffers and of all decisions, by name.

        Raises:
            EngineError: a graph gave NaN or infinite numbers.
        """
        for name, values in inputs.items():
            self.workspace.write(name, values)
        self._find_kept(inputs)
        self.workspace.write(ERROR, 0)
        try:
            if after_step is None:
                self.replay()
            else:
                self._stepwise(after_step)
        except BaseException:  # half of it may still be running, and reading the inputs
            self._binder.settle()
            raise
        self._device.synchronize()
        if self.workspace.read(ERROR)[0]:
            for each in self._kept:
                each.forget()
            raise EngineError(
                "a graph produced NaN or infinite numbers; see which with: fewstep verify"
            )
        return self._outputs()

    def close(self) -> None:
        """Release graph, bindings and buffers; closing twice is fine."""
        self._binder.settle()
        for _, segment in self._segments:
            segment.close()
        self.replay.close()
        self._binder.close()
        self.workspace.close()

    def _find_kept(self, inputs: Mapping[str, npt.ArrayLike]) -> None:
        """Say which of the kept rows the images have; other plans may have changed them."""
        for each in self._kept:
            asked = self._asked[each.of]
            if each.of in inputs:
                given = np.asarray(inputs[each.of], asked.dtype)
                asked = self._asked[each.of] = np.broadcast_to(given, asked.shape)
            self.workspace.write(each.rows, each.find(asked)[:, None])

    def _captured(self, parts: Sequence[Part]) -> Replay:
        if not all(engine.capturable for engine in self._used):
            return Direct(parts)
        return self._device.capture(
            parts,
            warm_up=max((engine.warm_up for engine in self._used), default=1),
            check_capturable=self._binder.require_capturable,
            workspace=self.workspace,
        )

    def _stepwise(self, after_step: AfterStep) -> None:
        """The same operations in the same order, waited for after every step."""
        if not self._segments:
            self._segments = self._cut()
        for step, segment in self._segments:
            segment()
            self._device.synchronize()
            after_step(step, self._outputs())

    def _cut(self) -> list[tuple[int, Replay]]:
        """The program in a segment for every step, which leaves what is known after it."""
        segments = list[tuple[int, Replay]]()
        with contextlib.ExitStack() as stack:
            for step, ops in itertools.groupby(self.program.ops, lambda op: op.step):
                first = [] if segments else [Part(self.workspace.send)]
                ran = _parts(ops, self._device, self._binder)
                parts = [*first, *ran, Part(self.workspace.fetch)]
                segment: Replay = Direct(parts)
                if self.captured:  # engines have settled; a step alone has nothing to compare with
                    segment = self._device.capture(parts, warm_up=0)
                stack.callback(segment.close)
                segments.append((step, segment))
            stack.pop_all()
        return segments

    def _outputs(self) -> dict[str, Array]:
        return {name: self.workspace.read(name) for name in self._read}


Stages = list[tuple[str, list[Call]]]
"""Calls in their order, neighbours of one stage together."""


def _enqueue(device: Device, stages: Stages) -> None:
    for stage, calls in stages:
        with device.span(stage) if stage else contextlib.nullcontext():
            for call in calls:
                call()


def _parts(ops: Iterable[Op | Repeat], device: Device, binder: Binder) -> Iterator[Part]:
    """Operations as parts: every repetition is one, and what stands between two of them."""
    alone = list[Op]()
    for op in ops:
        if isinstance(op, Repeat):
            if alone:
                yield _part(alone, device, binder)
            yield _part(op.ops, device, binder, op.times)
            alone = []
        else:
            alone.append(op)
    if alone:
        yield _part(alone, device, binder)


def _part(ops: Iterable[Op], device: Device, binder: Binder, times: int = 1) -> Part:
    return Part(functools.partial(_enqueue, device, _by_stage(ops, binder)), times)


def _by_stage(ops: Iterable[Op], binder: Binder) -> Stages:
    """The calls of operations, neighbours of one stage together."""
    stages: Stages = []
    for op in ops:
        stage = stage_of(op)
        if not stages or stages[-1][0] != stage:
            stages.append((stage, []))
        stages[-1][1].append(binder.call(op))
    return stages
