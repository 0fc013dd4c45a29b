"""Rows that are computed once for each value that requests bring, and kept on the device."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fewstep.runtime.binder import Binder
from fewstep.runtime.devices import Array, Buffer, Device
from fewstep.runtime.engines import Engine
from fewstep.runtime.program import Kept, stage_of


class KeptRows:
    """The rows of one :class:`~fewstep.runtime.program.Kept`, least recently used first to go.

    Args:
        kept: what they are, and how they are computed.
        device: where.
        engines: by graph name.

    Raises:
        OutOfMemoryError: there is not enough memory; nothing is held.
    """

    def __init__(self, kept: Kept, device: Device, engines: Mapping[str, Engine]) -> None:
        self._kept, self._device = kept, device
        self._entries: OrderedDict[int, int] = OrderedDict()
        program = kept.program
        with contextlib.ExitStack() as stack:
            self._tables = stack.enter_context(device.workspace(kept.buffers))
            self._workspace = stack.enter_context(device.workspace(program.buffers))
            for name in kept.names:  # a plan is tried before anything is asked of it
                first = self._tables[name][:1]
                device.upload(first, np.zeros(first.shape, first.dtype))
            binder = Binder(device, engines, self._workspace, {})
            stack.callback(binder.close)
            self._calls = [(stage_of(op), binder.call(op)) for op in program.unrolled()]
            self._closing = stack.pop_all()
        for name, values in program.initial.items():
            self._workspace.write(name, values)

    @property
    def buffers(self) -> dict[str, Buffer]:
        """The rows, by the names of their buffers."""
        return {name: self._tables[name] for name in self._kept.names}

    @property
    def of(self) -> str:
        """The input of programs that says what is asked for."""
        return self._kept.of

    @property
    def rows(self) -> str:
        """The input of programs that says which row is whose."""
        return self._kept.rows

    def find(self, values: Array) -> npt.NDArray[np.int32]:
        """Which row every image of a batch has, ``[B]``; those that are not there are computed.

        Args:
            values: what is asked for, ``[B]`` or more, of which the first count.

        Raises:
            EngineError: a graph failed.
        """
        values = values[: self._kept.program.buffers[self.of].shape[0]]
        asked = values.tolist()
        for value in asked:
            if value in self._entries:
                self._entries.move_to_end(value)
        if missing := [value for value in dict.fromkeys(asked) if value not in self._entries]:
            self._compute(values)
            for value in missing:
                self._keep(value, asked.index(value))
            self._device.synchronize()
        return np.array([self._entries[value] for value in asked], np.int32)

    def forget(self) -> None:
        """Compute all rows again: numbers that are unusable may be among them."""
        self._entries.clear()

    def close(self) -> None:
        """Release the rows; closing twice is fine."""
        self._closing.close()

    def _compute(self, values: Array) -> None:
        """Rows of the whole batch, which takes as long as those of its missing ones."""
        self._workspace.write(self.of, values)
        self._workspace.send()
        for stage, call in self._calls:
            with self._device.span(stage):
                call()

    def _keep(self, value: int, row: int) -> None:
        """Put a computed row where no row is, or where the least recently used one is."""
        entry = len(self._entries)
        if entry == self._kept.entries:
            _, entry = self._entries.popitem(last=False)
        for name in self._kept.names:
            target = self._tables[name][entry : entry + 1]
            self._device.copy(target, self._workspace[name][row : row + 1])
        self._entries[value] = entry
