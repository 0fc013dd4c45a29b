"""Step frames: undecided tokens are veiled, decided ones show their pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.runtime.errors import OutputError
from fewstep.runtime.generator import Generator
from fewstep.runtime.picture import grid, save, save_animation, step_frames

_TITLE_HEIGHT = 15 + 3 * 6


def test_last_frame_shows_the_image_and_earlier_ones_veil_it(generator: Generator) -> None:
    result = generator.generate(class_ids=[2], steps=4, schedule="cosine")
    frames = step_frames(generator, result, [""])
    expected = grid(result.images[None], [""], "")
    height = expected.height - _TITLE_HEIGHT
    last = np.asarray(frames[-1])[_TITLE_HEIGHT:]
    np.testing.assert_array_equal(last[:height], np.asarray(expected)[_TITLE_HEIGHT:])
    assert (np.asarray(frames[0])[_TITLE_HEIGHT:] != last).any()


def test_last_frame_is_not_veiled_where_a_policy_leaves_tokens_masked(
    generator: Generator,
) -> None:
    result = generator.generate(class_ids=[2], steps=2, schedule="cosine")
    tokens = result.trace.tokens.copy()
    tokens[-1] = result.trace.mask_token
    masked = dataclasses.replace(result, trace=dataclasses.replace(result.trace, tokens=tokens))
    plain, same = step_frames(generator, result, [""]), step_frames(generator, masked, [""])
    np.testing.assert_array_equal(np.asarray(plain[-1]), np.asarray(same[-1]))


def test_grid_size_follows_from_its_parts() -> None:
    page = grid(np.zeros((2, 3, 8, 10, 3), np.uint8), ["", ""], "", scale=2)
    assert page.size == (2 * 6 + 3 * (20 + 6), _TITLE_HEIGHT + 2 * (16 + 6))


def test_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    image = Image.new("RGB", (4, 4))
    with pytest.raises(OutputError, match="cannot write"):
        save(image, tmp_path / "file" / "image.png")
    with pytest.raises(OutputError, match="cannot write"):
        save_animation([image], tmp_path / "file" / "image.gif")


def test_frames_are_decoded_in_the_generators_batches(tiny_bundle: Path) -> None:
    with Generator.open(tiny_bundle, threads=1, max_batch=2) as small:
        result = small.generate(class_ids=[0, 1, 2, 3, 4], steps=3, schedule="cosine")
        frames = step_frames(small, result, [""])
    expected = np.asarray(grid(result.images[None], [""], ""))[_TITLE_HEIGHT:]
    np.testing.assert_array_equal(np.asarray(frames[-1])[_TITLE_HEIGHT:], expected)
