"""What surrounds a command: streams of any kind, signals, and errors that nobody foresaw.

Covered, in processes of their own: encodings without the characters, closed and full streams,
readers that go; SIGTERM, SIGHUP and SIGINT in the middle of the work, and SIGHUP that is ignored.
In this process: whatever may be raised ends as one line.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, ValidationError

from fewstep.cli.process import ended_by_signals
from fewstep.runtime.errors import BundleError

if TYPE_CHECKING:
    from tests.conftest import Terminal

_PATHS = [str(Path(__file__).parents[2] / name) for name in ("runtime", "export", "calibration")]
_LONGEST = 2_000


def _shell(command: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell command in which ``$F`` is ``fewstep``."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(_PATHS),
        "F": f"{sys.executable} -m fewstep",
        **variables,
    }
    return subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, check=False, timeout=120
    )


# --- streams


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"PYTHONIOENCODING": "cp437"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=lambda each: " ".join(each.values()),
)
def test_characters_that_an_encoding_lacks_are_replaced(
    bundle_copy: Path, variables: dict[str, str]
) -> None:
    file = bundle_copy / "bundle.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["name"] = "→ Rübe 苹果 \U0001f955"
    file.write_text(json.dumps(content), encoding="utf-8")
    shown = _shell(f"$F inspect {bundle_copy}", **variables)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b"transformer" in shown.stdout
    printed = _shell(f"$F inspect {bundle_copy} --json", **variables)
    assert json.loads(printed.stdout)["manifest"]["name"] == content["name"]


def test_names_of_files_stay_bytes_and_arrows_become_ascii(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "é.png"
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = _shell(f"$F generate {tiny_bundle} --class 0 --out {picture}", **ascii_only)
    assert (done.returncode, picture.exists()) == (0, True)
    assert f"-> {picture}".encode() in done.stdout


@pytest.mark.parametrize("arguments", ["inspect {}", "inspect {} --json", "--version", "--help"])
def test_reader_that_goes_is_no_error(tiny_bundle: Path, arguments: str) -> None:
    done = _shell(f"set -o pipefail; $F {arguments.format(tiny_bundle)} | true")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-", "2>/dev/full"])
def test_closed_streams_cost_nothing(tiny_bundle: Path, tmp_path: Path, closed: str) -> None:
    report = tmp_path / "report.json"
    done = _shell(f"$F verify {tiny_bundle} --report {report} {closed}")
    assert done.returncode == 0
    assert json.loads(report.read_text())["passed"] is True
    assert _shell(f"$F inspect nowhere {closed}").returncode == 1


def test_full_standard_output_is_one_line_and_costs_no_report(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    done = _shell(f"$F verify {tiny_bundle} --report {report} >/dev/full")
    assert done.returncode == 1
    assert done.stderr == b"error: cannot write to standard output: No space left on device\n"
    assert json.loads(report.read_text())["passed"] is True


# --- signals


_WAITING = """
import sys, time
from pathlib import Path
from fewstep.cli import app, main
from fewstep.runtime.files import replacing_folder

@app.command("wait")
def wait() -> None:
    with replacing_folder(Path("bundle")) as folder:
        (folder / "half").touch()
        print("half", flush=True)
        time.sleep(3)

sys.argv = ["fewstep", "wait"]
main()
"""


def _waiting(place: Path, hangup: signal.Handlers = signal.SIG_DFL) -> subprocess.Popen[str]:
    """A command at work, which takes SIGINT as usual, whatever the tests themselves ignore."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, hangup)

    process = subprocess.Popen(
        [sys.executable, "-c", _WAITING],
        cwd=place,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(_PATHS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    return process


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "ended by SIGTERM"),
        (signal.SIGHUP, 129, "ended by SIGHUP"),
    ],
)
def test_signals_that_end_a_command_leave_nothing(
    tmp_path: Path, number: signal.Signals, code: int, said: str
) -> None:
    process = _waiting(tmp_path)
    process.send_signal(number)
    _, shown = process.communicate(timeout=30)
    assert process.returncode == code
    assert shown == f"{said}; nothing half-written was left behind\n"
    assert list(tmp_path.iterdir()) == []


def test_hangup_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As under nohup."""
    process = _waiting(tmp_path, hangup=signal.SIG_IGN)
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_signals_are_taken_in_the_main_thread_alone_and_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"), ended_by_signals():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before

    def elsewhere() -> None:
        with ended_by_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen = list[Any]()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]


# --- errors


class _Number(BaseModel):
    number: int


def _validation_error() -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        _Number.model_validate({"number": "x" * 5_000})
    return caught.value


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BundleError("first line\nsecond " + "x" * 5_000 + " end"), "characters left out"),
        (_validation_error(), "please report it"),
        (EOFError(), "EOFError (a defect of fewstep: please report it"),
        (RecursionError("maximum recursion depth exceeded"), "please report it"),
        (UnicodeEncodeError("ascii", "→", 0, 1, "ordinal not in range"), "please report it"),
        (MemoryError(), "out of memory (MemoryError); try a smaller batch"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "'/x'; free some space"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (RuntimeError("torch [bold]said[/] " * 1_000), "please report it"),
        (_Unprintable(), "_Unprintable (a defect"),
        (type("PanicException", (BaseException,), {})("rust"), "PanicException: rust (a defect"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, BaseException) else "",
)
def test_whatever_is_raised_is_one_line(
    fewstep: Terminal, monkeypatch: pytest.MonkeyPatch, error: BaseException, said: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("fewstep.runtime.doctor.diagnose", fail)
    outcome = fewstep("doctor")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert said in outcome.err
    assert len(outcome.err) <= _LONGEST


def test_interrupt_is_said(fewstep: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fewstep.runtime.doctor.diagnose", interrupt)
    outcome = fewstep("doctor")
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err == "interrupted; nothing half-written was left behind\n"
