"""What commands say: verdicts and commands that run, ``-q`` and ``-v``, JSON alone on stdout, and
no bars in logs."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fewstep.cli.common import command

if TYPE_CHECKING:
    from tests.conftest import Outcome, Terminal

_NEXT = re.compile(r"^next: (fewstep .+)$", re.MULTILINE)


def _follow(fewstep: Terminal, shown: Outcome) -> list[str]:
    """Run what a command says to run next, as printed."""
    assert shown.code == 0, shown.err
    commands = _NEXT.findall(shown.out)
    assert commands, shown.out
    for each in commands:
        assert fewstep(*shlex.split(each)[1:]).code == 0, each
    return commands


# --- what comes next


def test_every_printed_command_runs(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = shutil.copytree(tiny_bundle, "with a space")
    (verify,) = _follow(fewstep, fewstep("build", bundle, "--precision", "fp16"))
    assert verify == "fewstep verify 'with a space' --precision fp16"
    (generate,) = _follow(fewstep, fewstep("verify", bundle))
    assert generate == "fewstep generate 'with a space' --class 0"
    _follow(fewstep, fewstep("verify", bundle, "--precision", "fp16", "--device", "cpu"))
    _follow(fewstep, fewstep("build", bundle, "--precision", "bf16"))
    wish = ("--rollouts", 2, "--held-out", 2)
    quantized = fewstep("calibrate", "quantize", bundle, *wish)
    assert "made: int8 graphs" in quantized.out
    _follow(fewstep, quantized)


def test_text_bundles_are_timed_next(
    fewstep: Terminal, tiny_text_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (bench,) = _follow(fewstep, fewstep("verify", tiny_text_bundle))
    assert bench.startswith("fewstep bench ")


def test_a_failure_says_what_failed_and_where_to_look(
    fewstep: Terminal, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from fewstep.runtime import verify

    strict = replace(verify.TOLERANCES["fp32"], psnr_db=1e9)
    monkeypatch.setitem(verify.TOLERANCES, "fp32", strict)
    shown = fewstep("verify", tiny_bundle)
    assert shown.code == 1
    assert "failed: decoder, rollout cosine, fp32: PSNR, dB is" in shown.out
    assert shown.out.endswith(f"next: fewstep verify {tiny_bundle} --precision fp32 --layers\n")


def test_commands_begin_as_they_were_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "bin" / "fewstep"
    script.parent.mkdir()
    script.write_text("")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", [str(script), "verify"])
    assert command("verify", "a b", 3) == f"{script} verify 'a b' 3"
    monkeypatch.setenv("PATH", str(script.parent))
    assert command("verify") == "fewstep verify"
    monkeypatch.setattr(sys, "argv", ["/x/fewstep/__main__.py"])
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "fewstep"])
    assert command("doctor") == "python3 -m fewstep doctor"


@pytest.mark.parametrize(
    "target",
    [
        ["--backend", "tensorrt", "--compute-capability", "8.7", "11.0"],
        ["--backend", "tensorrt-rtx", "--compute-capability", "8.6", "--opt-batch", "1", "4"],
    ],
)
def test_what_a_preflight_lists_is_understood(
    fewstep: Terminal, bundle_copy: Path, target: list[str]
) -> None:
    shown = fewstep("build", bundle_copy, *target, "--preflight", "--no-kernels")
    assert shown.code == 0, shown.err
    commands = re.findall(r"^  [0-9]\. .*?: (fewstep .+)$", shown.out, re.MULTILINE)
    assert [each.split()[1] for each in commands] == ["build", "verify", "bench"]
    for each in commands:  # options are read before the help is shown
        assert fewstep(*shlex.split(each)[1:], "--help").code == 0, each


def test_what_looks_like_markup_is_printed_as_it_is(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / ":bomb: [red]x")
    assert ":bomb: [red]x' --class 0" in fewstep("verify", bundle).out


# --- more and less


@pytest.mark.parametrize("before", [True, False])
def test_quiet_says_results_alone(fewstep: Terminal, bundle_copy: Path, before: bool) -> None:
    words = ["verify", bundle_copy]
    shown = fewstep("-q", *words) if before else fewstep(*words, "--quiet")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.endswith("on cpu)\n") and "next:" not in shown.out
    assert "next:" in fewstep(*words).out  # the next command is itself again


def test_bench_goes_on_for_runs_or_for_seconds(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    refused = fewstep("bench", tiny_bundle, "--runs", 1, "--seconds", 1)
    assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1)
    assert "must be above 0" not in refused.err and "pass one" in refused.err
    assert "seconds must be above 0" in fewstep("bench", tiny_bundle, "--seconds", 0).err
    refused = fewstep("bench", tiny_bundle, "--report", tmp_path / "x.md")
    assert "--report writes .json" in refused.err
    measured = json.loads(fewstep("bench", tiny_bundle, "--seconds", 0.1, "--json").out)
    assert measured["machine"]["processor"] and measured["measurements"][0]["runs"] >= 5
    assert "on cpu (" in fewstep("bench", tiny_bundle, "--runs", 1).out


@pytest.mark.parametrize("words", [["-v", "verify"], ["verify", "-v"]])
def test_verbose_says_versions_engines_and_time(
    fewstep: Terminal, tiny_bundle: Path, words: list[str]
) -> None:
    shown = fewstep(*words, tiny_bundle)
    assert shown.code == 0
    lines = shown.err.splitlines()
    assert all(line.startswith("more: ") for line in lines)
    assert any("onnxruntime 1." in line and "Python 3." in line for line in lines)
    assert any("s from start to end" in line for line in lines)
    bench = fewstep("bench", tiny_bundle, "--runs", 1, "-v")
    assert "tensorrt-rtx is passed over: " in bench.err
    refused = fewstep("doctor", "-q", "-v")
    assert (refused.code, refused.err.count("\n")) == (1, 1)


# --- JSON


@pytest.mark.parametrize(
    "words",
    [
        ["doctor"],
        ["inspect", "{bundle}"],
        ["inspect", "{bundle}", "--plan"],
        ["estimate", "{bundle}", "--device", "thor"],
        ["verify", "{bundle}"],
        ["bench", "{bundle}", "--runs", "1"],
        ["build", "{bundle}", "--precision", "fp16"],
        ["build", "{bundle}", "--check"],
        ["calibrate", "quantize", "{bundle}", "--rollouts", "1", "--held-out", "1"],
    ],
)
def test_json_is_alone_on_stdout(fewstep: Terminal, bundle_copy: Path, words: list[str]) -> None:
    filled = [each.format(bundle=bundle_copy) for each in words]
    shown = fewstep("-v", *filled, "--json")
    assert shown.code == 0
    assert isinstance(json.loads(shown.out), dict)


# --- terminals and logs

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def _run(words: list[object], **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("CI", "COLUMNS")}
    return subprocess.run(
        [sys.executable, "-m", "fewstep", *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
        env=clean | environment,
    )


def test_pipes_get_no_control_characters_and_no_cut_names(bundle_copy: Path) -> None:
    for words in (["verify", bundle_copy], ["estimate", bundle_copy], ["inspect", bundle_copy]):
        shown = _run(words, FORCE_COLOR="" if words[0] == "inspect" else "1")
        assert not _CONTROL.search(shown.stderr), words
        plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.stdout)  # colours that were asked for
        assert not _CONTROL.search(plain), words
        assert "…" not in plain
    files = json.loads((bundle_copy / "bundle.json").read_text())["files"]
    assert all(name in plain for name in files)


def _on_terminal(words: list[object], **environment: str) -> str:
    """What stderr shows where it is a terminal."""
    ours, theirs = pty.openpty()
    clean = {key: value for key, value in os.environ.items() if key != "CI"}
    process = subprocess.Popen(
        [sys.executable, "-m", "fewstep", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=clean | {"TERM": "xterm"} | environment,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux ends a terminal that nobody writes to with an error
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert process.wait() == 0
    return shown.decode()


def test_bars_move_only_on_a_terminal_that_somebody_watches(tiny_bundle: Path) -> None:
    words: list[object] = ["bench", tiny_bundle, "--runs", 2]
    assert _CONTROL.search(_on_terminal(words))
    for environment in ({"TERM": "dumb"}, {"CI": "true"}):
        assert not _CONTROL.search(_on_terminal(words, **environment).replace("\r\n", "\n"))
    assert not _CONTROL.search(_on_terminal([*words, "-q"]).replace("\r\n", "\n"))
