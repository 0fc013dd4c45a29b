"""Processes end with all that they started, in time, and say where they were."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tests.gpu.process import run

_LIMIT_S = 1.0


def _run(folder: Path, script: str, limit_s: float = 30) -> tuple[int | None, float, str]:
    output = folder / "output"
    variables = os.environ | {"PYTHONFAULTHANDLER": "1"}
    ended = run([sys.executable, "-c", script], variables, folder, output, limit_s)
    return ended.code, ended.seconds, output.read_text()


def _is_gone(pid: int) -> bool:
    """Whether a process has ended, or only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_exit_code_and_output(tmp_path: Path) -> None:
    script = "import sys; print('out'); sys.stdout.flush(); sys.exit('err')"
    code, _, output = _run(tmp_path, script)
    assert (code, output) == (1, "out\nerr\n")


def test_a_crash_is_a_negative_code_and_leaves_no_core_file(tmp_path: Path) -> None:
    code, _, _ = _run(tmp_path, "import os; os.kill(os.getpid(), 11)")
    assert code == -11
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_what_hangs_is_ended_and_says_where(tmp_path: Path) -> None:
    script = "import time\ndef waiting():\n    time.sleep(60)\nwaiting()"
    code, seconds, output = _run(tmp_path, script, _LIMIT_S)
    assert code is None
    assert _LIMIT_S <= seconds < 20
    assert "in waiting" in output


def test_what_heeds_no_signal_and_its_children_are_ended(tmp_path: Path) -> None:
    script = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGABRT, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    code, seconds, output = _run(tmp_path, script, _LIMIT_S)
    assert code is None
    assert seconds < 30
    _wait_until_gone(int(output.split()[0]))


def test_children_of_what_ended_by_itself_are_ended_too(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid)\n"
    )
    code, _, output = _run(tmp_path, script)
    assert code == 0
    _wait_until_gone(int(output))


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while not _is_gone(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.05)
