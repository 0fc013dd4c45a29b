"""``fewstep demo`` on a bundle: from a folder, from a release's file, without an export."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.packed import pack


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a folder without a sample, and with few timed runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fewstep.cli.tour._TIMED_RUNS", 1)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_every_promised_file_appears(
    fewstep: Any, tiny_bundle: Path, tmp_path: Path, kind: str
) -> None:
    given = tiny_bundle
    if kind == "file":
        given = tmp_path / "sample.zip"
        pack(Bundle.read(tiny_bundle), given)
    done = fewstep("demo", "--bundle", given, "--out", "results")
    assert done.code == 0, done.err
    made = {"grid-8-steps.png", "grid-4-steps.png", "steps.gif"}
    made |= {"bundle"} if kind == "file" else set()
    assert {path.name for path in (tmp_path / "results").iterdir()} == made
    with Image.open("results/steps.gif") as animation:
        assert getattr(animation, "n_frames", 1) == 8
    for stage in ("transformer", "sampling", "decoder", "other", "total", "images/s"):
        assert stage in done.out


def test_every_command_that_it_prints_runs(fewstep: Any, tiny_bundle: Path) -> None:
    shown = fewstep("demo", "--bundle", tiny_bundle).out
    commands = re.findall(r"^next: fewstep (.*)$", shown, re.MULTILINE)
    assert [each.split()[0] for each in commands] == ["generate", "generate", "inspect", "bench"]
    for command in commands:
        runs = ["--runs", "1"] if command.startswith("bench") else []
        done = fewstep(*command.split(), *runs)
        assert done.code == 0, done.err


def test_without_a_sample_it_says_where_there_is_one(fewstep: Any) -> None:
    done = fewstep("demo")
    assert done.code == 1
    for part in ("samples/fashion", "fewstep[export]", "fewstep demo --bundle fewstep-sample-"):
        assert part in done.err
    assert len(done.err.splitlines()) == 1


def test_texts_are_refused_before_the_work(
    fewstep: Any, tiny_text_bundle: Path, tmp_path: Path
) -> None:
    done = fewstep("demo", "--bundle", tiny_text_bundle)
    assert done.code == 1
    assert "text-conditional" in done.err
    assert not (tmp_path / "demo-output").exists()


def test_a_sample_and_a_bundle_are_one_too_many(fewstep: Any, tiny_bundle: Path) -> None:
    done = fewstep("demo", "--sample", "a", "--bundle", tiny_bundle)
    assert done.code == 1
    assert "leave one out" in done.err
