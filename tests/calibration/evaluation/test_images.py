"""Sets of images: folders and archives, sizes, and pictures that cannot be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.calibration.evaluation.conftest import Pixels, blobs, write_pictures

from fewstep.calibration.evaluation.images import open_images
from fewstep.runtime.errors import CalibrationError


def _all(path: Path, batch: int = 4, resize: int | None = None) -> Pixels:
    return np.concatenate(list(open_images(path, resize).batches(batch)))


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_a_folder_is_read_with_all_folders_in_it_in_order(tmp_path: Path, batch: int) -> None:
    pictures = blobs(7, seed=0)
    write_pictures(tmp_path, pictures, classes=3)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_text("no picture")
    expected = np.concatenate([pictures[row::3] for row in range(3)])
    np.testing.assert_array_equal(_all(tmp_path, batch), expected)
    assert open_images(tmp_path).size == (16, 16)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("batch", [1, 4, 100])
def test_an_archive_is_read_as_a_stream(tmp_path: Path, save: object, batch: int) -> None:
    pictures = blobs(7, seed=1)
    save(tmp_path / "a.npz", pictures)  # type: ignore[operator]
    opened = open_images(tmp_path / "a.npz")
    assert (opened.count, opened.size) == (7, (16, 16))
    batches = list(opened.batches(batch))
    assert [len(each) for each in batches[:-1]] == [batch] * (len(batches) - 1)
    np.testing.assert_array_equal(np.concatenate(batches), pictures)


def test_grey_pictures_become_colour(tmp_path: Path) -> None:
    grey = blobs(2, seed=2)[..., 0]
    np.savez(tmp_path / "grey.npz", images=grey)
    np.savez(tmp_path / "one.npz", arr_0=grey[..., None])
    (tmp_path / "folder").mkdir()
    for number, each in enumerate(grey):
        Image.fromarray(each).save(tmp_path / "folder" / f"{number}.png")
    expected = np.repeat(grey[..., None], 3, 3)
    for name in ("grey.npz", "one.npz", "folder"):
        np.testing.assert_array_equal(_all(tmp_path / name), expected)


def test_pictures_of_several_sizes_are_refused_and_resized_on_request(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", blobs(3, seed=3))
    write_pictures(tmp_path / "b", blobs(1, seed=3, side=32))
    with pytest.raises(CalibrationError, match=r"2 sizes: 16×16 \(3, such as a/.*--resize"):
        open_images(tmp_path)
    assert _all(tmp_path, resize=8).shape == (4, 8, 8, 3)


def test_resizing_cuts_the_middle_square_and_is_antialiased(tmp_path: Path) -> None:
    """Stripes of one pixel become their mean, and what lies beyond the middle is gone."""
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48] = np.where(np.arange(32)[:, None, None] % 2, 255, 0)
    np.savez(tmp_path / "wide.npz", wide[None])
    Image.fromarray(wide).save(tmp_path / "wide.png")
    (tmp_path / "folder").mkdir()
    shutil.move(tmp_path / "wide.png", tmp_path / "folder")
    for name in ("wide.npz", "folder"):
        found = _all(tmp_path / name, resize=8)
        assert found.shape == (1, 8, 8, 3)
        assert abs(found.astype(int) - 127).max() < 30


def test_pictures_that_cannot_be_read_are_all_named(tmp_path: Path) -> None:
    write_pictures(tmp_path, blobs(3, seed=4))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(
        CalibrationError, match=r"b/text\.png \(cannot identify image file\)"
    ) as bad:
        open_images(tmp_path)
    assert "empty.jpg" in str(bad.value) and "\n" not in str(bad.value)


def test_a_picture_cut_short_is_named_when_it_is_decoded(tmp_path: Path) -> None:
    write_pictures(tmp_path, blobs(3, seed=4))
    Image.fromarray(blobs(1, seed=5, side=64)[0]).save(tmp_path / "a.png")
    for file in tmp_path.glob("0*.png"):
        file.unlink()
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(CalibrationError, match=r"cannot be read: a\.png"):
        _all(tmp_path)


def test_archives_that_hold_no_images_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", mu=np.zeros(3))
    np.savez(tmp_path / "float.npz", np.zeros((2, 4, 4, 3)))
    np.savez(tmp_path / "planes.npz", np.zeros((2, 3, 4, 4), np.uint8))
    np.savez(tmp_path / "none.npz", np.zeros((0, 4, 4, 3), np.uint8))
    (tmp_path / "text.npz").write_text("no archive")
    messages = {
        "other.npz": "lacks arr_0: it holds mu",
        "float.npz": r"arr_0 is float64 \[2, 4, 4, 3\], expected uint8",
        "planes.npz": r"arr_0 is uint8 \[2, 3, 4, 4\], expected uint8 \[n, H, W, 3\]",
        "none.npz": "is empty",
        "text.npz": "is no archive",
    }
    for name, message in messages.items():
        with pytest.raises(CalibrationError, match=message):
            open_images(tmp_path / name)


def test_a_damaged_archive_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, blobs(40, seed=6))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match="is no archive of images"):
        _all(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "absent is not there: expected a folder of pictures"),
        ("a.png", "a.png is a single picture: expected a folder of pictures .* or an .npz"),
        ("a.txt", "a.txt is no folder and no .npz file: expected a folder of pictures"),
        ("empty", "holds no pictures"),
    ],
)
def test_what_is_no_set_of_images_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    for file in ("a.png", "a.txt"):
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(CalibrationError, match=message):
        open_images(tmp_path / name)
