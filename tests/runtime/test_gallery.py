"""Requests from the command line's words, and picture files from results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.runtime import gallery
from fewstep.runtime.errors import OutputError, RequestError
from fewstep.runtime.generator import Generator


def test_class_ids_and_names_mix(generator: Generator) -> None:
    wanted = gallery.conditions(generator, ["2", "Shoe"], None, 3)
    assert wanted.request == {"class_ids": [2, 2, 2, 1, 1, 1]}
    assert wanted.labels == ("bag", "shoe")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["sheo"], "Did you mean 'shoe'"),
        ([], "give --class"),
        (None, "give --class"),
    ],
)
def test_bad_classes(generator: Generator, classes: list[str] | None, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        gallery.conditions(generator, classes, None, 1)


def test_text_comes_from_a_file(text_generator: Generator, tmp_path: Path) -> None:
    np.save(tmp_path / "text.npy", np.ones((2, 3, 12), np.float32))
    wanted = gallery.conditions(text_generator, None, tmp_path / "text.npy", 2)
    assert wanted.request["text"].shape == (4, 3, 12)
    assert wanted.labels == ("text 0", "text 1")


@pytest.mark.parametrize("content", [b"", b"not an array", None])
def test_unreadable_text_file(
    text_generator: Generator, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "text.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestError, match="is not a .npy array"):
        gallery.conditions(text_generator, None, path, 1)


def test_one_image_is_written_as_it_is(generator: Generator, tmp_path: Path) -> None:
    wanted = gallery.conditions(generator, ["0"], None, 1)
    result = generator.generate(**wanted.request, steps=2)
    (path,) = gallery.write(result, wanted, tmp_path / "one.png")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), result.images[0])


def test_a_folder_gets_one_file_per_image(generator: Generator, tmp_path: Path) -> None:
    wanted = gallery.conditions(generator, ["0", "1"], None, 2)
    result = generator.generate(**wanted.request, steps=2, seed=9)
    gallery.write(result, wanted, tmp_path / "images")
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == [
        "shirt-seed-10.png",
        "shirt-seed-9.png",
        "shoe-seed-11.png",
        "shoe-seed-12.png",
    ]
    last = Image.open(tmp_path / "images" / "shoe-seed-12.png")
    np.testing.assert_array_equal(np.asarray(last), result.images[3])


def test_several_images_make_a_grid_that_shows_each(generator: Generator, tmp_path: Path) -> None:
    wanted = gallery.conditions(generator, ["0", "1"], None, 2)
    result = generator.generate(**wanted.request, steps=2)
    (path,) = gallery.write(result, wanted, tmp_path / "grid.png")
    page, scale = np.asarray(Image.open(path)), gallery.scale_for(result)
    for image in result.images:
        tile = image.repeat(scale, 0).repeat(scale, 1)
        assert _contains(page, tile)


def test_trace_has_one_frame_per_step_and_ends_with_the_images(
    generator: Generator, tmp_path: Path
) -> None:
    wanted = gallery.conditions(generator, ["3"], None, 2)
    result = generator.generate(**wanted.request, steps=5)
    path = gallery.write_trace(generator, result, wanted, tmp_path / "trace.gif")
    with Image.open(path) as animation:
        assert getattr(animation, "n_frames", 1) == 5


@pytest.mark.parametrize(
    ("path", "trace"),
    [(Path("images.txt"), None), (Path("image.png"), Path("trace.mp4"))],
)
def test_unknown_kinds_of_output_are_refused(path: Path, trace: Path | None) -> None:
    with pytest.raises(OutputError, match="expected"):
        gallery.check_outputs(path, trace)


def _contains(
    page: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    tile: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
) -> bool:
    height, width = tile.shape[:2]
    corners = np.argwhere((page == tile[0, 0]).all(-1))
    return any(np.array_equal(page[y : y + height, x : x + width], tile) for y, x in corners)
