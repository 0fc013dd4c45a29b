"""``fewstep edit``: pictures on disk, what is written of them, and files that cannot be used."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from fewstep.cli.record import read_record
from fewstep.runtime.generator import Generator

if TYPE_CHECKING:
    from tests.conftest import Terminal


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of 8×8, as the bundle's are."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    return tmp_path / "in.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """White where the box 2,1,5,4 is."""
    found = np.zeros((8, 8), np.uint8)
    found[1:4, 2:5] = 255
    Image.fromarray(found).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def _pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_picture_is_what_python_makes(
    fewstep: Terminal, edit_bundle: Path, picture: Path, mask: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    for how in (["--mask", mask], ["--box", "2,1,5,4"]):
        words = ["edit", edit_bundle, "--image", picture, *how, "--class", "bag", "--seed", 4]
        outcome = fewstep(*words, "--steps", 3, "--blend", "--out", out, "--json")
        assert outcome.code == 0, outcome.err
        with Generator.open(edit_bundle, threads=1) as generator:
            made = generator.edit(
                Image.open(picture), "bag", mask=(2, 1, 5, 4), seed=4, steps=3, blend=True
            )
        assert np.abs(_pixels(out).astype(int) - made.pixels[0]).max() <= 1
        said, record = json.loads(outcome.out), read_record(out)
        expected = {"image": _digest(picture), "fit": "crop", "blend": True}
        if "--mask" in how:
            expected["mask"] = _digest(mask)
        else:
            expected["box"] = [2, 1, 5, 4]
        assert record["edit"] == said["edit"] == expected
        assert (record["class_ids"], record["seeds"], said["box"]) == ([2], [4], None)
        assert said["timings_ms"]["image_encoder"] > 0


def test_several_pictures_make_a_grid_or_a_folder(
    fewstep: Terminal, edit_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    words = ["edit", edit_bundle, "--image", picture, "--strength", 0.5, "--class", "bag", 0]
    words += ["--count", 2, "--steps", 2]
    assert fewstep(*words, "--out", tmp_path / "grid.webp").code == 0
    assert len(read_record(tmp_path / "grid.webp")["seeds"]) == 4
    folder = tmp_path / "folder"
    for _ in range(2):  # again over what is there
        assert fewstep(*words, "--out", folder).code == 0
    assert len([*folder.iterdir()]) == 4
    other = [*words, "--out", folder]
    other[other.index(0.5)] = 0.25
    refused = fewstep(*other)
    assert refused.code == 1
    assert "made otherwise (strength 0.5 there, 0.25 here)" in refused.err


def test_a_picture_grows_and_its_steps_are_a_gif(
    fewstep: Terminal, edit_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    out, gif = tmp_path / "out.png", tmp_path / "steps.gif"
    words = ["edit", edit_bundle, "--image", picture, "--outpaint", "left:4,top:2", "--class", 1]
    words += ["--steps", 2, "--scale", 1, "--out", out, "--trace", gif, "--batch", 1, "--count", 2]
    outcome = fewstep(*words, "--columns", 1)
    assert outcome.code == 0, outcome.err
    assert read_record(out)["edit"]["outpaint"] == {"left": 4, "top": 2, "right": 0, "bottom": 0}
    with Image.open(gif) as image:
        assert image.n_frames % 2 == 0 and image.n_frames >= 2  # type: ignore[attr-defined]
    assert read_record(gif)["edit"] == read_record(out)["edit"]
    alone = ["edit", edit_bundle, "--image", picture, "--outpaint", "left:4,top:2", "--class", 1]
    assert fewstep(*alone, "--steps", 2, "--out", out).code == 0
    assert _pixels(out).shape == (10, 12, 3)
    assert (_pixels(out)[4:, 6:] == _pixels(picture)[2:, 2:]).all()


def test_an_edit_is_not_made_again_from_nothing(
    fewstep: Terminal, edit_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    words = ["--image", picture, "--strength", 1, "--class", 1, "--steps", 1, "--out", out]
    assert fewstep("edit", edit_bundle, *words).code == 0
    again = fewstep("generate", edit_bundle, "--like", out, "--out", tmp_path / "again.png")
    assert again.code == 1
    assert "is an edit: make it again with fewstep edit --like" in again.err


@pytest.mark.parametrize("how", ["--mask", "--box", "--outpaint", "--strength"])
def test_an_edit_is_made_again_of_the_same_image(
    fewstep: Terminal, edit_bundle: Path, picture: Path, mask: Path, tmp_path: Path, how: str
) -> None:
    values = {"--mask": mask, "--box": "2,1,5,4", "--outpaint": "left:4,top:2", "--strength": 0.5}
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    words = ["edit", edit_bundle, "--image", picture, how, values[how], "--class", 2, 1]
    more = ["--fit", "stretch", "--steps", 3, "--seed", 5, "--scale", 2]
    made = fewstep(*words, *more, "--out", one)
    assert made.code == 0, made.err
    like = ["edit", edit_bundle, "--like", one, "--image", picture, "--out", two]
    masked = ["--mask", mask] if how == "--mask" else []
    again = fewstep(*like, *masked)
    assert again.code == 0, again.err
    assert (_pixels(one) == _pixels(two)).all()
    assert read_record(one) == read_record(two)
    assert "next: fewstep edit" in made.out and "--like" in made.out
    assert "next: " not in again.out
    other = fewstep(*like, "--box", "0,0,8,3", "--class", 0, "--count", 2)
    assert other.code == 0, other.err
    record = read_record(two)
    assert (record["edit"]["box"], record["seeds"]) == ([0, 0, 8, 3], [5, 6])
    assert record["settings"] == read_record(one)["settings"]
    assert not {"mask", "outpaint", "strength"} & record["edit"].keys()


def test_an_edit_of_something_else_is_not_made_again(
    fewstep: Terminal, edit_bundle: Path, picture: Path, mask: Path, tmp_path: Path
) -> None:
    out, plain, other = tmp_path / "out.png", tmp_path / "plain.png", tmp_path / "other.png"
    Image.new("RGB", (8, 8), "white").save(other)
    words = ["--image", picture, "--mask", mask, "--class", 1, "--steps", 1, "--out", out]
    assert fewstep("edit", edit_bundle, *words).code == 0
    assert fewstep("generate", edit_bundle, "--class", 1, "--steps", 1, "--out", plain).code == 0
    for like, image, more, said in (
        (out, picture, (), "was made with a mask: give it too, as --mask"),
        (out, picture, ("--mask", other), "other.png is not the mask of"),
        (out, other, ("--mask", mask), "other.png is not what .*out.png was made of"),
        (out, tmp_path / "absent.png", (), "absent.png is no picture.*no such file"),
        (plain, picture, (), "is no edit: make it again with fewstep generate --like"),
        (picture, picture, (), "does not say how it was made"),
    ):
        words = ["edit", edit_bundle, "--like", like, "--image", image, *more]
        refused = fewstep(*words, "--out", tmp_path / "no.png")
        assert refused.code == 1
        assert re.search(said, refused.err), refused.err


def test_a_folder_of_edits_goes_on(
    fewstep: Terminal, edit_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    words = ["edit", edit_bundle, "--image", picture, "--strength", 1, "--class", 1, "--steps", 1]
    words += ["--out", tmp_path / "folder", "--resume", "--json"]
    for count, kept in ((2, 0), (5, 2), (5, 5)):
        outcome = fewstep(*words, "--count", count)
        assert outcome.code == 0, outcome.err
        said = json.loads(outcome.out)
        assert (said["images"], said["kept"]) == (count - kept, kept)


def test_transparency_that_says_nothing_is_noted(
    fewstep: Terminal, edit_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    holed = np.dstack([_pixels(picture), np.full((8, 8), 255, np.uint8)])
    holed[:, 4:, 3] = 0
    Image.fromarray(holed).save(tmp_path / "holed.png")
    words = ["edit", edit_bundle, "--image", tmp_path / "holed.png", "--class", 1, "--steps", 1]
    for how in (["--box", "0,0,3,3"], ["--strength", 0.5], []):
        outcome = fewstep(*words, *how, "--out", tmp_path / "out.png")
        assert outcome.code == 0, outcome.err
        assert ("transparent parts of the image count as white" in outcome.err) == bool(how)


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _bomb(path: Path) -> None:
    """A PNG of a few bytes that says it has 10 thousand million pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    data = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"")) + _chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("--image absent.png --strength 1 --class 1", "absent.png is no picture.*no such file"),
        ("--image folder --strength 1 --class 1", "folder is no picture.*directory"),
        ("--image text.png --strength 1 --class 1", "text.png is no picture"),
        (
            "--image cut.png --strength 1 --class 1",
            "cut.png is no picture that can be read: it is truncated",
        ),
        ("--image bomb.png --strength 1 --class 1", "bomb.png is no picture.*89,478,485 pixels"),
        ("--image in.png --mask absent.png --class 1", "absent.png is no picture"),
        ("--image in.png --mask wide.png --class 1", "as large as the image, 8 × 8, got 9 × 8"),
        ("--image in.png --mask mask.png --box 0,0,1,1 --class 1", "--mask or --box, not both"),
        ("--image in.png --box 0,0,1 --class 1", "--box takes left, top.* got 0,0,1"),
        ("--image in.png --box 0,0,9,1 --class 1", "a box is left, top.*; got '0, 0, 9, 1'"),
        ("--image in.png --box a,b,c,d --class 1", "--box takes left, top, right and bottom"),
        ("--image in.png --outpaint left --class 1", "as left:64,top:32, got 'left'"),
        ("--image in.png --outpaint up:3 --class 1", "unknown side"),
        ("--image in.png --strength 2 --class 1", "at most 1, got 2"),
        ("--image in.png --class 1", "give a mask, a box"),
        ("--image in.png --strength 1", "give --class"),
        ("--image in.png --strength 1 --class sheo", "unknown class"),
        ("--image in.png --strength 1 --text x", "class-conditional"),
        ("--image in.png --strength 1 --class 1 --steps x", "steps"),
        ("--image in.png --strength 1 --class 1 --fit fill", "unknown fit"),
        ("--image in.png --strength 1 --class 1 --out x.bmpp", "expected a folder or a file"),
        ("--image in.png --strength 1 --class 1 --trace x.png", "ending in .gif"),
        (
            "--image in.png --outpaint left:9000 --class 1 --scale 64",
            "576,512 × 512 pixels is too large: use a smaller --scale",
        ),
        ("--image in.png --strength 1 --class 1 --out in.png/x.png", "in.png is a file"),
        ("--image in.png --strength 1 --class 1 --out ./in.png", "in.png is read for the edit"),
        (
            "--image in.png --mask mask.png --class 1 --out mask.png",
            "mask.png is read for the edit",
        ),
    ],
)
def test_bad_words_and_files_are_known_before_engines_load(
    fewstep: Terminal,
    edit_bundle: Path,
    picture: Path,
    mask: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wish: str,
    said: str,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("engines are loaded")

    (tmp_path / "folder").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:-60])
    Image.new("L", (9, 8), 255).save(tmp_path / "wide.png")
    _bomb(tmp_path / "bomb.png")
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Generator, "open", never)
    outcome = fewstep("edit", edit_bundle, *wish.split())
    assert (outcome.code, outcome.err.count("\n")) == (1, 1), outcome.err
    assert re.search(said, outcome.err), outcome.err
    assert sorted(tmp_path.iterdir()) == before


def test_a_bundle_without_encoder_says_what_it_lacks(
    fewstep: Terminal, tiny_bundle: Path, picture: Path
) -> None:
    outcome = fewstep("edit", tiny_bundle, "--image", picture, "--strength", 1, "--class", 1)
    assert outcome.code == 1
    assert "export it again with --encoder" in outcome.err


@pytest.mark.parametrize("name", ["var_bundle", "mar_bundle"])
def test_other_families_edit_too(
    fewstep: Terminal,
    request: pytest.FixtureRequest,
    picture: Path,
    mask: Path,
    tmp_path: Path,
    name: str,
) -> None:
    bundle, gif = request.getfixturevalue(name), tmp_path / "steps.gif"
    words = ["edit", bundle, "--image", picture, "--mask", mask, "--class", 1, "--trace", gif]
    outcome = fewstep(*words, "--out", tmp_path / "out.png")
    assert outcome.code == 0, outcome.err
    size = (8, 8) if name == "var_bundle" else (16, 16)
    assert _pixels(tmp_path / "out.png").shape[:2] == size
    shutil.copy(tmp_path / "out.png", tmp_path / "again.png")
    assert fewstep(*words, "--out", tmp_path / "out.png").code == 0
    assert (_pixels(tmp_path / "out.png") == _pixels(tmp_path / "again.png")).all()
