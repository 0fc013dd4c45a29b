"""A device with memory and a queue of its own, as a GPU has them, and engines on it.

What the host sees is apart from what kernels and engines see, new memory holds garbage, nothing is
done before it is waited for, and waiting is forbidden while a sequence is captured. Nothing may be
released while work is queued.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.devices import Array, Buffer, BufferSpec, Direct, Part, Workspace
from fewstep.runtime.devices.cpu import CpuDevice, CpuWorkspace
from fewstep.runtime.engines import BoundEngine
from fewstep.runtime.records import TensorInfo

Work = Callable[[], None]


class QueueDevice(CpuDevice):
    """Collects work and does it when it is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._work: list[Work] = []
        self._capturing = False
        self.captured = self.waited = self.open = 0

    @property
    def busy(self) -> bool:
        """Whether work is queued."""
        return bool(self._work)

    def enqueue(self, work: Work) -> None:
        self.require()
        self._work.append(work)

    def workspace(self, specs: Mapping[str, BufferSpec]) -> CpuWorkspace:
        assert not self._capturing, "allocation during capture"
        self.require()
        return _Apart(self, specs)

    def upload(self, buffer: Buffer, values: Array) -> None:
        self.synchronize()
        super().upload(buffer, values)

    def download(self, buffer: Buffer) -> Array:
        self.synchronize()
        return super().download(buffer)

    def launch(self, kernel: str, **arguments: Buffer | int | float | None) -> None:
        run = super().launch
        self.enqueue(lambda: run(kernel, **arguments))

    def copy(self, target: Buffer, source: Buffer) -> None:
        run = super().copy
        self.enqueue(lambda: run(target, source))

    def capture(
        self,
        parts: Sequence[Part],
        *,
        warm_up: int = 1,
        check_capturable: Callable[[], None] = lambda: None,
        workspace: Workspace | None = None,
    ) -> Direct:
        """Run first, then keep what the sequence enqueues; a replay runs no line of it again."""
        for _ in range(warm_up):
            Direct(parts)()
            self.synchronize()
        check_capturable()
        self._capturing = True
        Direct(parts)()
        self._capturing = False
        kept, self._work = self._work, []
        self.captured += 1
        return Direct([Part(lambda: self._work.extend(kept))])

    def synchronize(self) -> None:
        assert not self._capturing, "waiting during capture"
        self.waited += 1
        work, self._work = self._work, []
        for each in work:
            each()


class _Apart(CpuWorkspace):
    """Host arrays apart from the device's, by role."""

    def __init__(self, device: QueueDevice, specs: Mapping[str, BufferSpec]) -> None:
        super().__init__(specs)
        self._device, self._roles = device, {name: spec.role for name, spec in specs.items()}
        self._open = True
        device.open += 1
        self._host = {
            name: np.zeros(spec.shape, spec.dtype)
            for name, spec in specs.items()
            if spec.role != "internal"
        }
        for name in specs:
            self[name].array.view(np.uint8).fill(0xFB)  # NaN in float32, no code in int32

    def write(self, name: str, values: npt.ArrayLike) -> None:
        assert self._roles[name] in ("input", "status"), f"{name} is never sent"
        assert not self._device.busy, "written while work that reads it was queued"
        np.copyto(self._host[name], values)

    def read(self, name: str) -> Array:
        return self._host[name].copy()

    def send(self) -> None:
        self._copy(("input", "status"), to_device=True)

    def fetch(self) -> None:
        self._copy(("output", "status"), to_device=False)

    def close(self) -> None:
        assert not self._device.busy, "released while work was queued"
        self._device.open -= self._open
        self._open = False
        super().close()

    def _copy(self, roles: tuple[str, ...], *, to_device: bool) -> None:
        for name, role in self._roles.items():
            if role in roles:
                ends = self[name].array, self._host[name]
                target, source = ends if to_device else ends[::-1]
                self._device.enqueue(functools.partial(np.copyto, target, source))


class QueuedEngine:
    """An engine whose work is queued on the device.

    ``refusal`` is raised by the next run as it is enqueued.
    """

    warm_up = 1

    def __init__(self, engine: Any, device: QueueDevice, *, capturable: bool = True) -> None:
        self.engine, self._device, self.capturable = engine, device, capturable
        self.refusal: BaseException | None = None

    @property
    def name(self) -> str:
        name: str = self.engine.name
        return name

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        inputs: Mapping[str, TensorInfo] = self.engine.inputs
        return inputs

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        outputs: Mapping[str, TensorInfo] = self.engine.outputs
        return outputs

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        bound: BoundEngine = self.engine.bind(bindings)

        def run() -> None:
            if self.refusal is not None:
                refusal, self.refusal = self.refusal, None
                raise refusal
            self._device.enqueue(bound.run)

        def close() -> None:
            assert not self._device.busy, "unbound while work was queued"
            bound.close()

        return replace(bound, run=run, close=close)

    def close(self) -> None:
        self.engine.close()
