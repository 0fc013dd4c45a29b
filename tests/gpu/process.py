"""Runs a command in a session of its own, and ends all of it when its time is over."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.gpu.outcome import Ended

_LAST_WORDS_S = 3  # for Python to print where every thread is, upon SIGABRT
_GIVE_UP_S = 5


def run(
    command: Sequence[str], variables: Mapping[str, str], folder: Path, output: Path, limit_s: float
) -> Ended:
    """Run a command until it ends or its time is over.

    Whatever it started is killed with it. Before that it is asked where it hangs: Python's fault
    handler, if it is on, writes that to the output.

    Args:
        command: program and arguments.
        variables: the whole environment.
        folder: where it runs.
        output: file for stdout and stderr.
        limit_s: seconds it may take.
    """
    start = time.monotonic()
    with output.open("ab") as file:
        process = subprocess.Popen(
            command,
            env=variables,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_no_core_file,
        )
        code: int | None
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
            _signal(process.pid, signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LAST_WORDS_S)
        finally:
            _signal(process.pid, signal.SIGKILL)
            # A process that waits inside a driver may not even heed this; it is left behind.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GIVE_UP_S)
    return Ended(code, time.monotonic() - start, limit_s)


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _no_core_file() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
