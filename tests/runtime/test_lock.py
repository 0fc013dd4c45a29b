"""The lock on a folder: one process at a time, and never for longer than that process lives.

Covered: real processes that take turns, killed holders, who is waited for, nesting, other paths to
the folder, a folder that is replaced meanwhile, places without locks or without permission, and
that nothing stays in the folder.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from fewstep.runtime.errors import FewstepWarning, OutputError
from fewstep.runtime.lock import LOCK_NAME, locked

_HOLD = """
import sys, time
from pathlib import Path
from fewstep.runtime.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""
_ADD = """
import sys
from pathlib import Path
from fewstep.runtime.lock import locked
for _ in range(20):
    with locked(Path(sys.argv[1])):
        counter = Path(sys.argv[1], "counter")
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def _start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    root = Path(__file__).parents[2] / "runtime"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def _holder(folder: Path, seconds: float = 60) -> subprocess.Popen[str]:
    process = _start(_HOLD, folder, seconds)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_processes_take_turns(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    (tmp_path.parent / "link").symlink_to(tmp_path)
    places = (tmp_path, tmp_path.parent / "link", tmp_path / ".." / tmp_path.name)
    writers = [_start(_ADD, place) for place in places]
    assert [each.wait(60) for each in writers] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "60"
    assert [each.name for each in tmp_path.iterdir()] == ["counter"]


def test_who_waits_says_for_whom_and_goes_on_when_that_ends(tmp_path: Path) -> None:
    holder = _holder(tmp_path, 1.5)
    with (
        pytest.warns(FewstepWarning, match=rf"waiting for .*\(pid {holder.pid} on .*\) to finish"),
        locked(tmp_path),
    ):
        assert holder.wait(10) == 0
    assert list(tmp_path.iterdir()) == []


def test_killed_holder_holds_nothing_and_is_not_named(tmp_path: Path) -> None:
    holder = _holder(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK_NAME).exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        begun = time.monotonic()
        with locked(tmp_path):
            assert f"pid {os.getpid()} on" in (tmp_path / LOCK_NAME).read_text()
    assert time.monotonic() - begun < 1
    assert list(tmp_path.iterdir()) == []


def test_the_same_thread_may_take_it_again(tmp_path: Path) -> None:
    with locked(tmp_path):
        with locked(tmp_path / ".." / tmp_path.name):
            pass
        assert (tmp_path / LOCK_NAME).exists()
    assert list(tmp_path.iterdir()) == []


def test_threads_take_turns(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with locked(tmp_path):
                inside += 1
                most = max(most, inside)
                time.sleep(0.002)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert most == 1


def test_who_waited_for_a_folder_that_was_replaced_locks_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "counter").write_text("0")
    with locked(folder):
        writer = _start(_ADD, folder)
        time.sleep(0.5)
        folder.rename(tmp_path / "old")
        folder.mkdir()
        (folder / "counter").write_text("100")
        (tmp_path / "old" / LOCK_NAME).unlink()
    assert writer.wait(20) == 0
    assert (folder / "counter").read_text() == "120"
    assert (tmp_path / "old" / "counter").read_text() == "0"
    assert [each.name for each in folder.iterdir()] == ["counter"]


def test_lock_of_another_in_a_replaced_folder_stays(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    with locked(folder):
        folder.rename(tmp_path / "old")
        folder.mkdir()
        holder = _holder(folder)
    assert (folder / LOCK_NAME).exists()
    holder.kill()
    holder.wait()


def test_failure_in_the_block_releases_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("absent", ["nowhere", "file/below"])
def test_place_that_cannot_be_written_is_an_output_error(tmp_path: Path, absent: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is not writable"), locked(tmp_path / absent):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_said_once_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(FewstepWarning, match="without locks: let one process"), locked(tmp_path):
        (tmp_path / "made").touch()
    assert (tmp_path / "made").exists()
