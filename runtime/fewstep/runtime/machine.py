"""How many cores this process may use, and how many threads it may start.

The least of: the cores that the scheduler gives it (``taskset``, ``docker --cpuset-cpus``), the CPU
time that its control groups have (``docker --cpus``, Kubernetes limits, systemd's ``CPUQuota``) and
``OMP_NUM_THREADS``, by which users of BLAS, PyTorch and OpenMP say the same.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from fewstep.runtime.errors import RequestError

MOST_THREADS = 1024

_OMP = "OMP_NUM_THREADS"
_CPU_QUOTA_V2 = "cpu.max"
_CPU_QUOTA_V1, _CPU_PERIOD_V1 = "cpu.cfs_quota_us", "cpu.cfs_period_us"


def cores(root: Path = Path("/")) -> int:
    """Threads that can run at the same time; at least 1.

    Args:
        root: where the system's own files are read.
    """
    asked = os.environ.get(_OMP, "").partition(",")[0].strip()
    limits = (affinity(), cpu_quota(root), int(asked) if asked.isdecimal() else None)
    return max(1, min(limit for limit in limits if limit))


def affinity() -> int:
    """Cores that this process may be scheduled on."""
    every = os.cpu_count() or 1
    try:
        return min(every, len(os.sched_getaffinity(0)))
    except (AttributeError, OSError):  # macOS and Windows have no such call
        return every


def cpu_quota(root: Path = Path("/")) -> int | None:
    """Cores' worth of CPU time that control groups allow, rounded up; ``None`` without a limit.

    A group is limited by every group around it. Where a container sees its own group as the root,
    the path in ``/proc`` may be the host's, so whatever part of it is there is looked at.

    Args:
        root: where the system's own files are read.
    """
    found = [quota for group in _groups(root) if (quota := _quota(group)) is not None]
    return max(1, math.ceil(min(found))) if found else None


def require_threads(threads: int) -> None:
    """Raise ``RequestError`` unless it is a number of threads, or 0 for as many as cores."""
    if not 0 <= threads <= MOST_THREADS:
        raise RequestError(
            f"threads must be 0 (as many as there are cores) to {MOST_THREADS}, got {threads}"
        )


@contextlib.contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Let the block, and the processes that it starts, use no more cores than that.

    Args:
        threads: 0 changes nothing.

    Raises:
        RequestError: no number of threads.
    """
    require_threads(threads)
    if not threads:
        yield
        return
    before = os.environ.get(_OMP)
    os.environ[_OMP] = str(threads)
    try:
        yield
    finally:
        os.environ.pop(_OMP)
        if before is not None:
            os.environ[_OMP] = before


def startable(wanted: int) -> int:
    """How many of so many threads can be started now; the rest the system would refuse.

    Tried with threads that end at once, since every limit (``ulimit -u``, ``docker --pids-limit``,
    systemd's ``TasksMax``, memory) counts differently.
    """
    end = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(wanted):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError):
        pass
    finally:
        end.set()
        for thread in started:
            thread.join()
    return len(started)


def limit_other_pools() -> None:
    """Tell BLAS and OpenMP, which see the scheduler's cores alone, of a quota below these.

    Before they are loaded: NumPy starts its threads when it is imported.
    """
    quota = cpu_quota()
    if quota is not None and quota < affinity():
        os.environ.setdefault(_OMP, str(quota))


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups of this process that may limit CPU time."""
    mounted = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        mounts = [mounted / controllers, mounted / "cpu"] if controllers else []
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        for mount in mounts or [mounted, mounted / "unified"]:
            for depth in range(len(parts) + 1):
                yield mount.joinpath(*parts[:depth])


def _quota(group: Path) -> float | None:
    """Cores' worth of CPU time of one control group; ``None`` without a limit."""
    quota, _, period = _read(group / _CPU_QUOTA_V2).partition(" ")
    if not quota:
        quota, period = _read(group / _CPU_QUOTA_V1), _read(group / _CPU_PERIOD_V1)
    try:
        cores = int(quota) / int(period or 100_000)
    except (ValueError, ZeroDivisionError):  # "max", or no such group
        return None
    return cores if cores > 0 else None  # −1 is no limit


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
