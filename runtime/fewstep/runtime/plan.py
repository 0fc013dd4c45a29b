"""A program with memory, ready to run: on a GPU it is captured into one graph.

Engines are bound once for every set of views that they run on: a captured graph keeps addresses,
so what is bound never moves. Nothing is read back before the end.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Mapping

import numpy.typing as npt

from fewstep.runtime.devices import Array, Buffer, Device, Direct, Replay, Workspace
from fewstep.runtime.engines import BoundEngine, Engine
from fewstep.runtime.errors import EngineError, FewstepError
from fewstep.runtime.program import ERROR, Copy, Op, Program, Run, View, stage_of

Call = Callable[[], None]


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
            self._stages = _by_stage(program, self._binder)
            for name, values in program.initial.items():
                self.workspace.write(name, values)
            self.replay = self._captured()
            stack.pop_all()

    def run(self, inputs: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
        """Run the program once.

        Args:
            inputs: by buffer name, broadcast to the buffer's shape; the others keep theirs.

        Returns:
            Copies of the output buffers and of all decisions, by name.

        Raises:
            EngineError: a graph gave NaN or infinite numbers.
        """
        for name, values in inputs.items():
            self.workspace.write(name, values)
        self.workspace.write(ERROR, 0)
        try:
            self.replay()
        except BaseException:  # half of it may still be running, and reading the inputs
            self._binder.settle()
            raise
        self._device.synchronize()
        if self.workspace.read(ERROR)[0]:
            raise EngineError(
                "a graph produced NaN or infinite numbers; see which with: fewstep verify"
            )
        return {name: self.workspace.read(name) for name in self._read}

    def close(self) -> None:
        """Release graph, bindings and buffers; closing twice is fine."""
        self._binder.settle()
        self.replay.close()
        self._binder.close()
        self.workspace.close()

    def _captured(self) -> Replay:
        if not all(engine.capturable for engine in self._used):
            return Direct(self._sequence)
        return self._device.capture(
            self._sequence,
            warm_up=max((engine.warm_up for engine in self._used), default=1),
            check_capturable=self._binder.require_capturable,
            workspace=self.workspace,
        )

    def _sequence(self) -> None:
        self.workspace.send()
        for stage, calls in self._stages:
            if stage:
                with self._device.span(stage):
                    for call in calls:
                        call()
            else:
                for call in calls:
                    call()
        self.workspace.fetch()


def _by_stage(program: Program, binder: Binder) -> list[tuple[str, list[Call]]]:
    """The calls of all operations in order, neighbours of one stage together."""
    stages: list[tuple[str, list[Call]]] = []
    for op in program.ops:
        stage = stage_of(op)
        if not stages or stages[-1][0] != stage:
            stages.append((stage, []))
        stages[-1][1].append(binder.call(op))
    return stages
