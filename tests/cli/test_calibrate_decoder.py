"""``fewstep calibrate decoder``, and commands that then choose the small decoder."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tests.conftest import Terminal


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--updates", "0"], "error: updates must be at least 1, got 0"),
        (["--text-file", "prompts.txt"], "this bundle is class-conditional"),
        (["--decoder", "full"], "No such option: --decoder"),
        (["--steps", "99"], "error: steps must be 1 … 16"),
    ],
)
def test_what_does_not_fit_is_one_line(
    fewstep: Terminal, bundle_copy: Path, options: list[str], words: str
) -> None:
    refused = fewstep("calibrate", "decoder", bundle_copy, *options)
    assert refused.code in (1, 2)
    assert words in refused.err


def test_a_small_decoder_is_made_and_used(fewstep: Terminal, bundle_copy: Path) -> None:
    short = ("--images", 2, "--held-out", 1, "--updates", 2, "--batch", 2, "--threads", 1)
    made = fewstep("calibrate", "decoder", bundle_copy, *short, "--steps", 2, "--name", "tiny")
    assert made.code == 0, made.err
    assert "added decoder tiny: " in made.out
    assert "times fewer operations" in made.out
    assert "--decoder tiny" in made.out
    shown = fewstep("inspect", bundle_copy)
    assert "full, tiny (8." in " ".join(shown.out.split())
    plan = fewstep("inspect", bundle_copy, "--plan", "--decoder", "tiny")
    assert "decoder-tiny" in plan.out
    wrong = fewstep("generate", bundle_copy, "--class", 0, "--decoder", "small")
    assert wrong.code == 1
    assert "unknown decoder 'small'; expected one of: full, tiny" in wrong.err
    picture, steps = bundle_copy.parent / "one.png", bundle_copy.parent / "steps.gif"
    drawn = fewstep(
        *("generate", bundle_copy, "--class", 0, "--decoder", "tiny"),
        *("--out", picture, "--trace", steps),
    )
    assert drawn.code == 0, drawn.err
    again = fewstep("generate", bundle_copy, "--like", picture, "--out", steps.with_suffix(".png"))
    assert again.code == 0, again.err
    with Image.open(picture) as one, Image.open(steps.with_suffix(".png")) as other:
        assert one.tobytes() == other.tobytes()
