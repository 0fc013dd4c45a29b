"""``fewstep compare``: rows, their images and times, what is left out, and both kinds of sheet."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from fewstep.runtime.generator import Generator

if TYPE_CHECKING:
    from tests.conftest import Terminal

_TWO = ("--class", "1", "2", "--steps", "2", "4", "--guidance", "2", "--runs", "1")


def _json(fewstep: Terminal, *arguments: object) -> dict[str, Any]:
    found = fewstep("compare", *arguments, "--json")
    assert found.code == 0, found.err
    parsed: dict[str, Any] = json.loads(found.out)
    return parsed


def _embedded(file: Path) -> list[np.ndarray]:
    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", file.read_text("utf-8"))
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in found]


def test_a_page_holds_every_image_of_every_row(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path, generator: Generator
) -> None:
    """The same seeds and classes in all rows, and the images that ``generate`` makes."""
    place = tmp_path / "sheet.html"
    found = _json(fewstep, tiny_bundle, *_TWO, "--seed", 5, "--out", place)
    assert [row["name"] for row in found["rows"]] == ["steps 2", "steps 4"]
    assert all(row["median_ms"] > 0 and row["runs"] == 1 for row in found["rows"])
    assert [row["settings"]["steps"] for row in found["rows"]] == [2, 4]
    images = _embedded(place)
    expected = [
        generator.generate(class_ids=[1, 2], seed=5, steps=steps, guidance=2).images
        for steps in (2, 4)
    ]
    np.testing.assert_array_equal(np.stack(images), np.concatenate(expected))
    text = place.read_text("utf-8")
    assert "seeds 5 … 6" in text and "http" not in text


def test_a_picture_has_a_row_for_each_combination_and_a_verdict_that_runs(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = fewstep(
        "compare", tiny_bundle, *_TWO, "--schedule", "cosine", "linear", "--out", "a.png"
    )
    assert found.code == 0, found.err
    names = [f"steps {steps}, schedule {name}" for steps in (2, 4) for name in ("cosine", "linear")]
    assert all(name in found.out for name in names)
    assert re.search(
        r"fastest: steps \d.* ms an image, \d+\.\d × as fast as the slowest", found.out
    )
    Image.open("a.png").verify()
    after = next(line for line in found.out.splitlines() if line.startswith("next: "))
    words = shlex.split(after.removeprefix("next: "))
    assert words[:2] == ["fewstep", "generate"]
    assert fewstep(*words[1:]).code == 0


def test_bundles_and_precisions_are_told_apart(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_bundle, tmp_path / "other")
    found = _json(
        fewstep, tiny_bundle, other, "--runs", "1", "--steps", "2", "--out", tmp_path / "a.html"
    )
    assert [row["name"] for row in found["rows"]] == [tiny_bundle.name, "other"]
    first, second = np.split(np.stack(_embedded(tmp_path / "a.html")), 2)
    np.testing.assert_array_equal(first, second)


def test_a_precision_that_is_not_there_is_left_out_and_said(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    place = tmp_path / "a.png"
    options = ("--runs", "1", "--steps", "2", "--out", place)
    found = _json(fewstep, tiny_bundle, "--precision", "fp32", "fp16", *options)
    assert [row["precision"] for row in found["rows"]] == ["fp32"]
    assert list(found["left_out"]) == ["fp16"]
    place.unlink()
    refused = fewstep("compare", tiny_bundle, "--precision", "fp16", *options)
    assert refused.code == 1 and "fp16" in refused.err
    assert not place.exists()


def test_combinations_that_contradict_themselves_are_left_out(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    options = (*_TWO, "--schedule", "policy", "cosine", "--out", tmp_path / "a.png")
    found = fewstep("compare", tiny_bundle, *options)
    assert found.code == 0
    assert "left out: steps 2, schedule policy (the policy decides guidance" in found.err


def test_schedules_from_files_are_rows(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "searched.json"
    file.write_text(json.dumps({"mask_ratio": [0.6, 0.2, 0], "guidance": [0, 1, 2]}))
    found = _json(
        fewstep,
        tiny_bundle,
        "--schedule",
        "cosine",
        file,
        "--runs",
        "1",
        "--out",
        tmp_path / "a.png",
    )
    assert [row["name"] for row in found["rows"]] == ["schedule cosine", "schedule searched.json"]
    assert found["rows"][1]["settings"]["steps"] == 3
    assert found["rows"][1]["settings"]["guidance"] == "0.0,1.0,2.0"


def test_equal_combinations_are_one_row(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    place = ("--runs", "1", "--out", tmp_path / "a.png")
    found = _json(fewstep, tiny_bundle, "--steps", "2", "2", *place)
    assert [row["name"] for row in found["rows"]] == ["steps 2"]
    found = _json(fewstep, tiny_bundle, "--steps", "2", "3", "2", "--guidance", "1", "1", *place)
    assert [row["name"] for row in found["rows"]] == ["steps 2", "steps 3"]


def test_rows_that_would_be_called_the_same_have_their_names_in_full(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, last in (("a", 1), ("b", 2)):
        Path(folder).mkdir()
        content = {"mask_ratio": [0.6, 0.2, 0], "guidance": [0, 1, last]}
        Path(folder, "x.json").write_text(json.dumps(content))
    files = ("a/x.json", "b/x.json")
    found = _json(fewstep, tiny_bundle, "--schedule", "cosine", *files, "--runs", "1")
    names = ["schedule cosine", "schedule a/x.json", "schedule b/x.json"]
    assert [row["name"] for row in found["rows"]] == names
    begin = ",".join(["0.123456789"] * 5)
    lists = (f"{begin},1,2,3", f"{begin},1,2,4")
    found = _json(fewstep, tiny_bundle, "--steps", "8", "--guidance", *lists, "--runs", "1")
    assert [row["name"] for row in found["rows"]] == [f"guidance {each}" for each in lists]


def test_a_text_bundle_has_texts_that_nobody_wrote(
    fewstep: Terminal, tiny_text_bundle: Path, tmp_path: Path
) -> None:
    from fewstep.cli import order

    place = tmp_path / "a.html"
    words = ("--count", 2, "--seed", 3, "--guidance", "0", "1", "--runs", 1, "--out", place)
    shown = fewstep("compare", tiny_text_bundle, *words)
    assert shown.code == 0, shown.err
    with Generator.open(tiny_text_bundle, threads=1) as opened:
        states = opened.model.info.condition.examples(4)
        taken = order.order_of_texts(states, 2, 3).take(range(8))
        expected = [opened.generate(**taken, guidance=each).images for each in (0, 1)]
    np.testing.assert_array_equal(np.stack(_embedded(place)), np.concatenate(expected))
    after = next(line for line in shown.out.splitlines() if line.startswith("next: "))
    command = shlex.split(after.removeprefix("next: "))[1:]
    assert command[0] == "bench" and fewstep(*command, "--runs", 1).code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "a.txt"), "expected a file ending in .png, .jpg, .jpeg, .webp, .html"),
        (("--out", "absent/../file/a.png"), "cannot write"),
        (("--out", "a.html", "--columns", "2"), "--columns is for pictures"),
        (("--steps", "many"), "steps must be an integer"),
        (("--steps", "99"), "nothing is left to compare: steps must be 1"),
        (("--class", "77"), "class ids must be 0 … 4"),
        (("--class", "0", "--count", "65"), "a row of 65 images is too long"),
        (("--count", str(10**12)), "a row of 4,000,000,000,000 images is too long"),
        (("--class", "balanced", "--count", str(10**12)), "images is too long"),
        (("--schedule", "absent.yaml"), "cannot read the schedule absent.yaml"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(
    fewstep: Terminal,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    found = fewstep("compare", tiny_bundle, *arguments)
    assert found.code == 1 and message in found.err, found.err
    assert len(found.err.splitlines()) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_the_same_bundle_twice_is_refused(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    found = fewstep("compare", tiny_bundle, tiny_bundle, "--out", tmp_path / "a.png")
    assert found.code == 1 and "a bundle is given twice" in found.err


@pytest.mark.parametrize(
    ("settings", "names", "shared"),
    [
        ("", ["the bundle's own settings"], ""),
        ("--steps 2", ["steps 2"], ""),
        ("--steps 3 --guidance 0,1,2 0:2", ["guidance 0,1,2", "guidance 0:2"], "steps 3"),
        ("--steps 3 4 --guidance 0:2", ["steps 3", "steps 4"], "guidance 0:2"),
        ("--steps 2 --guidance 1", ["guidance 1, steps 2"], ""),
    ],
)
def test_settings_of_all_rows_are_said_once(
    fewstep: Terminal,
    tiny_bundle: Path,
    tmp_path: Path,
    settings: str,
    names: list[str],
    shared: str,
) -> None:
    words = (*settings.split(), "--class", 1, "--runs", 1, "--out", tmp_path / "a.png")
    found = _json(fewstep, tiny_bundle, *words)
    assert [row["name"] for row in found["rows"]] == names
    assert found["title"].startswith(f"{shared}; " if shared else "shoe; ")
    assert "; time of 1 run of one image on" in found["title"]
    table = fewstep("compare", tiny_bundle, *words).out
    assert all(each in table for each in (*names, shared))


def test_settings_of_all_rows_are_said_of_bundles_too(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_bundle, tmp_path / "other")
    words = ("--steps", 2, "--runs", 2, "--out", tmp_path / "a.png")
    found = _json(fewstep, tiny_bundle, other, *words)
    assert found["title"].startswith("steps 2; ") and "; median of 2 runs of" in found["title"]


def test_long_rows_wrap(fewstep: Terminal, tiny_bundle: Path, tmp_path: Path) -> None:
    words = ("--class", 1, "--count", 24, "--steps", 1, 2, "--runs", 1, "--out")
    sizes = []
    for columns in ((), ("--columns", 4), ("--columns", 100)):
        place = tmp_path / "a.jpg"
        found = fewstep("compare", tiny_bundle, *words, place, *columns)
        assert found.code == 0, found.err
        sizes.append(Image.open(place).size)
    assert sizes[0][0] < 1_400 < sizes[2][0]
    assert sizes[1][0] < sizes[0][0] and sizes[1][1] > sizes[0][1] > sizes[2][1]


def test_the_next_command_has_what_is_not_the_default(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    words = ("--class", 1, "--steps", 2, "--runs", 1, "--out", tmp_path / "a.png")
    for given, expected in (
        ((), "--class 1 --steps 2"),
        (("--precision", "fp32", "--count", 1, "--seed", 0), "--class 1 --steps 2"),
        (
            ("--count", 2, "--seed", 3, "--device", "cpu"),
            "--class 1 --steps 2 --device cpu --count 2 --seed 3",
        ),
    ):
        out = fewstep("compare", tiny_bundle, *words, *given).out
        assert out.endswith(f"next: fewstep generate {tiny_bundle} {expected}\n"), out
