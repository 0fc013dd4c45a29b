"""Settings as options: those of every family, checked by the family of the bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import Field

from fewstep.runtime import families
from fewstep.runtime.settings import Settings, Whole

if TYPE_CHECKING:
    from tests.conftest import Terminal

_COMMANDS = ["generate", "bench", "inspect", "estimate", "calibrate quantize"]


class _OtherSettings(Settings):
    steps: Whole = Field(default=2, description="Rounds.")
    extra_care: float = Field(default=0.5, description="How much care to take.")


class _Other:
    kind, Settings = "other", _OtherSettings


@pytest.fixture
def two_families(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another family beside those that are there."""
    known: dict[str, Any] = {**families._registered, "other": _Other()}
    monkeypatch.setattr(families, "_registered", known)
    yield


def _help(fewstep: Terminal, command: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    shown = fewstep(*command.split(), "--help")
    assert shown.code == 0
    return " ".join(shown.out.replace("│", " ").split())


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_setting_of_a_family_is_an_option_with_its_description(
    fewstep: Terminal, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    shown = _help(fewstep, command, monkeypatch)
    for kind in families.kinds():
        for name, field in families.family_of(kind).Settings.model_fields.items():
            assert f"--{name.replace('_', '-')} VALUE " in shown
            assert str(field.description) in shown


@pytest.mark.usefixtures("two_families")
def test_help_says_which_family_has_a_setting(
    fewstep: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = _help(fewstep, "generate", monkeypatch)
    assert "--steps VALUE masked: Transformer passes. other: Rounds." in shown
    assert "--extra-care VALUE other: How much care to take." in shown


@pytest.mark.usefixtures("two_families")
@pytest.mark.parametrize("command", [*_COMMANDS, "inspect --plan"])
def test_a_setting_of_another_family_is_one_line(
    fewstep: Terminal, tiny_bundle: Path, command: str
) -> None:
    outcome = fewstep(*command.split(), tiny_bundle, "--extra-care", 1)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    expected = "pass --plan too" if command == "inspect" else "unknown setting 'extra_care'"
    assert expected in outcome.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--steps many", "steps must be an integer, got 'many'"),
        ("--steps 17", "steps must be 1 … 16 (the number of tokens), got 17"),
        ("--guidance x", "guidance must be a number, a pair (start, end) or START:END, got 'x'"),
        ("--guidance 1:2:3", "guidance must be a number"),
        ("--masking-temperature -1", "masking_temperature must be finite and at least 0"),
        ("--schedule cosin", "Did you mean 'cosine'?"),
        ("--schedule=", "unknown schedule ''"),
        ("--schedule policy --guidance 1", "the policy decides guidance: leave it out"),
    ],
)
@pytest.mark.parametrize(
    "command", ["generate --class 0", "bench", "inspect --plan", "estimate", "calibrate quantize"]
)
def test_values_are_checked_by_the_family(
    fewstep: Terminal,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = fewstep(*command.split(), tiny_bundle, *options.split())
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert said in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_choices_are_listed_once(fewstep: Terminal, tiny_bundle: Path) -> None:
    said = fewstep("generate", tiny_bundle, "--class", 0, "--schedule", "nope").err
    listed = said.partition("expected one of: ")[2].rstrip(".\n").split(", ")
    assert "policy" in listed
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("command", ["generate --class 0", "inspect --plan", "estimate"])
def test_a_setting_is_given_once(fewstep: Terminal, tiny_bundle: Path, command: str) -> None:
    outcome = fewstep(*command.split(), tiny_bundle, "--steps", 4, "--steps", 8)
    assert (outcome.code, outcome.out) == (1, "")
    assert "--steps takes one value, got 4, 8" in outcome.err


@pytest.mark.parametrize("spelled", ["2", "2:2", "2.0"])
def test_a_number_and_a_ramp_to_itself_are_one(
    fewstep: Terminal, tiny_bundle: Path, spelled: str
) -> None:
    wish = ["inspect", tiny_bundle, "--plan", "--json", "--guidance", spelled]
    assert json.loads(fewstep(*wish).out)["settings"]["guidance"] == [2.0, 2.0]


def test_bench_times_every_combination(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    report = tmp_path / "bench.json"
    wish = ["--batch", 1, "--batch", 2, "--steps", 1, "--steps", 2]
    wish += ["--schedule", "linear", "--schedule", "policy", "--runs", 1]
    shown = fewstep("bench", "-q", tiny_bundle, *wish, "--report", report)
    assert (shown.code, shown.err) == (0, "")
    measured = json.loads(report.read_text())["measurements"]
    found = [
        (each["batch"], each["settings"]["steps"], each["settings"]["schedule"])
        for each in measured
    ]
    assert found == [
        (batch, steps, schedule)
        for batch in (1, 2)
        for steps in (1, 2)
        for schedule in ("linear", "policy-exported")
    ]
    assert measured[0]["settings"]["guidance"] == [0.0, 3.0]  # complete, whatever was given
    assert measured[0]["name"] == "batch 1, steps 1, schedule linear"
    assert len({each["name"] for each in measured}) == 8


def test_the_list_of_commands_needs_no_family() -> None:
    code = (
        "import sys; from fewstep.cli import main; sys.argv = ['fewstep', '--help']\n"
        "try: main()\n"
        "except SystemExit: print({'numpy', 'fewstep.runtime.families'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")
