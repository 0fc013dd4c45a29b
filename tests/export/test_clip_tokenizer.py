"""CLIP's tokenizer from the files of a folder, beside a recording of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_amused import END, START, vocabulary, write_tokenizer
from tokenizers import Tokenizer

from fewstep.export.clip_tokenizer import read_tokenizer
from fewstep.export.tokenizer_file import TokenizerFile
from fewstep.runtime.errors import CheckpointError

_RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "data" / "clip_tokenizer.json").read_text(encoding="utf-8")
)
_MERGES = [tuple(pair) for pair in _RECORDED["merges"]]


def _ids(read: TokenizerFile, text: str) -> list[int]:
    """Padded ids, as whoever runs a bundle makes them."""
    ids: list[int] = Tokenizer.from_str(read.json).encode(text).ids
    return ids + [read.pad_id] * (read.length - len(ids))


@pytest.mark.parametrize("name", _RECORDED["ids"])
def test_ids_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Other blanks, letters, scripts and quotes; contractions; special tokens; long texts."""
    write_tokenizer(tmp_path, _MERGES, **_RECORDED["files"][name])
    assert json.loads((tmp_path / "vocab.json").read_text()) == _RECORDED["vocabulary"]
    read = read_tokenizer(tmp_path, 77)
    for text, expected in zip(_RECORDED["texts"], _RECORDED["ids"][name], strict=True):
        assert _ids(read, text) == expected, text
    assert (read.largest_id, read.end_id) == (559, 559)
    assert read.pad_id == {"pad !": 0, "pad end": 559}[name]


def test_a_tokenizer_json_is_taken_as_it_is(tmp_path: Path) -> None:
    """But for padding and the length of texts, which are the model's."""
    first = read_tokenizer(write_tokenizer(tmp_path / "a", _MERGES), 77)
    whole = Tokenizer.from_str(first.json)
    whole.enable_truncation(5)
    whole.enable_padding(length=9)
    (tmp_path / "b").mkdir()
    whole.save(str(tmp_path / "b" / "tokenizer.json"))
    read = read_tokenizer(tmp_path / "b", 77)
    assert [path.name for path in read.files] == ["tokenizer.json"]
    for text in _RECORDED["texts"]:
        assert _ids(read, text) == _ids(first, text)


@pytest.mark.parametrize(("said", "longest", "length"), [(77, 7, 7), (5, 77, 5), (1e30, 77, 77)])
def test_texts_end_with_the_end_where_they_are_cut(
    said: float, longest: int, length: int, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path, _MERGES, tokenizer_config={"model_max_length": said})
    read = read_tokenizer(tmp_path, longest)
    ids = _ids(read, "the cat and the dog " * 40)
    assert (len(ids), ids[-1]) == (length, read.end_id)


def _without(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def _changed(name: str, text: str) -> Any:
    return lambda folder: (folder / name).write_text(text)


_T5 = {"tokenizer_class": "T5Tokenizer"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without("vocab.json"), "holds no tokenizer; expected tokenizer.json, or vocab.json and"),
        (_without("merges.txt"), "holds no tokenizer; expected tokenizer.json, or vocab.json and"),
        (_changed("vocab.json", "{"), "holds no readable tokenizer: "),
        (_changed("merges.txt", "#version: 0.2\nq q\n"), "holds no readable tokenizer: "),
        (_changed("tokenizer.json", "{}"), "holds no readable tokenizer: "),
        (_changed("tokenizer_config.json", "["), "tokenizer_config.json is not readable JSON"),
        (_changed("tokenizer_config.json", json.dumps(_T5)), "CLIPTokenizer, got T5Tokenizer"),
        (_changed("tokenizer_config.json", '{"pad_token": 3}'), "pad_token must be a token, got 3"),
        (_changed("tokenizer_config.json", '{"model_max_length": 1}'), "must be at least 2, got 1"),
    ],
)
def test_what_is_no_tokenizer_is_told_in_one_line(change: Any, words: str, tmp_path: Path) -> None:
    change(write_tokenizer(tmp_path, _MERGES))
    with pytest.raises(CheckpointError, match=words) as caught:
        read_tokenizer(tmp_path, 77)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_tokenizer_that_puts_nothing_around_texts_is_refused(tmp_path: Path) -> None:
    read = read_tokenizer(write_tokenizer(tmp_path, _MERGES), 77)
    content = json.loads(read.json) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"around a text, .* the empty text becomes \[\]"):
        read_tokenizer(tmp_path, 77)


def test_words_of_later_trainings_have_the_ids_behind(tmp_path: Path) -> None:
    """As of textual inversion."""
    last = len(vocabulary(_MERGES))
    added = {str(last): {"content": "<my-cat>", "special": False, "normalized": False}}
    write_tokenizer(tmp_path, _MERGES, tokenizer_config={"added_tokens_decoder": added})
    read = read_tokenizer(tmp_path, 77)
    start, end = (vocabulary(_MERGES)[word] for word in (START, END))
    assert _ids(read, "<my-cat>")[:3] == [start, last, end]
    assert read.largest_id == last
