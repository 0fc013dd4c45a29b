"""From the words of ``fewstep generate`` to a request, before any engine is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fewstep.cli.generate import conditions
from fewstep.runtime.condition import ClassCondition, TextCondition
from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator

if TYPE_CHECKING:
    from tests.conftest import Terminal

_NAMES = ("shirt", "shoe", "bag", "coat", "dress")
_CLASSES = ClassCondition(num_classes=5, unconditional_id=5, class_names=_NAMES)
_TEXT = TextCondition(length=3, width=12)


def test_class_ids_and_names_mix() -> None:
    found, labels = conditions(_CLASSES, ["2", "Shoe"], None, 3)
    assert found == {"class_ids": [2, 2, 2, 1, 1, 1]}
    assert labels == ["bag", "shoe"]


def test_classes_without_names_are_numbered() -> None:
    info = ClassCondition(num_classes=5, unconditional_id=5)
    assert conditions(info, ["4"], None, 1) == ({"class_ids": [4]}, ["class 4"])
    with pytest.raises(RequestError, match="'bag' is not a number.* names no classes"):
        conditions(info, ["bag"], None, 1)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["sheo"], "Did you mean 'shoe'"),
        (["99"], "class ids must be 0 … 4, got 99"),
        ([], "give --class"),
        (None, "give --class"),
    ],
)
def test_bad_classes(classes: list[str] | None, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        conditions(_CLASSES, classes, None, 1)


def test_text_comes_from_a_file(tmp_path: Path) -> None:
    states = np.arange(72, dtype=np.float32).reshape(2, 3, 12)
    np.save(tmp_path / "text.npy", states)
    found, labels = conditions(_TEXT, None, tmp_path / "text.npy", 2)
    np.testing.assert_array_equal(found["text"], states[[0, 0, 1, 1]])
    assert labels == ["text 0", "text 1"]


def test_the_other_kind_of_condition_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "text.npy", np.ones((1, 3, 12), np.float32))
    with pytest.raises(RequestError, match="text-conditional: give --text, not --class"):
        conditions(_TEXT, ["1"], None, 1)
    with pytest.raises(RequestError, match="this bundle is class-conditional"):
        conditions(_CLASSES, None, tmp_path / "text.npy", 1)


@pytest.mark.parametrize("content", [b"", b"not an array", None])
def test_unreadable_text_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "text.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestError, match="is not a .npy array"):
        conditions(_TEXT, None, path, 1)


@pytest.mark.parametrize(
    "wish",
    ["--class sheo", "--class 99", "--text nothing.npy", "--class 1 --out x.bmpp", "--steps x", ""],
)
def test_bad_words_are_known_before_engines_load(
    fewstep: Terminal, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, wish: str
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("engines are loaded")

    monkeypatch.setattr(Generator, "open", never)
    outcome = fewstep("generate", tiny_bundle, *wish.split())
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "engines are loaded" not in outcome.err
