"""A program with memory, ready to run: on a GPU it is captured into one graph, or into several
where it repeats so much that one would be too large.

Engines are bound once for every set of views that they run on: a captured graph keeps addresses,
so what is bound never moves. Nothing is read back before the end.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

import numpy.typing as npt

from fewstep.runtime.devices import Array, Buffer, Device, Direct, Part, Replay, Workspace
from fewstep.runtime.engines import BoundEngine, Engine
from fewstep.runtime.errors import EngineError, FewstepError
from fewstep.runtime.program import ERROR, Copy, Op, Program, Repeat, Run, View, stage_of

Call = Callable[[], None]
AfterStep = Callable[[int, Mapping[str, Array]], None]
"""Takes a step that is over, and what the buffers of :meth:`Plan.run` hold by then."""


class Binder:
    """Turns operations into calls on one workspace, and owns the bindings of engines.

    Args:
        device: that the calls enqueue on.
        engines: by graph name.
        workspace: the buffers.
        constants: further buffers, by name.
    """

    def __init__(
        self,
        device: Device,
        engines: Mapping[str, Engine],
        workspace: Workspace,
        constants: Mapping[str, Buffer],
    ) -> None:
        self._device, self._engines = device, engines
        self._workspace, self._constants = workspace, constants
        self._bound: dict[Hashable, BoundEngine] = {}

    def buffer(self, view: View) -> Buffer:
        """The memory of a view."""
        constant = self._constants.get(view.buffer)
        return view.of(self._workspace[view.buffer] if constant is None else constant)

    def call(self, op: Op) -> Call:
        """What enqueues an operation; making it costs as much as calling it, so make it once."""
        if isinstance(op, Run):
            return functools.partial(self._device.run, self._engine(op))
        if isinstance(op, Copy):
            target, source = self.buffer(op.target), self.buffer(op.source)
            return functools.partial(self._device.copy, target, source)
        arguments = {
            name: self.buffer(value) if isinstance(value, View) else value
            for name, value in op.arguments.items()
        }
        return functools.partial(self._device.launch, op.kernel, **arguments)

    def require_capturable(self) -> None:
        """Raise ``EngineError`` unless the work of every bound engine can be captured now."""
        for bound in self._bound.values():
            bound.require_capturable()

    def settle(self) -> None:
        """Wait for what an interrupted run left on the device: it may need what is released."""
        with contextlib.suppress(FewstepError):
            self._device.synchronize()

    def close(self) -> None:
        """Release the bindings, once what was enqueued on them is over; closing twice is fine."""
        self.settle()
        while self._bound:
            self._bound.popitem()[1].close()

    def _engine(self, op: Run) -> BoundEngine:
        key = op.graph, tuple(op.bindings.items())
        if key not in self._bound:
            buffers = {name: self.buffer(view) for name, view in op.bindings.items()}
            self._bound[key] = self._engines[op.graph].bind(buffers)
        return self._bound[key]


class Plan:
    """The memory and the captured sequence of one program.

    Args:
        program: what to run.
        device: where.
        engines: by graph name; more than the program needs may be there.
        constants: buffers that the program takes as computed, by name.

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
    ) -> None:
        self.program, self._device = program, device
        self._used = [engines[name] for name in program.graphs]
        outputs = [name for name, spec in program.buffers.items() if spec.role == "output"]
        self._read = tuple(dict.fromkeys((*outputs, *program.decisions)))
        with contextlib.ExitStack() as stack:
            self.workspace = device.workspace(program.buffers)
            stack.callback(self.workspace.close)
            self._binder = Binder(device, engines, self.workspace, constants)
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
            self.replay = self._captured()
            stack.pop_all()

    @property
    def captured(self) -> bool:
        """Whether the program runs as captured graphs, which stop for nothing."""
        return not isinstance(self.replay, Direct)

    def run(
        self, inputs: Mapping[str, npt.ArrayLike], after_step: AfterStep | None = None
    ) -> dict[str, Array]:
        """Run the program once.

        Args:
            inputs: by buffer name, broadcast to the buffer's shape; the others keep theirs.
            after_step: called between steps, unless the program is :attr:`captured`; of what it is
                given, later steps' rows hold nothing yet.

        Returns:
            Copies of the output buffers and of all decisions, by name.

        Raises:
            EngineError: a graph gave NaN or infinite numbers.
        """
        for name, values in inputs.items():
            self.workspace.write(name, values)
        self.workspace.write(ERROR, 0)
        try:
            if after_step is None or self.captured:
                self.replay()
            else:
                self._stepwise(after_step)
        except BaseException:  # half of it may still be running, and reading the inputs
            self._binder.settle()
            raise
        self._device.synchronize()
        if self.workspace.read(ERROR)[0]:
            raise EngineError(
                "a graph produced NaN or infinite numbers; see which with: fewstep verify"
            )
        return self._outputs()

    def close(self) -> None:
        """Release graph, bindings and buffers; closing twice is fine."""
        self._binder.settle()
        self.replay.close()
        self._binder.close()
        self.workspace.close()

    def _captured(self) -> Replay:
        if not all(engine.capturable for engine in self._used):
            return self._sequence
        return self._device.capture(
            self._sequence.parts,
            warm_up=max((engine.warm_up for engine in self._used), default=1),
            check_capturable=self._binder.require_capturable,
            workspace=self.workspace,
        )

    def _stepwise(self, after_step: AfterStep) -> None:
        """The same operations in the same order, waited for after every step."""
        self.workspace.send()
        for step, ops in itertools.groupby(self.program.ops, lambda op: op.step):
            for part in _parts(ops, self._device, self._binder):
                part()
            self.workspace.fetch()
            self._device.synchronize()
            after_step(step, self._outputs())

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
