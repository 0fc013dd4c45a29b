"""Animations: a frame a step, what may still change under a veil, for any family's previews."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.cli.animation import check_suffix, save_animation, step_frames, steps_shown
from fewstep.cli.lettering import fitted
from fewstep.cli.pictures import grid
from fewstep.cli.record import read_record
from fewstep.runtime.errors import OutputError
from fewstep.runtime.families import Preview
from fewstep.runtime.generator import Generator

_TITLE_HEIGHT = fitted("round 1", 480).height + 3 * 6
_LAST = "step 4 of 4: 16 of 16 tokens decided"


def _pictures(frame: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A frame without its caption."""
    return np.asarray(frame)[_TITLE_HEIGHT:]


def test_last_frame_shows_the_image_and_earlier_ones_veil_it(generator: Generator) -> None:
    result = generator.generate(class_ids=[2], steps=4, schedule="cosine")
    frames = step_frames(steps_shown(generator, result), [""])
    assert len(frames) == 4
    last = _pictures(frames[-1])
    np.testing.assert_array_equal(last, _pictures(grid(result.images[None], [""], _LAST)))
    assert (_pictures(frames[0]) != last).any()


def test_every_frame_has_room_for_every_caption(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One small image: its frames are as wide as the captions need, and all of one size."""
    result = generator.generate(class_ids=[2], steps=3)
    captions = ["short", "a caption that is far wider than an image " * 3, "short again"]

    def preview(model: object, trace: Any, step: int) -> Preview:
        inputs, nothing = {"tokens": trace.sampled[step]}, np.zeros((1, 4, 4), np.bool_)
        return Preview("decoder", inputs, "image", nothing, captions[step])

    monkeypatch.setattr(generator.family, "preview", preview)
    frames = step_frames(steps_shown(generator, result), ["bag"])
    assert len({frame.size for frame in frames}) == 1
    for frame, caption in zip(frames, captions, strict=True):
        ink = np.asarray(frame.convert("L")) < 200
        right, left = fitted(caption, 480).width, 6
        assert ink[:, left : left + right].any() and frame.width >= left + right


def test_the_veil_lies_on_what_the_family_calls_undecided(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preview with half of 2 × 2 cells undecided, of a family that decides in its own way."""
    result = generator.generate(class_ids=[2], steps=2)
    undecided = np.array([[[True, False], [False, True]]])

    def preview(model: object, trace: Any, step: int) -> Preview:
        inputs = {"tokens": trace.sampled[step]}
        return Preview("decoder", inputs, "image", undecided, f"round {step}")

    monkeypatch.setattr(generator.family, "preview", preview)
    last = _pictures(step_frames(steps_shown(generator, result), [""])[-1])
    plain = _pictures(grid(result.images[None], [""], "round 1"))
    left, top = 2 * 6, 0
    changed = (last != plain).any(-1)[top : top + 8, left : left + 8]
    cells = changed.reshape(2, 4, 2, 4).swapaxes(1, 2)
    np.testing.assert_array_equal(cells.any((2, 3)), undecided[0])


def test_last_frame_is_not_veiled_where_a_policy_leaves_tokens_masked(
    generator: Generator,
) -> None:
    result = generator.generate(class_ids=[2], steps=2, schedule="cosine")
    tokens = result.trace.tokens.copy()
    tokens[-1] = result.trace.mask_token
    masked = dataclasses.replace(result, trace=dataclasses.replace(result.trace, tokens=tokens))
    plain, same = (
        step_frames(steps_shown(generator, result), [""]),
        step_frames(steps_shown(generator, masked), [""]),
    )
    np.testing.assert_array_equal(np.asarray(plain[-1]), np.asarray(same[-1]))


def test_frames_are_decoded_in_the_generators_batches(tiny_bundle: Path) -> None:
    with Generator.open(tiny_bundle, threads=1, max_batch=2) as small:
        result = small.generate(class_ids=[0, 1, 2, 3, 4], steps=3, schedule="cosine")
        frames = step_frames(steps_shown(small, result), [""])
    expected = _pictures(grid(result.images[None], [""], "step 3 of 3: 16 of 16 tokens decided"))
    np.testing.assert_array_equal(_pictures(frames[-1]), expected)


def test_a_gif_has_every_frame_and_pauses_on_the_last(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "green", "blue")]
    save_animation(frames, tmp_path / "x.gif")
    shown = []
    with Image.open(tmp_path / "x.gif") as animation:
        for number in range(3):
            animation.seek(number)
            shown.append(int(animation.info["duration"]))
    assert shown[0] == shown[1] < shown[2]


def test_a_gif_says_how_it_was_made(tmp_path: Path) -> None:
    record = {
        "fewstep": "0.9",
        "bundle": {"name": "x", "sha256": "0" * 64},
        "class_ids": [1],
        "classes": ["a"],
        "seeds": [1],
        "settings": {"steps": 2},
        "precision": "fp32",
        "backend": "onnxruntime",
        "device": "cpu",
        "scale": 3,
        "columns": None,
        "each": 1,
    }
    save_animation([Image.new("RGB", (4, 4))] * 2, tmp_path / "x.gif", record)
    assert read_record(tmp_path / "x.gif") == record


def test_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save_animation([Image.new("RGB", (4, 4))], tmp_path / "file" / "image.gif")


def test_other_kinds_of_files_are_refused() -> None:
    check_suffix(Path("trace.GIF"))
    with pytest.raises(OutputError, match="expected a file ending in .gif"):
        check_suffix(Path("trace.mp4"))
