"""Prompts on the command line: pictures that say them, files of them, and bad ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.conftest import Terminal
from tests.prompts import with_encoder

from fewstep.cli.record import read_record


@pytest.fixture(scope="module")
def prompts_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text bundle with an encoder."""
    from tests.exported import copy_of

    return with_encoder(copy_of("tiny-text", tmp_path_factory.mktemp("texts") / "bundle")).path


def test_a_picture_says_its_prompts_and_is_made_again(
    fewstep: Terminal, prompts_bundle: Path, tmp_path: Path
) -> None:
    one, two, other = (tmp_path / f"{name}.png" for name in ("one", "two", "other"))
    wish = ["generate", prompts_bundle, "--text", "a dog", "--text", "red cat", "--steps", 2]
    made = fewstep(*wish, "--negative", "green dog", "--count", 2, "--out", one)
    assert made.code == 0, made.err
    record = read_record(one)
    assert record["prompts"] == ["a dog", "a dog", "red cat", "red cat"]
    assert record["negative"] == "green dog"
    assert fewstep("generate", prompts_bundle, "--like", one, "--out", two).code == 0
    assert one.read_bytes() == two.read_bytes()
    assert fewstep(*wish, "--count", 2, "--out", other).code == 0
    assert one.read_bytes() != other.read_bytes()


def test_texts_may_be_given_beside_like(
    fewstep: Terminal, prompts_bundle: Path, tmp_path: Path
) -> None:
    one, two, plain = (tmp_path / f"{name}.png" for name in ("one", "two", "plain"))
    wish = ["generate", prompts_bundle, "--out"]
    how = ["--count", 2, "--seed", 7, "--steps", 1, "--guidance", 2]
    assert fewstep(*wish, one, "--text", "a dog", "--negative", "red", *how).code == 0
    for given, said in (
        (["--text", "green cat"], ["--text", "green cat", "--negative", "red"]),
        (["--negative", "green"], ["--text", "a dog", "--negative", "green"]),
        (["--negative", ""], ["--text", "a dog"]),
    ):
        assert fewstep(*wish, two, "--like", one, *given).code == 0
        assert fewstep(*wish, plain, *said, *how).code == 0
        assert read_record(two)["prompts"] == [said[1]] * 2
        assert two.read_bytes() == plain.read_bytes()
    np.save(tmp_path / "text.npy", np.ones((1, 3, 12), np.float32))  # states, then prompts
    states = ["--text-file", tmp_path / "text.npy"]
    assert fewstep(*wish, two, "--like", one, *states).code == 0
    assert (read_record(two)["texts"], read_record(two)["seeds"]) == ([0, 0], [7, 8])
    assert fewstep(*wish, plain, "--like", two, "--text", "a dog").code == 0
    assert plain.read_bytes() == one.read_bytes()


def test_one_negative_is_of_all_images(
    fewstep: Terminal, prompts_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.png"
    wish = ["generate", prompts_bundle, "--text", "a dog", "--steps", 1, "--out", out]
    refused = fewstep(*wish, "--negative", "red", "--negative=green cat")
    assert refused.code == 2 and refused.err.count("\n") == 1 and not out.exists()
    said = "--negative takes one value, got red, green cat: of several things, --negative 'red, "
    assert said in refused.err
    assert "--seed takes one value, got 1, 2;" in fewstep(*wish, "--seed", 1, "--seed", 2).err
    assert "--text-file takes one" in fewstep(*wish, "--text-file", "a", "--text-file", "b").err


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_a_negative_without_guidance_is_noted(
    fewstep: Terminal, prompts_bundle: Path, tmp_path: Path, command: str
) -> None:
    wish = [command, prompts_bundle, "--text", "a dog", "--steps", 1, "--out", tmp_path / "x.png"]
    wish += ["--runs", 1] if command == "compare" else []
    note = "negative has no effect without guidance: give a guidance above 0\n"
    assert note in fewstep(*wish, "--negative", "red", "--guidance", 0).err
    assert note not in fewstep(*wish, "--negative", "red", "--guidance", 1).err
    assert note not in fewstep(*wish, "--guidance", 0).err


def test_a_folder_of_a_file_of_prompts(
    fewstep: Terminal, prompts_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("a dog\nred cat\n")
    wish = ["generate", prompts_bundle, "--text-file", tmp_path / "p.txt", "--out", tmp_path / "f"]
    assert fewstep(*wish, "--steps", 2).code == 0
    names = sorted(each.name for each in (tmp_path / "f").iterdir())
    assert names == ["text-0-a-dog-seed-0.png", "text-1-red-cat-seed-1.png"]
    again = fewstep(*wish, "--steps", 2, "--resume", "--json")
    assert again.code == 0 and '"kept": 2' in again.out


def test_commas_are_part_of_a_prompt_and_words_are_not_prompts(
    fewstep: Terminal, prompts_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.png"
    wish = ["generate", prompts_bundle, "--steps", 1, "--out", out]
    assert fewstep(*wish, "--text", "a dog, red", "--text=a, cat").code == 0
    assert read_record(out)["prompts"] == ["a dog, red", "a, cat"]
    refused = fewstep(*wish, "--text", "red", "dog")
    assert refused.code == 2 and "dog" in refused.err


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_folder_of_other_prompts_is_refused(
    fewstep: Terminal, prompts_bundle: Path, tmp_path: Path, resume: list[str]
) -> None:
    wish = ["generate", prompts_bundle, "--steps", 1, "--out", tmp_path / "f"]
    assert fewstep(*wish, "--text", "a dog").code == 0
    refused = fewstep(*wish, *resume, "--text", "red cat")
    assert refused.code == 1 and "has images of other texts" in refused.err
    assert len(list((tmp_path / "f").iterdir())) == 1


def test_long_prompts_are_noted_once(
    fewstep: Terminal, prompts_bundle: Path, tmp_path: Path
) -> None:
    long = "a red dog " * 1_000
    out = tmp_path / "x.png"
    made = fewstep("generate", prompts_bundle, "--text", long, "--steps", 2, "--out", out)
    assert made.code == 0 and out.exists()
    (note,) = [each for each in made.err.splitlines() if "more than 6 tokens" in each]
    assert len(note) < 2_000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--text", ""], "the text is empty: say what to draw"),
        (["--text", " \t"], "the text is empty: say what to draw"),
        (["--class", "1"], "this bundle is text-conditional: give --text, not --class"),
        (["--text", "a", "--class", "1"], "text-conditional: give --text, not --class"),
        (["--text", "a", "--text-file", "p.txt"], "give --text or --text-file, not both"),
        (["--text-file", "absent.txt"], "absent.txt is no file of prompts, one a line"),
        (["--text-file", "absent.npy"], "absent.npy is not a .npy array that can be read"),
        ([], "nothing to generate: give --text"),
    ],
)
def test_bad_texts_are_one_line(
    fewstep: Terminal, prompts_bundle: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    out = tmp_path / "x.png"
    refused = fewstep("generate", prompts_bundle, *words, "--out", out)
    assert refused.code == 1 and said in refused.err and refused.err.count("\n") == 1
    assert not out.exists()


def test_prompts_need_an_encoder(
    fewstep: Terminal, tiny_text_bundle: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.png"
    refused = fewstep("generate", tiny_text_bundle, "--text", "a dog", "--out", out)
    assert "no text encoder: give text states [B, 3, 12] in a .npy file" in refused.err
    refused = fewstep("generate", tiny_bundle, "--text", "a dog", "--out", out)
    assert "this bundle is class-conditional: give --class, not --text" in refused.err


def test_prompts_are_compared(fewstep: Terminal, prompts_bundle: Path, tmp_path: Path) -> None:
    wish = ["compare", prompts_bundle, "--text", "a dog", "--steps", 1, "--steps", 2]
    made = fewstep(*wish, "--runs", 1, "--out", tmp_path / "sheet.png")
    assert made.code == 0 and (tmp_path / "sheet.png").exists()


def test_states_still_come_from_a_file(
    fewstep: Terminal, prompts_bundle: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "text.npy", np.ones((1, 3, 12), np.float32))
    wish = ["generate", prompts_bundle, "--text-file", tmp_path / "text.npy", "--steps", 1]
    assert fewstep(*wish, "--out", tmp_path / "x.png").code == 0
