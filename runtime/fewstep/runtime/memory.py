"""Which plans are kept, what they share, and what happens when memory runs out.

Plans are kept by the key of their program, and the least recently used go first: when there are
too many, when they take too much together, and when the device has no memory for the next.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping

import numpy.typing as npt

from fewstep.runtime.binder import Binder
from fewstep.runtime.devices import Array, Buffer, Device, Workspace
from fewstep.runtime.engines import Engine
from fewstep.runtime.errors import OutOfMemoryError
from fewstep.runtime.kept import KeptRows
from fewstep.runtime.plan import AfterStep, Plan
from fewstep.runtime.program import Kept, Program

MAX_PLANS = 8
MAX_PLAN_BYTES = 1 << 30


class Plans:
    """The plans of one generator.

    Args:
        device: where buffers and kernels live.
        engines: by graph name.
        make: the program for a key.
        max_plan_bytes: memory that plans may keep together. One plan alone may need more.
    """

    def __init__(
        self,
        device: Device,
        engines: Mapping[str, Engine],
        make: Callable[[Hashable], Program],
        *,
        max_plan_bytes: int = MAX_PLAN_BYTES,
    ) -> None:
        self._device, self._engines, self._make = device, engines, make
        self._max_plan_bytes = max_plan_bytes
        self._plans: OrderedDict[Hashable, Plan] = OrderedDict()
        self._constants: dict[str, Workspace] = {}
        self._kept: dict[str, KeptRows] = {}

    def get(self, key: Hashable) -> Plan:
        """The plan for a key, kept for reuse.

        Raises:
            OutOfMemoryError: not even alone does it fit; the plans made before are gone.
        """
        if key not in self._plans:
            program = self._make(key)
            self._make_room(program.bytes)
            try:
                self._plans[key] = self._planned(program)
            except OutOfMemoryError:
                if not self._plans:
                    raise
                self._drop(keep=0)
                self._plans[key] = self._planned(program)
        self._plans.move_to_end(key)
        return self._plans[key]

    def run(
        self,
        key: Hashable,
        inputs: Mapping[str, npt.ArrayLike],
        after_step: AfterStep | None = None,
    ) -> dict[str, Array]:
        """Run the plan for a key once; arguments and result as of :meth:`Plan.run`.

        Raises:
            OutOfMemoryError: not even alone does the plan fit; the plans made before are gone.
            EngineError: a graph gave NaN or infinite numbers.
        """
        try:
            return self.get(key).run(inputs, after_step)
        except OutOfMemoryError:  # of the launch: a driver may allocate as late as that
            if self._plans.keys() <= {key}:
                raise
            self._drop(keep=0)
            return self.get(key).run(inputs, after_step)

    def close(self) -> None:
        """Release every plan and what they share; closing twice is fine."""
        self._drop(keep=0)
        while self._constants:
            self._constants.popitem()[1].close()

    def _planned(self, program: Program) -> Plan:
        constants = {name: self._constant(name, each) for name, each in program.constants.items()}
        kept = [self._kept_rows(name, each) for name, each in program.kept.items()]
        return Plan(program, self._device, self._engines, constants, kept)

    def _kept_rows(self, name: str, kept: Kept) -> KeptRows:
        if name not in self._kept:
            self._kept[name] = KeptRows(kept, self._device, self._engines)
        return self._kept[name]

    def _constant(self, name: str, program: Program) -> Buffer:
        """The buffer ``name`` of a program that is run once; its other buffers go."""
        if name not in self._constants:
            others = {key: spec for key, spec in program.buffers.items() if key != name}
            with contextlib.ExitStack() as stack:
                kept = self._device.workspace({name: program.buffers[name]})
                stack.callback(kept.close)
                with self._device.workspace(others) as workspace:
                    self._run_once(program, workspace, {name: kept[name]})
                self._constants[name] = kept
                stack.pop_all()
        return self._constants[name][name]

    def _run_once(self, program: Program, workspace: Workspace, kept: Mapping[str, Buffer]) -> None:
        for name, values in program.initial.items():
            workspace.write(name, values)
        workspace.send()
        binder = Binder(self._device, self._engines, workspace, kept)
        with contextlib.closing(binder):
            for op in program.unrolled():
                binder.call(op)()
            self._device.synchronize()

    def _make_room(self, needed: int) -> None:
        while self._plans and (
            len(self._plans) >= MAX_PLANS
            or needed + sum(plan.program.bytes for plan in self._plans.values())
            > self._max_plan_bytes
        ):
            self._drop(keep=len(self._plans) - 1)

    def _drop(self, keep: int) -> None:
        while len(self._plans) > keep:
            self._plans.popitem(last=False)[1].close()
        while self._kept and not self._plans:  # rows may take much, and no plan reads them
            self._kept.popitem()[1].close()
