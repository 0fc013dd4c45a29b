"""A device that keeps account of what is open, and a decoder on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fewstep.runtime.devices import BufferSpec, Direct
from fewstep.runtime.devices.cpu import CpuDevice, CpuWorkspace
from fewstep.runtime.errors import OutOfMemoryError
from fewstep.runtime.generator import Generator
from fewstep.runtime.masked import MaskedDecoder
from fewstep.runtime.masked_plan import MaskedPlan
from fewstep.runtime.plan import PlanKey, first_pass_buffers, plan_buffers
from fewstep.runtime.schedule import Schedule

_NO_CLASS = np.array(5, np.int32)


class _Entry(CpuWorkspace):
    """A workspace on the ledger while it is open."""

    def __init__(self, ledger: Ledger, specs: Mapping[str, BufferSpec]) -> None:
        super().__init__(specs)
        self.bytes, self._ledger = _bytes(specs), ledger
        ledger.open.append(self)
        ledger.peak = max(ledger.peak, ledger.used)

    def close(self) -> None:
        if self in self._ledger.open:
            self._ledger.open.remove(self)
        super().close()


class _Replay(Direct):
    """A captured sequence on the ledger while it is open."""

    def __init__(self, ledger: Ledger, sequence: Callable[[], None]) -> None:
        super().__init__(sequence)
        self._ledger = ledger
        ledger.replays.append(self)

    def __call__(self) -> None:
        if self._ledger.late:
            self._ledger.late -= 1
            raise OutOfMemoryError("no room to launch")
        super().__call__()

    def close(self) -> None:
        if self in self._ledger.replays:
            self._ledger.replays.remove(self)


class Ledger(CpuDevice):
    """Counts what is open, has only so much room, and fails to capture when told to."""

    def __init__(self, room: int | None = None) -> None:
        super().__init__()
        self.open: list[_Entry] = []
        self.replays: list[_Replay] = []
        self.room, self.peak, self.asked = room, 0, 0
        self.failure: BaseException | None = None
        self.late = 0  # launches that run out of memory

    @property
    def used(self) -> int:
        return sum(entry.bytes for entry in self.open)

    @property
    def nothing_open(self) -> bool:
        return not self.open and not self.replays

    def workspace(self, specs: Mapping[str, BufferSpec]) -> CpuWorkspace:
        self.asked += 1
        if self.room is not None and self.used + _bytes(specs) > self.room:
            raise OutOfMemoryError(f"no room for {_bytes(specs)} bytes")
        return _Entry(self, specs)

    def capture(self, sequence: Callable[[], None], **_: Any) -> Direct:
        if self.failure is not None:
            raise self.failure
        return _Replay(self, sequence)


def _bytes(specs: Mapping[str, BufferSpec]) -> int:
    return sum(spec.bytes for spec in specs.values())


def plan_key(steps: int, *, guided: bool = False, batch: int = 1) -> PlanKey:
    """The key of a plan without policy."""
    return PlanKey(batch, steps, guided=guided, policy=None)


def open_decoder(generator: Generator, device: CpuDevice, **options: Any) -> MaskedDecoder:
    """A decoder of the tiny bundle, with the generator's engines on another device."""
    model = generator.bundle.manifest.model
    return MaskedDecoder(device, generator.engines, model, _NO_CLASS, **options)


def plan_bytes(generator: Generator, key: PlanKey) -> int:
    """What the buffers of a plan take."""
    return _bytes(plan_buffers(generator.bundle.manifest.model, generator.engines, key))


def first_pass_bytes(generator: Generator) -> int:
    """What the first unconditional logits take."""
    return _bytes(first_pass_buffers(generator.bundle.manifest.model, generator.engines))


def assert_usable(plan: MaskedPlan) -> None:
    """Assert that a plan of the tiny bundle gives tokens of its codebook."""
    batch, steps = plan.key.batch, plan.key.steps
    parameters = Schedule().parameters(steps, 16)
    found = plan.run(np.zeros(batch, np.int32), np.arange(batch, dtype=np.uint64), parameters)
    assert found.sampled.shape == (steps, batch, 16)
    assert ((found.sampled >= 0) & (found.sampled < 24)).all()
