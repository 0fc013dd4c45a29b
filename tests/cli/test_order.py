"""Orders: which images the words of ``fewstep generate`` mean, and their shards."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fewstep.cli.order import digits_of, ordered
from fewstep.runtime.condition import ClassCondition, TextCondition
from fewstep.runtime.errors import RequestError

_NAMES = ("shirt", "shoe", "bag", "coat", "dress")
_CLASSES = ClassCondition(num_classes=5, unconditional_id=5, class_names=_NAMES)
_TEXT = TextCondition(length=3, width=12)


def test_class_ids_and_names_mix() -> None:
    found = ordered(_CLASSES, ["2", "Shoe"], None, 3, 7)
    assert found.conditions == (2, 2, 2, 1, 1, 1)
    assert found.labels == ("bag",) * 3 + ("shoe",) * 3
    assert (found.seeds, found.each) == (tuple(range(7, 13)), 3)
    taken = found.take([0, 5])
    assert taken == {"class_ids": [2, 1], "text": None, "seed": [7, 12]}


def test_classes_without_names_are_numbered() -> None:
    info = ClassCondition(num_classes=5, unconditional_id=5)
    assert ordered(info, ["4"], None, 1, 0).labels == ("class 4",)
    with pytest.raises(RequestError, match="'bag' is not a number.* names no classes"):
        ordered(info, ["bag"], None, 1, 0)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["sheo"], "Did you mean 'shoe'"),
        (["99"], "class ids must be 0 … 4, got 99"),
        (["1,bag,sheo"], "Did you mean 'shoe'"),
        (["all", "1"], "--class all chooses all classes"),
        (["random", "balanced"], "--class random chooses all classes"),
        ([], "give --class"),
        (None, "give --class"),
    ],
)
def test_bad_classes(classes: list[str] | None, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ordered(_CLASSES, classes, None, 1, 0)


def test_all_classes_but_the_one_of_no_class() -> None:
    info = ClassCondition(num_classes=4, unconditional_id=1)
    assert ordered(info, ["all"], None, 2, 0).conditions == (0, 0, 2, 2, 3, 3)
    assert set(ordered(info, ["random"], None, 200, 0).conditions) == {0, 2, 3}


def test_balanced_sets_have_all_classes_alike() -> None:
    counts = Counter(ordered(_CLASSES, ["balanced"], None, 52, 0).conditions)
    assert sorted(counts.values()) == [10, 10, 10, 11, 11]


def test_random_classes_depend_on_the_seed_and_the_place_alone() -> None:
    long, short = (ordered(_CLASSES, ["random"], None, n, 3).conditions for n in (5_000, 100))
    assert long[:100] == short
    assert short != ordered(_CLASSES, ["random"], None, 100, 4).conditions
    counts = Counter(long)
    assert all(abs(counts[each] - 1_000) < 5 * 1_000**0.5 for each in range(5))
    recorded = (2, 1, 0, 2, 4, 2)  # the same in every version: sets are continued
    assert ordered(_CLASSES, ["random"], None, 6, 0).conditions == recorded


def test_a_class_that_is_called_like_a_choice(capsys: pytest.CaptureFixture[str]) -> None:
    info = ClassCondition(num_classes=2, unconditional_id=2, class_names=("all", "none"))
    assert ordered(info, ["all"], None, 1, 0).conditions == (0,)
    assert "'all' is taken for the class of this name" in capsys.readouterr().err


def test_shards_are_the_whole_without_overlap() -> None:
    whole = ordered(_CLASSES, ["random"], None, 23, 0)
    shards = [whole.shard(f"{i}/4") for i in range(1, 5)]
    pairs = [pair for each in shards for pair in zip(each.seeds, each.conditions, strict=True)]
    assert sorted(pairs) == sorted(zip(whole.seeds, whole.conditions, strict=True))
    for wrong in ("0/4", "5/4", "1", "a/b", "1/0", "-1/2", ""):
        with pytest.raises(RequestError, match="--shard must be i/n"):
            whole.shard(wrong)
    with pytest.raises(RequestError, match="has none: use fewer shards"):
        whole.shard("24/24")


def test_a_shard_is_cut_before_anything_is_listed() -> None:
    for classes in (["random"], ["balanced"], ["all"], ["bag", "1"]):
        whole = ordered(_CLASSES, classes, None, 10, 3)
        for shard in ("1/1", "1/4", "4/4", "10/10"):
            cut = ordered(_CLASSES, classes, None, 10, 3, shard=shard)
            assert cut == whole.shard(shard)
    small = ordered(_CLASSES, ["random"], None, 10**15, 0, shard=f"3/{10**14}")
    assert len(small) == 10 and small.seeds[:2] == (2, 10**14 + 2)
    with pytest.raises(RequestError, match="too many for one run, at most 5,000,000: share them"):
        ordered(_CLASSES, ["1"], None, 10**12, 0)


def test_every_text_has_its_images() -> None:
    states = np.arange(72, dtype=np.float32).reshape(2, 3, 12)
    found = ordered(_TEXT, None, states, 2, 0)
    np.testing.assert_array_equal(found.take([0, 1, 2, 3])["text"], states[[0, 0, 1, 1]])
    assert found.labels == ("text 0", "text 0", "text 1", "text 1")


def test_numbers_in_names_of_files_are_as_long_as_the_largest() -> None:
    assert digits_of(_CLASSES, ordered(_CLASSES, ["2"], None, 30, 0)) == 1
    many = ClassCondition(num_classes=1000, unconditional_id=1000)
    assert digits_of(many, ordered(many, ["2"], None, 1, 0)) == 3
    prompts = tuple(f"number {k}" for k in range(11))
    assert digits_of(_TEXT, ordered(_TEXT, None, prompts, 2, 0)) == 2


def test_every_prompt_has_its_images_and_its_name() -> None:
    prompts = ("a dog", "a\ncat " + "x" * 100)
    found = ordered(_TEXT, None, prompts, 2, 5, negative="rain")
    taken = found.take([1, 2])
    assert taken == {"class_ids": None, "text": list(prompts), "negative": "rain", "seed": [6, 7]}
    assert found.labels[0] == "a dog" and found.labels[2].startswith("a cat xxx")
    assert len(found.labels[2]) == 60


def test_classes_are_refused_for_texts() -> None:
    with pytest.raises(RequestError, match="text-conditional: give --text, not --class"):
        ordered(_TEXT, ["1"], None, 1, 0)
