"""``fewstep generate --best-of``: what is kept, what pictures say of it, and what does not go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from tests.judged import with_judge

from fewstep.cli.record import read_record
from fewstep.runtime.best_of import candidates
from fewstep.runtime.generator import Generator

if TYPE_CHECKING:
    from tests.conftest import Terminal


@pytest.fixture(scope="module")
def judged(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with a judge."""
    return with_judge(tiny_bundle, tmp_path_factory.mktemp("judged") / "bundle")


def _pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_picture_is_made_again_from_its_record(
    fewstep: Terminal, judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("--class", "1", "2", "--count", "2", "--seed", "5", "--steps", "2")
    outcome = fewstep("generate", judged, *asked, "--best-of", 4, "--out", "best.png", "--json")
    assert outcome.code == 0, outcome.err
    said, record = json.loads(outcome.out), read_record(tmp_path / "best.png")
    assert record["seeds"] == said["seeds"]
    assert record["best_of"] == 4
    assert all(each in candidates(5 + k, 4) for k, each in enumerate(record["seeds"])), record[
        "seeds"
    ]
    with Generator.open(judged, threads=1) as opened:
        best = opened.generate(class_ids=[1, 1, 2, 2], seed=5, steps=2, best_of=4)
    assert record["seeds"] == best.seeds.tolist()
    monkeypatch.setattr("fewstep.runtime.best_of.Judge.scores", None)  # it is not asked again
    assert fewstep("generate", judged, "--like", "best.png", "--out", "again.png").code == 0
    again = read_record(tmp_path / "again.png")
    assert again["seeds"] == record["seeds"] and "best_of" not in again
    difference = _pixels(tmp_path / "best.png").astype(int) - _pixels(tmp_path / "again.png")
    assert np.abs(difference).max() <= 1


def test_files_of_a_folder_have_the_seeds_asked_for(
    fewstep: Terminal, judged: Path, tmp_path: Path
) -> None:
    asked = ("generate", judged, "--class", "1", "--count", "3", "--steps", "2")
    outcome = fewstep(*asked, "--best-of", 3, "--out", tmp_path / "set")
    assert outcome.code == 0, outcome.err
    assert "3 images, each the best of 3, in" in outcome.out
    files = sorted((tmp_path / "set").iterdir())
    assert [each.name for each in files] == [f"class-1-shoe-seed-{k}.png" for k in range(3)]
    for k, file in enumerate(files):
        record = read_record(file)
        assert record["seeds"][0] in candidates(k, 3) and record["best_of"] == 3
    plain = fewstep(*asked, "--out", tmp_path / "set")
    assert plain.code == 1
    assert "made otherwise (best_of 3 there, None here)" in plain.err


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ("--best-of 2 --resume --out set", "--resume knows images by their seeds"),
        ("--best-of 65", "best_of must be an integer of 1 … 64, got 65"),
    ],
)
def test_what_does_not_go_is_one_line(
    wish: str,
    message: str,
    fewstep: Terminal,
    judged: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Generator, "open", None)
    outcome = fewstep("generate", judged, "--class", "1", *wish.split())
    assert (outcome.code, outcome.err.count("\n")) == (1, 1), outcome.err
    assert message in outcome.err
    assert not list(tmp_path.iterdir())


def test_a_bundle_without_a_judge_says_how_to_get_one(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = fewstep("generate", tiny_bundle, "--class", "1", "--best-of", "2")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1), outcome.err
    assert "no judge" in outcome.err and "--keep-judge" in outcome.err


def test_inspect_shows_the_judge(fewstep: Terminal, judged: Path) -> None:
    outcome = fewstep("inspect", judged)
    assert outcome.code == 0
    assert "of policy on small" in outcome.out
