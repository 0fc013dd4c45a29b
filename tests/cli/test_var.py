"""The commands on a VAR bundle: settings of its own, and no shared code that knows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageSequence

if TYPE_CHECKING:
    from tests.conftest import Terminal


def test_images_are_made_and_made_again(
    fewstep: Terminal, var_bundle: Path, tmp_path: Path
) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    words = ("--class", "bee", "--count", 2, "--seed", 4, "--guidance", "1:1", "--top-k", 9)
    assert fewstep("generate", var_bundle, *words, "--out", first).code == 0
    assert fewstep("generate", var_bundle, "--like", first, "--out", again).code == 0
    np.testing.assert_array_equal(Image.open(first), Image.open(again))


def test_the_scales_are_shown_from_coarse_to_fine(
    fewstep: Terminal, var_bundle: Path, tmp_path: Path
) -> None:
    gif = tmp_path / "scales.gif"
    told = fewstep(
        "generate", var_bundle, "--class", 0, "--trace", gif, "--out", tmp_path / "x.png"
    )
    assert told.code == 0
    assert len(list(ImageSequence.Iterator(Image.open(gif)))) >= 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--top-k", 0), "top_k must be at least 1"),
        (("--top-p", "1.1"), "top_p must be above 0 and at most 1"),
        (("--steps", 4), "steps"),
        (("--scales", 9), "scales must be 1 … 4, got 9"),
        (("--schedule", "policy-9"), "policy"),
        (("--schedule", "policy", "--guidance", 3), "the policy decides guidance"),
    ],
)
def test_what_does_not_fit_is_one_line(
    fewstep: Terminal, var_bundle: Path, tmp_path: Path, words: tuple[object, ...], said: str
) -> None:
    out = tmp_path / "x.png"
    told = fewstep("generate", var_bundle, "--class", 0, *words, "--out", out)
    assert told.code == 1
    assert said in told.err
    assert len(told.err.splitlines()) == 1
    assert not out.exists()


def test_the_plan_says_what_the_cache_takes(fewstep: Terminal, var_bundle: Path) -> None:
    def plan(*words: object) -> dict[str, int]:
        told = json.loads(fewstep("inspect", var_bundle, "--plan", "--json", *words).out)
        found = {name: each["bytes"] for name, each in told["buffers"].items()}
        return {**found, "total": told["total_bytes"]}

    half, whole = plan("--guidance", 0), plan()
    assert whole["cache"] == 2 * half["cache"] == 2 * 2 * 30 * 2 * 128 * 4
    grown = {name: whole[name] - half[name] for name in half if name != "total"}
    assert grown["cache"] > 0.5 * (whole["total"] - half["total"])
    rows = {"condition", "embeds", "modulation", "head_modulation", "hidden", "logits", "cache"}
    assert {name for name, more in grown.items() if more} == rows


def test_a_bundle_is_verified(fewstep: Terminal, var_bundle: Path) -> None:
    told = fewstep("verify", var_bundle)
    assert told.code == 0, told.err
    for graph in ("head", "next_scale", "decoder", "policy"):
        assert graph in told.out
