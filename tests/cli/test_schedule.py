"""Values for every step on the command line: commas, files, and what pictures say of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from fewstep.runtime.generator import Generator

if TYPE_CHECKING:
    from tests.conftest import Terminal

_LISTS = ("--schedule", "0.7,0.4,0", "--guidance", "0,1,2", "--masking-temperature", "3,1,0")


@pytest.fixture
def strategy(tmp_path: Path) -> Path:
    file = tmp_path / "strategy.yaml"
    file.write_text(
        "manual_ratios: [0.7, 0.4]\nmanual_temp: [3, 1]\n"
        "manual_samp_temp: [1, 1, 1]\nmanual_cfg: [0, 1, 2]\n"
    )
    return file


def test_commas_and_a_file_make_the_image_that_python_makes(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path, strategy: Path, generator: Generator
) -> None:
    common = ("generate", tiny_bundle, "--class", "1", "--seed", "4", "--out")
    assert fewstep(*common, tmp_path / "a.png", "--steps", "3", *_LISTS).code == 0
    assert fewstep(*common, tmp_path / "b.png", "--schedule", strategy).code == 0
    expected = generator.generate(
        class_ids=[1],
        seed=4,
        steps=3,
        schedule=[0.7, 0.4, 0],
        guidance=[0, 1, 2],
        masking_temperature=[3, 1, 0],
        sampling_temperature=1,
    ).images[0]
    for name in ("a.png", "b.png"):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), expected)


def test_a_picture_says_the_values_so_that_it_is_made_again_without_the_file(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path, strategy: Path
) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    made = fewstep("generate", tiny_bundle, "--class", "2", "--schedule", strategy, "--out", first)
    assert made.code == 0, made.err
    strategy.unlink()
    assert fewstep("generate", tiny_bundle, "--like", first, "--out", again).code == 0
    assert first.read_bytes() == again.read_bytes()


def test_lists_for_other_steps_are_refused_in_a_line(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path, strategy: Path
) -> None:
    common = ("generate", tiny_bundle, "--class", "1", "--out", tmp_path / "a.png")
    for options, message in (
        (("--guidance", "0,1,2"), "steps 8, got guidance 3; for 3 steps say so (--steps 3"),
        (("--schedule", strategy, "--steps", "4"), "strategy.yaml is for 3 steps, got steps 4"),
        (("--schedule", strategy, "--guidance", "2"), "strategy.yaml gives guidance already"),
    ):
        refused = fewstep(*common, *options)
        assert refused.code == 1 and message in refused.err
        assert len(refused.err.splitlines()) == 1
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("content", ["stpes: 4\nguidance: 3\n", "stpes: 4\nmanual_cfg: 3\n"])
def test_an_unknown_field_of_a_file_is_named(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(content)
    refused = fewstep("generate", tiny_bundle, "--class", "1", "--schedule", file)
    assert refused.code == 1 and "unknown field 'stpes'" in refused.err
