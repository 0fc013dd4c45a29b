"""How busy others keep the CPUs, on files as the kernel writes them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fewstep.runtime.load import OthersLoad


def _stat(path: Path, user: int, idle: int) -> Path:
    """Two CPUs, of which this process may use the second; counts in hundredths of a second."""
    path.write_text(
        f"cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 999 0 0 0 0 0 0 0 0 0\n"
        f"cpu1 {user} 0 0 {idle} 0 0 0 0 {user} 0\nintr 1\n"
    )
    return path


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What this process has used, in seconds, on the second CPU of the machine."""
    used = [0.0]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    monkeypatch.setattr(time, "process_time", lambda: used[0])
    return used


def test_what_this_process_uses_is_not_load(tmp_path: Path, own: list[float]) -> None:
    stat = _stat(tmp_path / "stat", 1000, 1000)
    watch = OthersLoad(stat)
    assert watch.share() is None  # no time has passed
    _stat(stat, 1080, 1020)  # of one second, 0.8 were busy
    own[0] = 0.5
    assert watch.share() == pytest.approx(0.3)
    own[0] = 2.0  # its clock and the kernel's are two
    assert watch.share() == 0


def test_a_system_that_does_not_tell(tmp_path: Path, own: list[float]) -> None:
    assert OthersLoad(tmp_path / "absent").share() is None
    (tmp_path / "stat").write_text("nothing\n")
    assert OthersLoad(tmp_path / "stat").share() is None


def test_here() -> None:
    watch = OthersLoad()
    time.sleep(0.05)
    share = watch.share()
    assert share is None or 0 <= share <= 1
