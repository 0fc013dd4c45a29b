"""Conditions: class ids and names, text states, and the files that hold these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fewstep.runtime.condition import ClassCondition, TextCondition, condition_of
from fewstep.runtime.errors import RequestError
from fewstep.runtime.given_texts import read_text

_NAMES = ("Shirt", "shoe", "bag")
_NAMED = ClassCondition(num_classes=3, unconditional_id=3, class_names=_NAMES)
_NUMBERED = ClassCondition(num_classes=1000, unconditional_id=1000)
_TEXT = TextCondition(length=2, width=4)


# --- classes


@pytest.mark.parametrize(
    ("name", "expected"), [("shoe", 1), ("SHIRT", 0), ("Bag", 2), ("1", 1), (" 2", 2), ("-1", -1)]
)
def test_a_class_goes_by_its_number_or_its_name_in_any_case(name: str, expected: int) -> None:
    assert _NAMED.class_id(name) == expected


def test_names_that_are_not_known_are_told_with_the_nearest() -> None:
    with pytest.raises(RequestError, match="unknown class 'shoes'; .*Did you mean 'shoe'"):
        _NAMED.class_id("shoes")
    with pytest.raises(RequestError, match="'shoe' is not a number, and this bundle names no"):
        _NUMBERED.class_id("shoe")


def test_labels() -> None:
    assert [_NAMED.label(each) for each in (0, 2, 3, -1)] == ["Shirt", "bag", "class 3", "class -1"]
    assert _NUMBERED.label(7) == "class 7"


@pytest.mark.parametrize(
    ("ids", "expected"), [([0, 2], [0, 2]), (np.array([1], np.uint8), [1]), (2, [2]), ((1,), [1])]
)
def test_ids_become_int32(ids: Any, expected: list[int]) -> None:
    found = _NAMED.array(ids)
    assert (found.tolist(), found.dtype.name) == (expected, "int32")


@pytest.mark.parametrize(
    ("ids", "shown"),
    [
        ([], r"\[\]"),
        ([0.5], r"\[0.5\]"),
        ("shoe", "'shoe'"),
        ([[0]], r"\[\[0\]\]"),
        (np.zeros((20, 20)), r"float64 \[20, 20\]"),
    ],
)
def test_what_are_no_ids_is_refused_in_one_line(ids: Any, shown: str) -> None:
    with pytest.raises(RequestError, match=f"must be a list of integers, got {shown}$"):
        _NAMED.array(ids)


def test_every_id_that_is_out_of_range_is_told_once() -> None:
    with pytest.raises(
        RequestError, match="class ids must be 0 … 2, got -1, 3, 9 .3 stands for no class.$"
    ):
        _NAMED.array([9, 0, -1, 3, 9])


def test_examples_spread_evenly_over_the_classes() -> None:
    assert _NUMBERED.examples(4).tolist() == [0, 333, 666, 999]
    assert _NAMED.examples(1).tolist() == [0]
    assert _NUMBERED.examples(5).dtype == np.int32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"unconditional_id": 2**31}, "unconditional_id"),
        ({"unconditional_id": -1}, "unconditional_id"),
        ({"num_classes": 1, "unconditional_id": 0}, "no class is left beside unconditional_id"),
        ({"class_names": ("a", "b")}, "class_names: expected 3 names, got 2"),
    ],
)
def test_descriptions_that_contradict_themselves_are_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        ClassCondition(**{"num_classes": 3, "unconditional_id": 3, **fields})


def test_the_id_of_no_class_may_lie_among_the_others() -> None:
    condition = ClassCondition(num_classes=4, unconditional_id=1)
    assert condition.ids == [0, 2, 3]
    assert condition.array([0, 3]).tolist() == [0, 3]
    assert condition.examples(3).tolist() == [0, 2, 3]
    with pytest.raises(RequestError, match="got 1 .1 stands for no class."):
        condition.array([0, 1])


def test_a_model_may_have_no_class_of_no_class() -> None:
    condition = ClassCondition(num_classes=1, unconditional_id=None)
    assert (condition.ids, condition.has_unconditional) == ([0], False)
    assert condition.array([0]).tolist() == [0]
    assert _NAMED.has_unconditional


# --- text


def test_states_become_float32() -> None:
    states = np.arange(16, dtype=np.float64).reshape(2, 2, 4)
    found = _TEXT.array(states)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, states)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (np.zeros((2, 4)), r"must have shape \[B, 2, 4\], got \[2, 4\]"),
        (np.zeros((0, 2, 4)), r"got \[0, 2, 4\]"),
        (np.zeros((1, 2, 4), np.int32), "must hold finite floats, got int32"),
        (np.full((1, 2, 4), np.inf), "must hold finite floats: 8 of 8 are NaN or infinite"),
        (np.full((1, 2, 4), 1e300), "8 of 8 are NaN or infinite in float32; encode the text again"),
        (np.zeros((2, 4)), r"of one text give states\[None\], \[1, 2, 4\]"),
        ([[1.0], [2.0, 3.0]], r"text must be states \[B, 2, 4\], got \[\[1.0\], \[2.0, 3.0\]\]"),
        (3, r"text must be states \[B, 2, 4\], got 3"),
    ],
)
def test_states_that_do_not_fit_are_refused(states: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        _TEXT.array(states)


def test_example_texts_are_always_the_same_and_each_another() -> None:
    found = _TEXT.examples(3)
    assert (found.shape, found.dtype.name) == ((3, 2, 4), "float32")
    np.testing.assert_array_equal(found, _TEXT.examples(3))
    assert len({each.tobytes() for each in found}) == 3


# --- both


def test_the_kind_of_the_bundle_decides() -> None:
    states = np.zeros((1, 2, 4), np.float32)
    assert condition_of(_NAMED, [1], None).tolist() == [1]
    assert condition_of(_TEXT, None, states).shape == (1, 2, 4)
    for ids, text in ((None, states), ([1], states)):
        with pytest.raises(RequestError, match="class-conditional: give class_ids, not text"):
            condition_of(_NAMED, ids, text)
    for given in (None, states):
        with pytest.raises(RequestError, match="text-conditional: give text, not class_ids"):
            condition_of(_TEXT, [1], given)
    for info, name in ((_NAMED, "class_ids"), (_TEXT, "text")):
        with pytest.raises(RequestError, match=f"^nothing to generate; .*: give {name}$"):
            condition_of(info, None, None)


# --- files


def test_states_are_read_from_a_file(tmp_path: Path) -> None:
    states = np.random.default_rng(0).standard_normal((2, 2, 4))
    np.save(tmp_path / "x.npy", states)
    np.testing.assert_array_equal(read_text(tmp_path / "x.npy"), states)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 no archive"])
def test_files_that_are_no_arrays_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(RequestError, match="x.npy is not a .npy array") as caught:
        read_text(tmp_path / "x.npy")
    assert "pickle" not in str(caught.value)


def test_objects_archives_and_other_shapes_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    np.savez(tmp_path / "archive.npz", a=np.zeros(3))
    np.save(tmp_path / "flat.npy", np.zeros((2, 4)))
    with pytest.raises(RequestError, match="is not a .npy array"):
        read_text(tmp_path / "objects.npy")
    for name in ("archive.npz", "flat.npy"):
        with pytest.raises(RequestError, match=r"expected one array \[B, L, D\]"):
            read_text(tmp_path / name)
    with pytest.raises(RequestError, match="none.npy is not a .npy array .*: no such file$"):
        read_text(tmp_path / "none.npy")
