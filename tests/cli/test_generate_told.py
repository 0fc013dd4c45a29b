"""``fewstep generate``: folders that would mix, and mistakes told in plain words."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from fewstep.cli.pictures import save
from fewstep.cli.record import read_record
from fewstep.runtime.generator import Generator

if TYPE_CHECKING:
    from tests.conftest import Terminal


def test_a_folder_is_not_filled_with_images_of_several_settings(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mix"
    wish = ["generate", tiny_bundle, "--out", out, "--class"]
    assert fewstep(*wish, 1, "--count", 12, "--steps", 2).code == 0
    before = {each.name: each.read_bytes() for each in out.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(Generator, "run", lambda *_, **__: pytest.fail("images are made"))
        for other in ([1, "--count", 3, "--steps", 3], [2, "--steps", 3], [1, "--seed", 99]):
            refused = fewstep(*wish, *other)
            assert (refused.code, refused.err.count("\n")) == (1, 1)
            assert "made otherwise (steps 2 there, " in refused.err
            assert "choose another folder, or remove them" in refused.err
    assert {each.name: each.read_bytes() for each in out.iterdir()} == before
    others = fewstep(*wish, 2, "--steps", 2)
    assert (others.code, "made again" in others.err) == (0, False), others.err
    twice = fewstep(*wish, 1, "--count", 14, "--steps", 2)
    assert twice.code == 0
    assert "note: 12 images are in" in twice.err and "--resume keeps" in twice.err
    assert before.items() <= {each.name: each.read_bytes() for each in out.iterdir()}.items()


def test_a_folder_is_not_filled_with_images_of_several_weights(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    wish = ["generate", tiny_bundle, "--class", 1, "--steps", 1, "--out", tmp_path / "f"]
    assert fewstep(*wish).code == 0
    (file,) = (tmp_path / "f").iterdir()
    record = read_record(file)
    for change, said in (
        ({"bundle": record["bundle"] | {"sha256": "0" * 64}}, "(other weights)"),
        ({"precision": "fp16"}, "(precision fp16 there, fp32 here)"),
    ):
        save(Image.open(file), file, record | change)
        refused = fewstep(*wish)
        assert refused.code == 1 and said in refused.err, refused.err


def test_few_files_of_a_large_folder_are_opened(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f"
    wish = ["generate", tiny_bundle, "--class", 1, "--steps", 1, "--out", out]
    assert fewstep(*wish).code == 0
    (file,) = out.iterdir()
    for seed in range(1, 300):
        shutil.copy(file, out / file.name.replace("seed-0", f"seed-{seed}"))
    opened: list[Path] = []

    def counted(path: Path) -> Any:
        opened.append(path)
        return read_record(path)

    monkeypatch.setattr("fewstep.cli.produce.read_record", counted)
    found = fewstep(*wish, "--seed", 300)
    assert found.code == 0 and 0 < len(opened) < 20


def test_what_comes_next_is_said_where_it_leads_on(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wish = ["generate", tiny_bundle, "--steps", 1]
    assert "next: " in fewstep(*wish, "--class", 1, "--out", "x.png").out
    assert "next: " not in fewstep(*wish, "--like", "x.png", "--out", "y.png").out
    assert "next: " not in fewstep(*wish, "--class", 1, "--out", "again.png").out


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("--class 1 --count 0", "Invalid value for '--count': must be at least 1, got '0'; see"),
        ("--class 1 --scale 99", "must be at most 64, got '99'"),
        ("--class 1 --seed 1.5", "must be an integer, got '1.5'"),
        ("--like absent.png", "absent.png is no picture that can be read: no such file\n"),
        ("--like text.txt", "text.txt is no picture that can be read\n"),
        ("--text text.txt", "this bundle is class-conditional: give --class, not --text"),
        ("--class 1 --precision float16", "Did you mean 'fp16'? Make its graphs with: fewstep"),
        ("--class 1 --precision FP23", "unknown precision 'FP23'; expected one of: fp32, fp16,"),
        ("--class 1 --guidance 0 1 2", "written with commas: --guidance 0,1,2\n"),
        ("--class 1 --guidance [0, 1, 2]", "written with commas: --guidance 0,1,2\n"),
        ("--class 1 --guidance 0 x", "--guidance takes one value, got 0, x\n"),
    ],
)
def test_mistakes_are_told_without_internals(
    fewstep: Terminal,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wish: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("nothing")
    found = fewstep("generate", tiny_bundle, *wish.split())
    assert found.code != 0 and said in found.err, found.err
    assert found.err.count("\n") == 1
    assert not any(word in found.err for word in ("Input should", "Errno", "pickle"))


def test_a_list_may_stand_in_brackets(fewstep: Terminal, tiny_bundle: Path, tmp_path: Path) -> None:
    wish = ["generate", tiny_bundle, "--class", 1, "--steps", 3, "--out"]
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    plain = ("--guidance", "0,1,2", "--schedule", "0.7,0.4,0")
    bracketed = ("--guidance", "[0, 1, 2]", "--schedule", "[0.7,0.4,0]")
    for file, given in zip(files, (plain, bracketed), strict=True):
        made = fewstep(*wish, file, *given)
        assert made.code == 0, made.err
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_a_packed_bundle_is_told_to_be_one(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path, command: str
) -> None:
    packed = shutil.make_archive(str(tmp_path / "sample"), "zip", tiny_bundle)
    found = fewstep(command, packed, "--class", 1)
    assert (found.code, found.err.count("\n")) == (1, 1)
    assert "sample.zip is a packed bundle: unzip it" in found.err
    assert f"fewstep demo --bundle {packed}" in found.err
