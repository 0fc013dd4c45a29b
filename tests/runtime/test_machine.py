"""How many cores a process may use: affinity, control groups of both versions, OMP_NUM_THREADS."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from fewstep.runtime.errors import RequestError
from fewstep.runtime.machine import affinity, at_most, cores, cpu_quota, startable


def _root(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with 64 cores, and nothing said by OMP_NUM_THREADS."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)


_V2, _V1 = "0::/system.slice/app.service\n", "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n"
_GROUPS = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", f"{_GROUPS}/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", f"{_GROUPS}/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", f"{_GROUPS}/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", f"{_GROUPS}/cpu.max": "1000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": _V2,
                f"{_GROUPS}/system.slice/app.service/cpu.max": "max 100000\n",
                f"{_GROUPS}/system.slice/cpu.max": "300000 100000\n",
            },
            3,
        ),
        # In a container without a namespace for control groups, the path is the host's.
        ({"proc/self/cgroup": "0::/docker/abc\n", f"{_GROUPS}/cpu.max": "100000 50000"}, 2),
        ({"proc/self/cgroup": "0::/../..\n", f"{_GROUPS}/cpu.max": "400000 100000"}, 4),
        (
            {
                "proc/self/cgroup": _V1,
                f"{_GROUPS}/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000\n",
                f"{_GROUPS}/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": _V1,
                f"{_GROUPS}/cpu/cpu.cfs_quota_us": "100000\n",
                f"{_GROUPS}/cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": _V1,
                f"{_GROUPS}/cpu/cpu.cfs_quota_us": "-1\n",
                f"{_GROUPS}/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/\n", f"{_GROUPS}/cpu.max": "garbage\n"}, None),
        ({"proc/self/cgroup": "nonsense"}, None),
    ],
)
def test_quota_of_control_groups(
    files: dict[str, str], expected: int | None, tmp_path: Path, many_cores: None
) -> None:
    root = _root(tmp_path, files)
    assert cpu_quota(root) == expected
    assert cores(root) == (expected or 64)


@pytest.mark.parametrize(
    ("said", "expected"), [("4", 4), ("4,2", 4), ("0", 64), ("many", 64), ("100", 64)]
)
def test_omp_num_threads_counts(
    said: str, expected: int, tmp_path: Path, many_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert cores(tmp_path) == expected


def test_without_the_call_for_affinity_every_core_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert affinity() == cores(tmp_path) == os.cpu_count()


def test_at_most_limits_its_block_alone(
    many_cores: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with at_most(3):
        assert cores(tmp_path) == 3
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    with at_most(0):
        assert cores(tmp_path) == 8
    with at_most(2):
        assert cores(tmp_path) == 2
    assert os.environ["OMP_NUM_THREADS"] == "8"
    with pytest.raises(RequestError, match="threads must be 0 .* got -1"), at_most(-1):
        pass


def test_startable_counts_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    assert startable(5) == 5
    assert startable(0) == 0
    started: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    real = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start)
    assert startable(5) == 2
    assert threading.active_count() == before


def test_importing_leaves_other_pools_alone_without_a_quota() -> None:
    code = """
        import os
        from pathlib import Path
        import fewstep.runtime.machine as machine
        machine.cpu_quota = lambda root=Path("/"): {quota}
        machine.affinity = lambda: 64
        os.environ.pop("OMP_NUM_THREADS", None)
        {before}
        machine.limit_other_pools()
        print(os.environ.get("OMP_NUM_THREADS"))
    """
    said = "os.environ['OMP_NUM_THREADS'] = '7'"
    for quota, before, expected in (("None", "", "None"), ("2", "", "2"), ("2", said, "7")):
        lines = code.format(quota=quota, before=before).strip().splitlines()
        text = "\n".join(line.strip() for line in lines)
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
        assert done.stdout == f"{expected}\n", done.stderr
