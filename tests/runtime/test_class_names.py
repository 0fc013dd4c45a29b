"""Class names: numbers, synonyms, several classes of one name, Unicode, labels."""

from __future__ import annotations

import re
import unicodedata
import warnings

import pytest

from fewstep.runtime.asked import asked
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.errors import FewstepWarning, RequestError


def _of(*names: str) -> ClassCondition:
    return ClassCondition(num_classes=len(names), unconditional_id=len(names), class_names=names)


_BIRDS = _of("tench, Tinca tinca", "crane", "bag", "crane", "hen")


def test_a_name_of_several_classes_is_refused_with_their_numbers() -> None:
    with pytest.raises(RequestError, match=r"^crane is class 1 and 3: give the number$"):
        _BIRDS.class_id("crane")
    with pytest.raises(RequestError, match="CRANE is class 1"):
        _BIRDS.class_id("CRANE")
    assert _BIRDS.class_id("3") == 3


def test_a_synonym_of_two_classes_is_refused_and_the_whole_names_are_told() -> None:
    classes = _of("maillot", "maillot, tank suit")
    with pytest.raises(RequestError, match=r"class 0 and 1 \(maillot, tank suit\): give the"):
        classes.class_id("maillot")
    assert [classes.class_id(each) for each in ("tank suit", "maillot, tank suit")] == [1, 1]


@pytest.mark.parametrize(
    "name", ["tench", "Tinca tinca", "TINCA TINCA", "tench, Tinca tinca", "tench,tinca  tinca "]
)
def test_any_synonym_and_the_whole_find_a_class(name: str) -> None:
    assert _BIRDS.class_id(name) == 0
    assert _BIRDS.class_ids(name) == [0]


def test_names_that_differ_in_case_only() -> None:
    classes = _of("Bag", "bag", "hat")
    assert [classes.class_id(each) for each in ("Bag", "bag", "HAT")] == [0, 1, 2]
    with pytest.raises(RequestError, match=r"BAG is class 0 \(Bag\) and 1 \(bag\)"):
        classes.class_id("BAG")


def test_a_number_is_an_id_and_a_name_only_where_it_is_no_id() -> None:
    classes = _of("1", "0", "1999", "007", "1_0")
    with pytest.warns(FewstepWarning, match="1 is the class of that number.* '1' is number 0"):
        assert classes.class_id("1") == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [classes.class_id(each) for each in ("1999", "007", "1_0", "2", " 3")]
    assert found == [2, 3, 4, 2, 3]


def test_composed_and_decomposed_letters_are_the_same() -> None:
    classes = _of("café", "straße", "T恤")
    assert classes.class_id(unicodedata.normalize("NFD", "CAFÉ")) == 0
    assert classes.class_id("STRASSE") == 1
    assert classes.class_id("t恤") == 2


def test_commas_separate_classes_but_not_the_synonyms_of_one() -> None:
    assert _BIRDS.class_ids("1,2, hen") == [1, 2, 4]
    assert _BIRDS.class_ids("hen,tench, Tinca tinca,bag") == [4, 0, 2]
    assert _BIRDS.class_ids("hen,") == [4]
    for nothing in ("", ",", " "):
        with pytest.raises(RequestError, match="unknown class ''"):
            _BIRDS.class_ids(nothing)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("\udcff", r"'\udcff'"),
        ("\x1b[31mhen", r"'\x1b[31mhen'"),
        ("\x00", r"'\x00'"),
        ("\u202enech", r"'\u202enech'"),
        ("sheo", "'sheo'"),
        ("it's", "'it's'"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_what_cannot_be_seen_of_an_unknown_name_is_spelled_out(
    given: str, shown: str, named: bool
) -> None:
    classes = _BIRDS if named else ClassCondition(num_classes=5, unconditional_id=None)
    with pytest.raises(RequestError, match=re.escape(f"class {shown}")) as refused:
        classes.class_id(given)
    assert str(refused.value).isprintable()


def test_labels_are_short_and_no_other_class_has_them() -> None:
    classes = _of("tench, Tinca tinca", "crane", "crane", "cat, tabby", "cat, lion", "", " \n")
    labels = [classes.label(each) for each in range(7)]
    assert labels == [
        *("tench", "crane (1)", "crane (2)", "cat, tabby", "cat, lion", "class 5", "class 6")
    ]


def test_no_error_is_long() -> None:
    names = tuple(f"{'very ' * 40}long name {each}" for each in range(1_000))
    for wanted in ("very", "x" * 5_000, names[3][:-2]):
        with pytest.raises(RequestError) as caught:
            _of(*names).class_id(wanted)
        assert len(str(caught.value)) < 1_000
    with pytest.raises(RequestError) as caught:
        _of(*(["same"] * 1_000)).class_id("same")
    assert "and 980 more" in str(caught.value) and len(str(caught.value)) < 1_000


def test_python_asks_for_one_or_several_of_ids_and_names() -> None:
    assert asked(_BIRDS, "hen", 2) == ({"class_ids": [4, 4]}, ["hen", "hen"])
    assert asked(_BIRDS, 2, 1) == ({"class_ids": [2]}, ["bag"])
    assert asked(_BIRDS, ["tench", 1], 1) == ({"class_ids": [0, 1]}, ["tench", "crane (1)"])
    for wrong in (1.5, [], ["hen", None], 99):
        with pytest.raises(RequestError):
            asked(_BIRDS, wrong, 1)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="count must be an integer of at least 1, got 0"):
        asked(_BIRDS, "hen", 0)
