"""The help of every command: whole at narrow terminals, the same under ``-h``, and completed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.main import get_command

from fewstep.runtime.engines.select import BACKENDS, DEVICES
from fewstep.runtime.families.masked.schedule import MASK_RATIOS
from fewstep.runtime.policies import POLICY

if TYPE_CHECKING:
    from tests.conftest import Terminal


def _commands() -> Iterator[tuple[list[str], Any]]:
    """Every group and command: how it is called, and its parameters."""
    from fewstep.cli import app

    root = get_command(app)
    yield from _below(root, typer.Context(root, info_name="fewstep"), [])


def _below(
    command: Any, context: typer.Context, path: list[str]
) -> Iterator[tuple[list[str], Any]]:
    yield path, command.get_params(context)
    for name in getattr(command, "list_commands", lambda context: ())(context):
        below = command.get_command(context, name)
        inner = typer.Context(below, parent=context, info_name=name)
        yield from _below(below, inner, [*path, name])


@pytest.mark.parametrize("columns", [80, 60])
def test_every_option_is_whole(
    fewstep: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    seen = []
    for path, params in _commands():
        seen.append(" ".join(path))
        shown = fewstep(*path, "--help")
        assert (shown.code, shown.err) == (0, "")
        words = shown.out.replace(",", " ").split()
        for each in params:
            if each.param_type_name == "option" and not each.hidden:
                assert {*each.opts, *each.secondary_opts} <= {*words}, path
        assert not re.search(r"-[a-z]*…", shown.out), path
        long = [line for line in shown.out.splitlines() if len(line) > columns]
        assert all(line.lstrip().startswith("--") for line in long if line[0] == " "), long
    assert {"export adanat", "calibrate policy", "calibrate quantize", "build"} <= {*seen}


def test_h_is_help_and_nothing_shows_the_commands(fewstep: Terminal) -> None:
    for path in ([], ["build"], ["export"], ["export", "adanat"], ["calibrate", "policy"]):
        assert fewstep(*path, "-h").out == fewstep(*path, "--help").out
    assert "generate" in fewstep().out and fewstep().code == 2
    assert fewstep("calibrate").out == fewstep("calibrate", "-h").out


def test_choices_are_listed(fewstep: Terminal) -> None:
    for command in ("generate", "bench", "verify"):
        words = " ".join(fewstep(command, "-h").out.split())
        for choice in (*BACKENDS, *DEVICES):
            assert choice in words, (command, choice)
    bench = fewstep("bench", "-h").out
    assert all(name in bench for name in (*MASK_RATIOS, POLICY))
    build = fewstep("build", "-h").out
    assert all(each in build for each in ("fp32", "fp16", "bf16", "int8", "fp8"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "No such command 'nothing'; see fewstep --help"),
        (["genrate"], "Did you mean 'generate'"),
        (["bench", "x", "--run", "3"], "--runs"),
        (["bench"], "; see fewstep bench --help"),
        (["bench", "x", "--runs", "y"], "--runs"),
        (["bench", "x", "--runs"], "; see fewstep bench --help"),
        (["generate", "x", "--class"], "; see fewstep generate --help"),
        (["generate", "x", "--out"], "; see fewstep generate --help"),
        (["calibrate", "policy", "x", "--out"], "; see fewstep calibrate policy --help"),
        (["calibrate", "polcy"], "Did you mean 'policy'"),
    ],
)
def test_bad_usage_is_one_line(fewstep: Terminal, arguments: list[str], said: str) -> None:
    shown = fewstep(*arguments)
    assert (shown.code, shown.out, shown.err.count("\n")) == (2, "", 1)
    assert shown.err.startswith("error: ") and said in shown.err


def _completed(line: str, tmp_path: Path) -> list[str]:
    """What bash is told for the last word of a command line."""
    environment = os.environ | {
        "_FEWSTEP_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    script = Path(sys.executable).with_name("fewstep")
    done = subprocess.run(
        [script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.skipif(
    not Path(sys.executable).with_name("fewstep").exists(), reason="fewstep is not installed here"
)
def test_shells_complete_commands_options_and_choices(tmp_path: Path) -> None:
    assert _completed("fewstep ver", tmp_path) == ["verify"]
    assert _completed("fewstep export adana", tmp_path)[:1] == ["adanat"]
    assert "--compute-capability" in _completed("fewstep build x --comp", tmp_path)
    assert _completed("fewstep verify x --backend tensor", tmp_path) == ["tensorrt", "tensorrt-rtx"]
    assert _completed("fewstep inspect ", tmp_path) == []  # then bash completes files
