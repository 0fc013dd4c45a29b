"""``--threads``, on every command that runs engines, and machines that say less of their cores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_COMMANDS = ("generate", "verify", "bench", "build", "calibrate quantize", "calibrate policy")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Threads of every session that is opened."""
    from fewstep.runtime.engines import sessions

    found: list[int] = []
    sized = sessions._threads

    def note(wanted: int) -> int:
        found.append(sized(wanted))
        return found[-1]

    monkeypatch.setattr(sessions, "_threads", note)
    monkeypatch.setattr("fewstep.runtime.machine.affinity", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return found


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_that_runs_engines_takes_it(command: str, fewstep: Any) -> None:
    assert "--threads" in fewstep(*command.split(), "--help").out


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "--class", 0, "--steps", 1, "--out", "OUT/a.png"),
        ("bench", "--runs", 1, "--steps", 1),
        ("verify",),
    ],
)
def test_sessions_get_as_many(
    arguments: tuple[object, ...], tiny_bundle: Path, tmp_path: Path, asked: list[int], fewstep: Any
) -> None:
    command, *options = [str(each).replace("OUT", str(tmp_path)) for each in arguments]
    done = fewstep(command, tiny_bundle, *options, "--threads", 3)
    assert done.code == 0, done.err
    assert set(asked) == {3}


def test_building_uses_no_more(bundle_copy: Path, asked: list[int], fewstep: Any) -> None:
    done = fewstep("build", bundle_copy, "--precision", "fp16", "--threads", 2)
    assert done.code == 0, done.err
    assert set(asked) == {2}


@pytest.mark.parametrize("command", ["bench", "verify", "build"])
def test_what_is_no_number_of_threads_is_refused(
    command: str, tiny_bundle: Path, fewstep: Any
) -> None:
    done = fewstep(command, tiny_bundle, "--threads", -1)
    assert done.code == 1
    assert "threads must be 0 (as many as there are cores) to 1024, got -1" in done.err


def test_without_the_call_for_affinity_everything_works(tiny_bundle: Path, tmp_path: Path) -> None:
    """As on macOS and Windows."""
    commands = (["doctor"], ["generate", str(tiny_bundle), "--class", "0", "--out", "a.png"])
    for command in commands:
        code = f"""
import os, sys
del os.sched_getaffinity
sys.argv = ["fewstep", *{command!r}]
from fewstep.cli import main
main()
"""
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").is_file()
