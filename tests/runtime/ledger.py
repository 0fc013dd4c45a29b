"""A device that keeps account of what is open, has only so much room, and fails when told to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fewstep.runtime.devices import BufferSpec, Direct, Part
from fewstep.runtime.devices.cpu import CpuDevice, CpuWorkspace
from fewstep.runtime.errors import OutOfMemoryError


class Entry(CpuWorkspace):
    """A workspace on the ledger while it is open."""

    def __init__(self, ledger: Ledger, specs: Mapping[str, BufferSpec]) -> None:
        super().__init__(specs)
        self.names, self.bytes, self._ledger = set(specs), bytes_of(specs), ledger
        ledger.open.append(self)
        ledger.peak = max(ledger.peak, ledger.used)

    def close(self) -> None:
        if self in self._ledger.open:
            self._ledger.open.remove(self)
        super().close()


class _Replay(Direct):
    """A captured sequence on the ledger while it is open."""

    def __init__(self, ledger: Ledger, parts: Sequence[Part]) -> None:
        super().__init__(parts)
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
        self.open: list[Entry] = []
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
        if self.room is not None and self.used + bytes_of(specs) > self.room:
            raise OutOfMemoryError(f"no room for {bytes_of(specs)} bytes")
        return Entry(self, specs)

    def capture(self, parts: Sequence[Part], **_: Any) -> Direct:
        if self.failure is not None:
            raise self.failure
        return _Replay(self, parts)


def bytes_of(specs: Mapping[str, BufferSpec]) -> int:
    """What buffers take together."""
    return sum(spec.bytes for spec in specs.values())
