"""Operations with memory: what enqueues them, and the bindings of engines that this takes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Mapping

from fewstep.runtime.devices import Buffer, Device, Workspace
from fewstep.runtime.engines import BoundEngine, Engine
from fewstep.runtime.errors import FewstepError
from fewstep.runtime.program import Copy, Op, Run, View

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
