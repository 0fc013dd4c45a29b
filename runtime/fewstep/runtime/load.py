"""How busy other processes keep the CPUs while something is timed."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE = (3, 4)  # columns of /proc/stat: idle, and waiting for input or output
_GUESTS = 8  # user time has what guests take already


class OthersLoad:
    """Watches from its creation on."""

    def __init__(self, stat: Path = _STAT) -> None:
        """Start watching.

        Args:
            stat: the system's file of CPU times, as in proc(5).
        """
        self._stat = stat
        self._start = self._now()

    def share(self) -> float | None:
        """Share of this process's CPUs that others kept busy so far, 0 … 1, if it is known."""
        end = self._now()
        if end is None or self._start is None or end[0] <= self._start[0]:
            return None
        whole, busy, own = (now - then for now, then in zip(end, self._start, strict=True))
        return min(1.0, max(0.0, (busy - own) / whole))

    def _now(self) -> tuple[float, float, float] | None:
        """Seconds of CPU time: in all, busy, and of this process."""
        try:
            lines = self._stat.read_text().splitlines()
            mine = {f"cpu{each}" for each in os.sched_getaffinity(0)}
        except (OSError, AttributeError):  # other systems have neither
            return None
        own = time.process_time()
        rows = [line.split() for line in lines if line.startswith("cpu")]
        ticks = [[int(each) for each in row[1:][:_GUESTS]] for row in rows if row[0] in mine]
        if not ticks:
            return None
        whole = sum(map(sum, ticks))
        busy = whole - sum(cpu[each] for cpu in ticks for each in _IDLE)
        hertz = os.sysconf("SC_CLK_TCK")
        return whole / hertz, busy / hertz, own
