"""Real images: folders and archives that are read, and every kind that is refused.

The bundle's images are 8×8, of five classes: shirt, shoe, bag, coat, dress.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.calibration.policy.stand_ins import random_images, real_images
from tests.masked import masked_model

from fewstep.calibration.policy.data import SUFFIXES, RealImages, read_images
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import CalibrationError
from fewstep.runtime.families.masked.model import MaskedModel

_NAMES = ("shirt", "shoe", "bag", "coat", "dress")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images as PNG, two in a folder per class id."""
    images, labels = random_images(10)
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = tmp_path / "real" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{row}.png")
    return tmp_path / "real"


def _archive(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


# --- what is read


def test_a_folder_holds_the_pixels_and_the_class_of_each_image(
    folder: Path, model: MaskedModel
) -> None:
    images, labels = random_images(10)
    real = read_images(folder, model, least=10)
    order = np.argsort(labels, kind="stable")
    np.testing.assert_array_equal(real.images, images[order])
    np.testing.assert_array_equal(real.condition, labels[order])
    assert real.images.dtype == np.uint8
    assert real.condition.dtype == np.int32


def test_folders_may_be_called_as_the_classes(folder: Path, model: MaskedModel) -> None:
    by_id = read_images(folder, model, least=10)
    for row, name in enumerate(_NAMES):
        (folder / str(row)).rename(folder / name)
    by_name = read_images(folder, model, least=10)
    assert [np.sum(by_name.condition == each) for each in range(5)] == [2] * 5
    for label in range(5):
        np.testing.assert_array_equal(
            by_name.images[by_name.classes[label]], by_id.images[by_id.classes[label]]
        )


def test_images_of_other_modes_become_rgb(tmp_path: Path, model: MaskedModel) -> None:
    (tmp_path / "3" / "deeper").mkdir(parents=True)
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "3" / "a.png")
    Image.fromarray(np.dstack([grey, grey, grey, 255 - grey])).save(
        tmp_path / "3" / "deeper" / "b.webp", lossless=True, exact=True
    )
    (tmp_path / "3" / "notes.txt").write_text("no image")
    for other in "0124":
        (tmp_path / other).mkdir()
        Image.fromarray(grey).save(tmp_path / other / "a.png")
    real = read_images(tmp_path, model, least=2)
    for image in real.images[3:5]:
        np.testing.assert_array_equal(image, np.dstack([grey] * 3))
    assert (real.images.shape, real.condition.tolist()) == ((6, 8, 8, 3), [0, 1, 2, 3, 3, 4])


def test_a_class_without_images_is_refused(folder: Path, model: MaskedModel) -> None:
    shutil.rmtree(folder / sorted(each.name for each in folder.iterdir())[0])
    with pytest.raises(CalibrationError, match="has no images of 1 of the bundle's 5 classes"):
        read_images(folder, model, least=2)


def test_an_archive_may_be_grey_and_labels_of_any_integer(
    tmp_path: Path, model: MaskedModel
) -> None:
    images, labels = random_images(10)
    grey = images[..., 0]
    real = read_images(
        _archive(tmp_path / "a.npz", images=grey, labels=labels.astype(np.uint8)), model, 10
    )
    np.testing.assert_array_equal(real.images, np.stack([grey] * 3, -1))
    assert real.condition.dtype == np.int32


def test_the_hash_is_of_images_and_labels(tmp_path: Path, model: MaskedModel) -> None:
    images, labels = random_images(10)
    other = images.copy()
    other[3, 2, 1, 0] ^= 1
    found = {
        read_images(_archive(tmp_path / "a.npz", images=i, labels=c), model, 10).sha256
        for i, c in ((images, labels), (other, labels), (images, labels[::-1].copy()))
    }
    assert len(found) == 3


def test_conditions_take_the_classes_that_are_there_in_turn() -> None:
    images, labels = random_images(20)
    kept = labels != 2
    real = RealImages(images[kept], labels[kept], "")
    assert real.conditions(0, 6).tolist() == [0, 1, 3, 4, 0, 1]
    assert real.conditions(6, 3).tolist() == [3, 4, 0]
    assert real.conditions(0, 6).dtype == np.int32


def test_compared_are_images_of_the_same_classes() -> None:
    real = real_images(40)
    wanted = np.array([4, 0, 0, 2, 4, 1], np.int32)
    rows = [real.like(wanted, np.random.default_rng(seed)) for seed in range(20)]
    assert all((real.condition[each] == wanted).all() for each in rows)
    assert len(set(np.concatenate(rows))) > 20  # drawn at random


def test_a_part_has_as_many_of_every_class() -> None:
    images, labels = random_images(40)
    order = np.argsort(labels, kind="stable")
    real = RealImages(images[order], labels[order], "")
    assert np.bincount(real.condition[real.part(15)]).tolist() == [3] * 5
    assert np.bincount(real.condition[real.part(1)]).tolist() == [1] * 5
    assert len(set(real.part(1000))) == 40


def test_text_is_taken_in_turn_and_compared_with_any_image(
    tmp_path: Path, tiny_text_bundle: Path
) -> None:
    model = masked_model(Bundle.read(tiny_text_bundle))
    text = np.random.default_rng(0).standard_normal((10, 3, 12))
    path = _archive(tmp_path / "a.npz", images=random_images(10)[0], text=text)
    real = read_images(path, model, 10)
    np.testing.assert_array_equal(real.conditions(8, 4), text[[8, 9, 0, 1]].astype(np.float32))
    rows = real.like(real.conditions(0, 500), np.random.default_rng(0))
    assert set(rows) == set(range(10))
    assert real.part(4).tolist() == [0, 3, 6, 9]


# --- folders that are refused


_EXPECTED = "expected a folder with a subfolder of images per class, or an .npz"


def _nothing(path: Path) -> None:
    path.rmdir()


def _file(path: Path) -> None:
    path.rmdir()
    path.write_text("text")


def _empty_classes(path: Path) -> None:
    (path / "0").mkdir()
    (path / "1").mkdir()


def _unknown(path: Path) -> None:
    for name in ("0", "5", "hat"):
        (path / name).mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_nothing, f"no such folder or file: .*real; {_EXPECTED}"),
        (_file, f"real is no folder and no .npz file; {_EXPECTED}"),
        (lambda path: None, "has no subfolders: expected one per class"),
        (_empty_classes, r"holds no images \(.png, "),
        (_unknown, r"no class of the bundle is called 5, hat; name the subfolders 0 … 4 or as"),
    ],
)
def test_folders_without_usable_classes_are_refused(
    make: Callable[[Path], None], message: str, tmp_path: Path, model: MaskedModel
) -> None:
    path = tmp_path / "real"
    path.mkdir()
    make(path)
    with pytest.raises(CalibrationError, match=message):
        read_images(path, model, 1)


def test_a_single_picture_is_refused(folder: Path, model: MaskedModel) -> None:
    with pytest.raises(CalibrationError, match=f"0.png is a single picture; {_EXPECTED}"):
        read_images(folder / "0" / "0.png", model, 1)


def test_all_unusable_files_are_named_together(folder: Path, model: MaskedModel) -> None:
    (folder / "0" / "0.png").write_bytes(b"")
    (folder / "1" / "1.png").write_bytes((folder / "1" / "1.png").read_bytes()[:60])
    Image.new("RGB", (9, 8)).save(folder / "2" / "2.png")
    (folder / "3" / "3.png").write_text("this is no image")
    with pytest.raises(CalibrationError) as caught:
        read_images(folder, model, 1)
    text = str(caught.value)
    assert text.startswith(f"{folder}: 4 images cannot be used: ")
    assert all(f"{each}/{each}.png (" in text for each in range(4))
    assert "is 8×9, the bundle's images are 8×8" in text
    assert "5.png" not in text


def test_of_many_unusable_files_twenty_are_named(tmp_path: Path, model: MaskedModel) -> None:
    (tmp_path / "0").mkdir()
    for row in range(33):
        (tmp_path / "0" / f"{row:02}.jpg").write_bytes(b"nothing")
    with pytest.raises(CalibrationError, match="33 images cannot be used.* and 13 more") as caught:
        read_images(tmp_path, model, 1)
    assert str(caught.value).count(".jpg") == 20 * str(caught.value).count("00.jpg")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_damage_of_an_image_file_is_a_traceback(
    suffix: str, tmp_path: Path, model: MaskedModel
) -> None:
    """Bytes changed at random: the image is read with other pixels, or the file is named."""
    buffer, random = io.BytesIO(), np.random.default_rng(1)
    Image.fromarray(random_images(1)[0][0]).save(buffer, Image.registered_extensions()[suffix])
    whole = np.frombuffer(buffer.getvalue(), np.uint8)
    (tmp_path / "0").mkdir()
    for row in range(100):
        damaged = whole.copy()
        damaged[random.integers(len(whole), size=3)] = random.integers(256, size=3)
        cut = random.integers(len(whole)) if row % 3 == 0 else len(whole)
        (tmp_path / "0" / f"{row}{suffix}").write_bytes(damaged[:cut].tobytes())
    with pytest.raises(CalibrationError, match="images cannot be used"):
        read_images(tmp_path, model, 1)


def test_a_folder_does_not_do_for_text(folder: Path, tiny_text_bundle: Path) -> None:
    with pytest.raises(CalibrationError, match="text-conditional: give an .npz"):
        read_images(folder, masked_model(Bundle.read(tiny_text_bundle)), 1)


# --- archives that are refused

_IMAGES, _LABELS = random_images(10)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": None}, "lacks images; it has labels"),
        ({"labels": None, "text": _LABELS}, "lacks labels; it has images, text"),
        ({"images": None, "labels": None}, "lacks images and labels; it has nothing"),
        ({"images": _IMAGES / 255}, r"must be uint8 .* got float64 \[10, 8, 8, 3\]"),
        ({"images": _IMAGES[0, 0]}, r"must be uint8 .* got uint8 \[8, 3\]"),
        ({"images": _IMAGES[:, :4]}, r"are \[4, 8, 3\], the bundle's are \[8, 8, 3\]; resize"),
        ({"images": _IMAGES[..., :1]}, r"are \[8, 8, 1\], the bundle's are"),
        ({"images": _IMAGES[:0], "labels": _LABELS[:0]}, "holds 0 images, at least 6"),
        ({"images": _IMAGES[:5], "labels": _LABELS[:5]}, "5 images, at least 6 .* --rollouts"),
        ({"labels": _LABELS[:9]}, r"10 images need conditions \[10\], got \[9\]"),
        ({"labels": _LABELS[:, None]}, r"10 images need conditions \[10\], got \[10, 1\]"),
        ({"labels": _LABELS + 1}, "labels must be 0 … 4, got 5"),
        ({"labels": _LABELS - 1}, "labels must be 0 … 4, got -1"),
        ({"labels": _LABELS.astype(np.int64) + 2**32}, "labels must be 0 … 4, got"),
        ({"labels": _LABELS.astype(float)}, "labels are float64, expected int32"),
        ({"labels": np.array([{}] * 10, object)}, "is not an array archive"),
    ],
)
def test_archives_that_do_not_fit_are_refused(
    arrays: dict[str, Any], message: str, tmp_path: Path, model: MaskedModel
) -> None:
    """``None`` stands for an array that is left out."""
    whole = {"images": _IMAGES, "labels": _LABELS} | arrays
    given = {name: array for name, array in whole.items() if array is not None}
    with pytest.raises(CalibrationError, match=message):
        read_images(_archive(tmp_path / "real.npz", **given), model, least=6)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 and no more"])
def test_files_that_are_no_archive_are_refused(
    content: bytes, tmp_path: Path, model: MaskedModel
) -> None:
    (tmp_path / "real.npz").write_bytes(content)
    with pytest.raises(CalibrationError, match="is not an array archive"):
        read_images(tmp_path / "real.npz", model, 1)


def test_a_damaged_archive_is_refused(data: Path, tmp_path: Path, model: MaskedModel) -> None:
    with zipfile.ZipFile(data) as archive:
        place = archive.getinfo("images.npy").header_offset + 500
    content = bytearray(data.read_bytes())
    content[place] ^= 0xFF
    (tmp_path / "real.npz").write_bytes(content)
    with pytest.raises(CalibrationError, match="is not an array archive"):
        read_images(tmp_path / "real.npz", model, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (np.zeros((10, 3, 11)), r"need conditions \[10, 3, 12\], got \[10, 3, 11\]"),
        (np.full((10, 3, 12), np.nan), "text states must be finite"),
        (np.full((10, 3, 12), 1e300), "text states must be finite"),
        (np.zeros((10, 3, 12), int), "text are int64, expected float32"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_texts_that_do_not_fit_are_refused(
    text: np.ndarray, message: str, tmp_path: Path, tiny_text_bundle: Path
) -> None:
    path = _archive(tmp_path / "real.npz", images=_IMAGES, text=text)
    with pytest.raises(CalibrationError, match=message):
        read_images(path, masked_model(Bundle.read(tiny_text_bundle)), 1)
