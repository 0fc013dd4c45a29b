"""``fewstep generate``: from words to files, written as batches finish, and made again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from fewstep.cli.pictures import save
from fewstep.cli.record import read_record
from fewstep.runtime.generator import Generator

if TYPE_CHECKING:
    from tests.conftest import Terminal


def _pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def _same_files(one: Path, other: Path) -> bool:
    return {each.name: each.read_bytes() for each in one.iterdir()} == {
        each.name: each.read_bytes() for each in other.iterdir()
    }


@pytest.mark.parametrize(
    "wish",
    [
        "--class sheo",
        "--class 99",
        "--text nothing.npy",
        "--class 1 --out x.bmpp",
        "--class 1 --steps x",
        "--class 1 --out nothing/file/x.png",
        "--class 1 --trace nothing/file/x.gif",
        "--class 1 --out nothing/file/folder",
        "--class 1 --resume",
        "--class 1 --shard 1/2",
        "--class 1 --count 3 --shard 4/3 --out f",
        "--class 1 --count 900 --columns 1 --out x.webp",
        "--like nothing.png",
        "--class 1 --count 1000000000000 --out f",
        "--class 1 --count 1000000000000 --shard 1/4 --out f",
        "--class random --count 1000000000000000000000000000000 --out f",
        "--class balanced --count 1000000000000 --out f --trace x.gif",
        "--class all --count 10000000 --out x.png",
        "--class 1 --out folder.b",
        "",
    ],
)
def test_bad_words_are_known_before_engines_load(
    fewstep: Terminal,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wish: str,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("engines are loaded")

    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "file").touch()
    (tmp_path / "folder.b").mkdir()
    (tmp_path / "folder.b" / "bundle.json").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Generator, "open", never)
    outcome = fewstep("generate", tiny_bundle, *wish.split())
    assert (outcome.code, outcome.err.count("\n")) == (1, 1), outcome.err
    assert "engines are loaded" not in outcome.err
    assert {each.name for each in tmp_path.iterdir()} == {"nothing", "folder.b"}
    assert [each.name for each in (tmp_path / "folder.b").iterdir()] == ["bundle.json"]


def test_a_picture_makes_itself_again(fewstep: Terminal, tiny_bundle: Path, tmp_path: Path) -> None:
    wish = ["--class", "bag", 0, "--count", 2, "--seed", 5, "--steps", 3, "--guidance", "0:2"]
    names = ("x.png", "y.webp", "trace.gif")
    picture, other, gif = (tmp_path / name for name in names)
    made = fewstep("generate", tiny_bundle, *wish, "--out", picture, "--trace", gif)
    assert made.code == 0, made.err
    for like in (picture, gif):
        again = fewstep("generate", tiny_bundle, "--like", like, "--out", tmp_path / "again.png")
        assert again.code == 0, again.err
        assert (tmp_path / "again.png").read_bytes() == picture.read_bytes()
    assert fewstep("generate", tiny_bundle, "--like", picture, "--out", other).code == 0
    assert read_record(other) == read_record(picture)
    record = read_record(picture)
    assert record["class_ids"] == [2, 2, 0, 0] and record["seeds"] == [5, 6, 7, 8]
    assert record["classes"] == ["bag", "bag", "shirt", "shirt"]
    assert record["settings"]["steps"] == 3 and record["settings"]["guidance"] == [0, 2]


@pytest.mark.parametrize(
    "wish",
    [
        "--class 3 --scale 3",
        "--class 3 --count 3 --scale 2 --columns 2",
        "--class 3 3",
        "--class 3 3 1 1 --count 1 --columns 1",
        "--class 2 1 --count 2 --scale 1",
        "--class random --count 5 --columns 4",
    ],
)
def test_a_picture_made_again_has_its_size_and_layout(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path, wish: str
) -> None:
    one, two, gif = tmp_path / "one.png", tmp_path / "two.png", tmp_path / "x.gif"
    words = ["generate", tiny_bundle, "--steps", 1, "--seed", 5, *wish.split()]
    assert fewstep(*words, "--out", one, "--trace", gif).code == 0
    for like in (one, gif):
        assert fewstep("generate", tiny_bundle, "--like", like, "--out", two).code == 0
        assert one.read_bytes() == two.read_bytes()
    given = ["--like", one, "--scale", 5, "--columns", 1]
    assert fewstep("generate", tiny_bundle, *given, "--out", two).code == 0
    assert (read_record(two)["scale"], read_record(two)["columns"]) == (5, 1)


def test_a_folder_has_images_of_one_size(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    wish = ["generate", tiny_bundle, "--class", 1, 2, "--steps", 1, "--out", tmp_path / "f"]
    assert fewstep(*wish).code == 0
    assert fewstep(*wish, "--resume", "--scale", 1).code == 0
    refused = fewstep(*wish, "--resume", "--scale", 3)
    assert refused.code == 1 and "scale 1 there, 3 here" in refused.err
    for file in (tmp_path / "f").iterdir():  # of a version that did not say it
        record = read_record(file)
        older = {name: record[name] for name in record if name not in ("scale", "columns", "each")}
        save(Image.open(file), file, older)
    assert "nothing left to make" in fewstep(*wish, "--resume").out


def test_what_is_given_beside_like(fewstep: Terminal, tiny_bundle: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    assert fewstep("generate", tiny_bundle, "--class", 3, "--steps", 3, "--out", one).code == 0
    other = fewstep("generate", tiny_bundle, "--like", one, "--steps", 2, "--out", two)
    assert other.code == 0
    assert read_record(two)["settings"] == read_record(one)["settings"] | {"steps": 2}


@pytest.mark.parametrize(
    ("given", "ids", "seeds", "each"),
    [
        (["--class", 1], [1, 1], [5, 6], 2),
        (["--class", 1, "--seed", 0], [1, 1], [0, 1], 2),
        (["--seed", 0], [3, 3, 4, 4], [0, 1, 2, 3], 2),
        (["--count", 1], [3, 4], [5, 6], 1),
        (["--count", 3, "--seed", 1], [3, 3, 3, 4, 4, 4], [1, 2, 3, 4, 5, 6], 3),
        (["--class", "balanced", "--count", 2], [0, 1], [5, 6], 1),
    ],
)
def test_what_to_make_may_be_given_beside_like(
    fewstep: Terminal,
    tiny_bundle: Path,
    tmp_path: Path,
    given: list[object],
    ids: list[int],
    seeds: list[int],
    each: int,
) -> None:
    """As the command of the picture makes it with these words in the place of its own."""
    one, two, plain = (tmp_path / f"{name}.png" for name in ("one", "two", "plain"))
    wish = ["generate", tiny_bundle, "--out"]
    settings = ["--steps", 1, "--guidance", 2]
    first = ["--class", 3, 4, "--count", 2, "--seed", 5]
    assert fewstep(*wish, one, *settings, *first).code == 0
    other = fewstep(*wish, two, "--like", one, *given)
    assert other.code == 0, other.err
    record = read_record(two)
    assert (record["class_ids"], record["seeds"], record["each"]) == (ids, seeds, each)
    assert record["settings"] == read_record(one)["settings"]
    words: dict[str, list[object]] = {"--class": [3, 4], "--count": [2], "--seed": [5]}
    words |= {str(given[k]): [given[k + 1]] for k in range(0, len(given), 2)}
    spelled = [word for name, values in words.items() for word in (name, *values)]
    assert fewstep(*wish, plain, *settings, *spelled).code == 0
    assert plain.read_bytes() == two.read_bytes()


def test_a_picture_of_other_weights_is_said(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "x.png"
    assert fewstep("generate", tiny_bundle, "--class", 3, "--out", picture).code == 0
    record = read_record(picture)
    record["bundle"]["sha256"] = "0" * 64
    save(Image.open(picture), picture, record)
    again = fewstep("generate", tiny_bundle, "--like", picture, "--out", tmp_path / "y.png")
    assert again.code == 0 and "of other weights" in again.err


def test_pictures_of_texts(fewstep: Terminal, tiny_text_bundle: Path, tmp_path: Path) -> None:
    text, other = tmp_path / "text.npy", tmp_path / "other.npy"
    np.save(text, np.ones((2, 3, 12), np.float32))
    np.save(other, np.zeros((2, 3, 12), np.float32))
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    made = fewstep("generate", tiny_text_bundle, "--text-file", text, "--count", 2, "--out", one)
    assert made.code == 0, made.err
    like = ["generate", tiny_text_bundle, "--like", one, "--out", two]
    assert fewstep(*like, "--text-file", text).code == 0
    assert one.read_bytes() == two.read_bytes()
    assert "not those of the picture" in fewstep(*like, "--text-file", other).err
    absent = "error: give the text states of the picture too: --text-file FILE.npy\n"
    assert fewstep(*like).err == absent
    record = read_record(one)
    for rows, seeds in (([0, 0, 1, 9], [0, 1, 2, 3]), ([10**30], [0])):
        save(Image.open(one), one, record | {"texts": rows, "seeds": seeds, "each": 1})
        assert "not those of the picture" in fewstep(*like, "--text-file", text).err


def test_a_picture_of_the_other_kind_is_refused(
    fewstep: Terminal, tiny_bundle: Path, tiny_text_bundle: Path, tmp_path: Path
) -> None:
    text, one, two = (tmp_path / name for name in ("text.npy", "one.png", "two.png"))
    np.save(text, np.ones((1, 3, 12), np.float32))
    assert fewstep("generate", tiny_bundle, "--class", 1, "--out", one).code == 0
    assert fewstep("generate", tiny_text_bundle, "--text-file", text, "--out", two).code == 0
    for bundle, like, said in (
        (tiny_bundle, two, "the picture is of texts, this bundle makes images of classes"),
        (tiny_text_bundle, one, "the picture is of classes, this bundle makes images of texts"),
    ):
        refused = fewstep("generate", bundle, "--like", like)
        assert (refused.code, refused.err) == (1, f"error: {said}\n")


def test_a_folder_is_the_same_whole_in_shards_and_continued(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    wish = ["generate", tiny_bundle, "--class", "random", "--count", 11, "--steps", 2, "--out"]
    whole, shards, parts = (tmp_path / name for name in ("whole", "shards", "parts"))
    assert fewstep(*wish, whole).code == 0
    assert len(list(whole.iterdir())) == 11
    for shard in ("2/3", "3/3", "1/3"):
        assert fewstep(*wish, shards, "--shard", shard, "--batch", 2).code == 0
    assert _same_files(whole, shards)
    shutil.copytree(whole, parts)
    for name in sorted(each.name for each in parts.iterdir())[::2]:
        (parts / name).unlink()
    times = {each.name: each.stat().st_mtime_ns for each in parts.iterdir()}
    summary = json.loads(fewstep(*wish, parts, "--resume", "--json").out)
    assert (summary["images"], summary["kept"]) == (6, 5)
    assert len(summary["files"]) == 6 and len(summary["seeds"]) == 11
    assert _same_files(whole, parts)
    assert all((parts / name).stat().st_mtime_ns == when for name, when in times.items())
    assert "nothing left to make: all 11 images" in fewstep(*wish, parts, "--resume").out


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--steps", "3", "steps 2 there, 3 here"), ("--guidance", "1", "guidance")],
)
def test_a_folder_of_other_settings_is_not_continued(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path, option: str, value: str, said: str
) -> None:
    wish = ["generate", tiny_bundle, "--class", 1, 2, "--out", tmp_path / "f"]
    assert fewstep(*wish, "--steps", 2).code == 0
    settings = {"--steps": "2", option: value}
    given = [word for pair in settings.items() for word in pair]
    refused = fewstep(*wish, *given, "--resume")
    assert refused.code == 1 and "was made otherwise" in refused.err and said in refused.err


def test_a_foreign_file_in_the_place_of_an_image_is_kept(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    wish = ["generate", tiny_bundle, "--class", 1, "--out", tmp_path / "f", "--resume"]
    assert fewstep(*wish).code == 0
    (file,) = (tmp_path / "f").iterdir()
    Image.new("RGB", (4, 4)).save(file)
    refused = fewstep(*wish)
    assert refused.code == 1 and "remove it, or choose another folder" in refused.err
    assert _pixels(file).shape == (4, 4, 3)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_done_stays_when_a_run_is_ended(
    tiny_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "f"
    wish = ["--class", "balanced", "--count", "5000", "--steps", "16", "--out", str(folder)]
    command = [sys.executable, "-m", "fewstep", "generate", str(tiny_bundle), *wish, "--batch", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        waited = time.monotonic()
        while len(list(folder.glob("*.png"))) < 3:
            assert process.poll() is None and time.monotonic() - waited < 300
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert process.returncode in (130, 143)
    done = list(folder.iterdir())
    assert f"{len(done):,} of 5,000 images are in {folder}; go on with: " in said
    assert said.partition("go on with: ")[2].splitlines()[0].endswith("--batch 1 --resume")
    assert all(read_record(each)["settings"]["steps"] == 16 for each in done)
    assert not [each for each in done if each.name.startswith(".")]


def test_json_says_what_was_made(fewstep: Terminal, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    shown = fewstep("generate", tiny_bundle, "--class", "bag", "--steps", 3, "--out", out, "--json")
    summary = json.loads(shown.out)
    assert summary["files"] == [str(out)]
    assert (summary["class_ids"], summary["classes"], summary["seeds"]) == ([2], ["bag"], [0])
    assert summary["settings"]["steps"] == 3 and summary["settings"].keys() >= {"schedule"}
    assert summary["compile_seconds"] >= 0 and summary["timings_ms"]["total"] > 0


def test_scale_and_columns(fewstep: Terminal, tiny_bundle: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.png"
    assert fewstep("generate", tiny_bundle, "--class", 1, "--scale", 3, "--out", one).code == 0
    assert _pixels(one).shape == (24, 24, 3)
    sizes = {}
    for columns in (2, 6):
        out = tmp_path / f"{columns}.png"
        wish = ["--class", 1, "--count", 6, "--columns", columns, "--scale", 8, "--out", out]
        assert fewstep("generate", tiny_bundle, *wish).code == 0
        sizes[columns] = _pixels(out).shape
    assert sizes[2][0] > sizes[6][0]


def test_two_classes_of_one_name_are_told_apart(
    fewstep: Terminal, bundle_copy: Path, tmp_path: Path
) -> None:
    manifest = json.loads((bundle_copy / "bundle.json").read_text())
    names = ["tench, Tinca tinca", "crane", "..", "crane", "crane/x"]
    manifest["model"]["condition"]["class_names"] = names
    (bundle_copy / "bundle.json").write_text(json.dumps(manifest))
    refused = fewstep("generate", bundle_copy, "--class", "crane")
    assert (refused.code, refused.err) == (1, "error: crane is class 1 and 3: give the number\n")
    out = tmp_path / "f"
    made = fewstep("generate", bundle_copy, "--class", "1,3,tench, Tinca tinca", "..", "--out", out)
    assert made.code == 0, made.err
    assert sorted(each.name for each in out.iterdir()) == [
        *("class-0-tench-seed-2.png", "class-1-crane-1-seed-0.png"),
        *("class-2-seed-3.png", "class-3-crane-3-seed-1.png"),
    ]
    assert {each.name for each in tmp_path.iterdir()} == {"copy", "f"}


def test_readmes_trace_shows_its_whole_caption(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    gif = tmp_path / "x.gif"
    wish = ["--class", 1, "--steps", 4, "--out", tmp_path / "x.png", "--trace", gif]
    assert fewstep("generate", tiny_bundle, *wish).code == 0
    with Image.open(gif) as animation:
        widths = set()
        for frame in range(4):
            animation.seek(frame)
            ink = np.asarray(animation.convert("L"))[:26] < 128
            widths.add(animation.size)
            assert ink.any() and not ink[:, -4:].any()
    assert len(widths) == 1
