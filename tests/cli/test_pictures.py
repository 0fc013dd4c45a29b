"""Picture files: names that never collide or escape, records, sizes that formats take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import pictures
from fewstep.cli.order import Order
from fewstep.cli.record import read_record
from fewstep.cli.sheet import Sheet
from fewstep.runtime.errors import OutputError, RequestError

_UGLY = (
    *("crane", "crane", "Crane", "CRANE", "a/b", "a b", "a\\b", "..", ".", "", " ", "CON", "nul."),
    *("x" * 255, "x" * 256, "恤" * 300, "trailing...", "-rf", "~", "$HOME", "new\nline", "\x00"),
    *("a:b", "a*b?", "\u202egnp", "café", "cafe\u0301", "\ud800", "class 3", "seed-1"),
)


def test_names_of_files_neither_collide_nor_escape() -> None:
    count = len(_UGLY)
    order = Order(tuple(range(count)), (5,) * count, _UGLY)
    names = [pictures.file_name(order, k, 3) for k in range(count)]
    assert len({name.casefold() for name in names}) == count
    for name in names:
        assert Path(name).name == name and name.startswith("class-0")
        assert len(name.encode()) < 150 and name.endswith("-seed-5.png")
        assert not set(name) & set('/\\:*?"<>|\n\x00 $~')


def test_names_sort_by_class_and_show_it() -> None:
    order = Order((7, 7, 123), (0, 1, 2), ("ankle boot", "ankle boot", "class 123"))
    names = [pictures.file_name(order, k, 4) for k in range(3)]
    assert names == [
        "class-0007-ankle-boot-seed-0.png",
        "class-0007-ankle-boot-seed-1.png",
        "class-0123-seed-2.png",
    ]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp"])
def test_a_picture_says_how_it_was_made(tmp_path: Path, suffix: str) -> None:
    record = {"bundle": {"name": "恤"}, "settings": {"guidance": (0.0, 0.1)}, "seeds": [2**64 - 1]}
    path = tmp_path / f"x{suffix}"
    pictures.save(Image.new("RGB", (4, 4)), path, record)
    expected = record | {"settings": {"guidance": [0.0, 0.1]}}
    assert read_record(path) == expected


def test_what_does_not_fit_a_jpeg_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"bundle": {}, "settings": {}, "seeds": list(range(20_000))}
    pictures.save(Image.new("RGB", (4, 4)), tmp_path / "x.jpg", record)
    assert "a PNG can" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["nothing", "other", "text", "absent", "folder"])
def test_pictures_that_say_nothing_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.png"
    if content == "nothing":
        Image.new("RGB", (4, 4)).save(path)
    elif content == "other":
        pictures.save(Image.new("RGB", (4, 4)), path, {"seeds": [1]})
    elif content == "text":
        path.write_text("no picture")
    elif content == "folder":
        path.mkdir()
    with pytest.raises(RequestError, match="x.png (does not say|is no picture)"):
        read_record(path)


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


@pytest.mark.parametrize(("suffix", "images"), [(".webp", 500), (".jpg", 1_800), (".png", 99_999)])
def test_pictures_too_large_for_their_format_are_refused(suffix: str, images: int) -> None:
    sheet = Sheet.of([""], images, (32, 32), [""], columns=1 if images < 9_000 else 300, scale=1)
    with pytest.raises(OutputError, match="too large; name a folder as --out"):
        pictures.check_page(sheet, Path(f"x{suffix}"))
    pictures.check_page(Sheet.of([""], 100, (32, 32), [""]), Path(f"x{suffix}"))


def test_titles_name_all_settings() -> None:
    settings = {"steps": 8, "guidance": (0.0, 2.0), "heat": (1.0, 1.0), "ratios": (0.9, 0.5, 0.0)}
    order = Order((1, 1), (4, 5), ("a", "a"), 2)
    title = "2 images, steps 8, guidance 0:2, heat 1, ratios 0.9 … 0, seeds 4 … 5"
    assert pictures.title_of(order, settings) == title


def test_enlarged_pixels_are_squares() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = np.asarray(pictures.enlarged(pixels, 3))
    np.testing.assert_array_equal(large, pixels.repeat(3, 0).repeat(3, 1))
    np.testing.assert_array_equal(np.asarray(pictures.enlarged(pixels, 1)), pixels)
