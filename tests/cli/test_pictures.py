"""Picture files from results: one picture, a grid that shows every image, a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import pictures
from fewstep.runtime.errors import OutputError
from fewstep.runtime.generator import Generator

_TITLE_HEIGHT = 15 + 3 * 6


def test_one_image_is_written_as_it_is(generator: Generator, tmp_path: Path) -> None:
    result = generator.generate(class_ids=[0], steps=2)
    pictures.write(result, ["shirt"], tmp_path / "one.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "one.png")), result.images[0])


def test_a_folder_gets_one_file_per_image(generator: Generator, tmp_path: Path) -> None:
    result = generator.generate(class_ids=[0, 0, 1, 1], steps=2, seed=9)
    pictures.write(result, ["shirt", "shoe/slip on"], tmp_path / "images")
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == [
        "shirt-seed-10.png",
        "shirt-seed-9.png",
        "shoe-slip-on-seed-11.png",
        "shoe-slip-on-seed-12.png",
    ]
    last = Image.open(tmp_path / "images" / "shoe-slip-on-seed-12.png")
    np.testing.assert_array_equal(np.asarray(last), result.images[3])


def test_several_images_make_a_grid_that_shows_each(generator: Generator, tmp_path: Path) -> None:
    result = generator.generate(class_ids=[0, 0, 1, 1], steps=2)
    pictures.write(result, ["shirt", "shoe"], tmp_path / "grid.png")
    page, scale = np.asarray(Image.open(tmp_path / "grid.png")), pictures.scale_for(result)
    assert scale == 12  # images of 8 × 8 pixels are brought to 96
    for image in result.images:
        assert _contains(page, image.repeat(scale, 0).repeat(scale, 1))


@pytest.mark.parametrize("steps", [1, 5])
def test_steps_are_those_asked_for(generator: Generator, steps: int) -> None:
    """Tokens have a row more, for the end."""
    assert pictures.steps_of(generator.generate(class_ids=[0], steps=steps)) == steps


def test_grid_size_follows_from_its_parts() -> None:
    page = pictures.grid(np.zeros((2, 3, 8, 10, 3), np.uint8), ["", ""], "", scale=2)
    assert page.size == (2 * 6 + 3 * (20 + 6), _TITLE_HEIGHT + 2 * (16 + 6))


def test_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        pictures.save(Image.new("RGB", (4, 4)), tmp_path / "file" / "image.png")


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="expected a folder or a file ending in .png, .jpg"):
        pictures.check_suffix(Path("images.txt"))
    (tmp_path / "folder.v2").mkdir()
    for name in ("image.PNG", "image.webp", "images", tmp_path / "folder.v2"):
        pictures.check_suffix(Path(name))


def _contains(
    page: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    tile: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
) -> bool:
    height, width = tile.shape[:2]
    corners = np.argwhere((page == tile[0, 0]).all(-1))
    return any(np.array_equal(page[y : y + height, x : x + width], tile) for y, x in corners)
