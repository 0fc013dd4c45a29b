"""Picture files: names that never collide or escape, records, sizes that formats take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fewstep.cli import pictures
from fewstep.cli.order import Order
from fewstep.cli.produce import shown_labels
from fewstep.cli.record import difference, read_record, same
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


_RECORD: dict[str, Any] = {
    "fewstep": "0.9",
    "bundle": {"name": "恤", "sha256": "0" * 64},
    "class_ids": [3, 3, 0, 0],
    "classes": ["a", "a", "恤", "恤"],
    "seeds": [5, 6, 7, 2**64 - 1],
    "settings": {"guidance": [0.0, 0.1]},
    "precision": "fp32",
    "backend": "onnxruntime",
    "device": "cpu",
}
"""As pictures had it before scale, columns and each were in it."""

_NEWER = _RECORD | {"scale": None, "columns": 2, "each": 2}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp"])
@pytest.mark.parametrize("record", [_RECORD, _NEWER])
def test_a_picture_says_how_it_was_made(
    tmp_path: Path, suffix: str, record: dict[str, Any]
) -> None:
    path = tmp_path / f"x{suffix}"
    pictures.save(Image.new("RGB", (4, 4)), path, record)
    assert read_record(path) == record


@pytest.mark.parametrize(
    "edit",
    [
        {"seeds": [1, 2, 3]},
        {"seeds": [1, 2, 3, 4, 5]},
        {"seeds": []},
        {"seeds": [], "class_ids": [], "classes": []},
        {"seeds": 5},
        {"seeds": [1, 2, 3, -1]},
        {"seeds": [1, 2, 3, 2**64]},
        {"seeds": [1, 2, 3, "4"]},
        {"seeds": [1, 2, 3, 4.0]},
        {"class_ids": 5},
        {"class_ids": [1]},
        {"class_ids": [3, 3, 0, "bag"]},
        {"class_ids": [3, 3, 0, -1]},
        {"class_ids": None},
        {"classes": ["a"]},
        {"texts": [0, 0, 1, 1], "text": "0" * 64},
        {"class_ids": None, "texts": [0, 0, 1, 1]},
        {"bundle": "x"},
        {"bundle": []},
        {"bundle": {"name": "x"}},
        {"bundle": {"name": 5, "sha256": "0" * 64}},
        {"precision": None},
        {"precision": "fp33"},
        {"settings": []},
        {"backend": 1},
        {"scale": 0},
        {"scale": 10**9},
        {"columns": 0},
        {"each": 0},
        {"each": 3},
        {"each": 4},
        {"more": 1},
    ],
)
def test_records_that_are_not_ours_are_refused_in_one_line(
    tmp_path: Path, edit: dict[str, Any]
) -> None:
    path = tmp_path / "x.png"
    pictures.save(Image.new("RGB", (4, 4)), path, _NEWER | edit)
    with pytest.raises(RequestError, match="x.png does not say how it was made.* was edited"):
        read_record(path)
    for name in edit.keys() & {"precision", "bundle", "class_ids", "seeds"}:
        record = {key: value for key, value in _NEWER.items() if key != name}
        pictures.save(Image.new("RGB", (4, 4)), path, record)
        with pytest.raises(RequestError, match="does not say how it was made"):
            read_record(path)


@pytest.mark.parametrize("text", ["[]", "5", "null", '"x"', "{", "[" * 5_000, "NaN", ""])
def test_texts_that_are_no_record_are_refused(tmp_path: Path, text: str) -> None:
    info = PngInfo()
    info.add_text("fewstep", text)
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png", pnginfo=info)
    with pytest.raises(RequestError, match="does not say how it was made"):
        read_record(tmp_path / "x.png")


def test_the_size_of_pixels_is_compared_where_both_say_it() -> None:
    for scale, other in ((None, 2), (2, 3), (2, None)):
        one, two = _NEWER | {"scale": scale}, _NEWER | {"scale": other}
        assert not same(one, two)
        assert difference(one, two) == f"scale {other or 1} there, {scale or 1} here"
        assert same(one, _RECORD) and same(one, one)
    assert same(_NEWER | {"scale": 1}, _NEWER)


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
    for name in ("images.txt", "images", "folder.v2", tmp_path / "folder.v2", tmp_path):
        with pytest.raises(OutputError, match="expected a file ending in .png, .html$"):
            pictures.check_suffix(Path(name), (".png", ".html"), folder=False)
    pictures.check_suffix(Path("x.HTML"), (".png", ".html"), folder=False)


@pytest.mark.parametrize(("suffix", "images"), [(".webp", 500), (".jpg", 1_800), (".png", 99_999)])
def test_pictures_too_large_for_their_format_are_refused(suffix: str, images: int) -> None:
    sheet = Sheet.of([""], images, (32, 32), [""], columns=1 if images < 9_000 else 300, scale=1)
    with pytest.raises(OutputError, match="too large; name a folder as --out"):
        pictures.check_page(sheet, Path(f"x{suffix}"))
    pictures.check_page(Sheet.of([""], 100, (32, 32), [""]), Path(f"x{suffix}"))


def test_too_many_images_for_a_page_are_refused_before_they_are_listed() -> None:
    for count in (10**7, 10**12, 10**30):
        with pytest.raises(OutputError, match="x.png: 1.*0 images are too many for one picture"):
            pictures.check_count(count, (8, 8), 1, Path("x.png"))
    for each, columns in ((1, None), (100, 10)):  # what a page takes is never refused so
        sheet = Sheet.of(["a"] * (100 // each), each, (256, 256), [""], columns=columns)
        pictures.check_page(sheet, Path("x.png"))
        pictures.check_count(100, (256, 256), 1, Path("x.png"))


def test_what_is_drawn_of_a_long_text_is_its_beginning() -> None:
    order = Order((0, 1), (0, 1), ("x" * 5_000, "short"))
    long, short = shown_labels(order)
    assert len(long) <= 300 and long[:-1] == "x" * (len(long) - 1) and long.endswith("…")
    assert short == "short" and pictures.drawn("x" * 300) == "x" * 300


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
