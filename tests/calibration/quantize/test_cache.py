"""The cache of ranges: what is read again, what differs, and files that are no cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fewstep.calibration.quantize.cache import CalibrationTable, RangeCache, read, write
from fewstep.runtime.errors import RequestError


def _table(**changes: Any) -> CalibrationTable:
    fields = {
        "tool": "onnxruntime 1.2",
        "graph_sha256": "a" * 64,
        "data_sha256": "b" * 64,
        "method": "percentile",
        "percentile": 99.9,
        "ranges": {"x": (-1.5, 0.1), "y": (0.0, 3.0e-7)},
    }
    return CalibrationTable.model_validate(fields | changes)


def test_a_cache_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "ranges.json"
    assert read(path) == {}
    write(path, {"a": _table()})
    assert read(path) == {"a": _table()}
    tables = {"a": _table(method="min-max", percentile=None), "b": _table()}
    write(path, tables)
    assert read(path) == tables


def test_tables_of_several_graphs_are_found_and_kept_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    cache = RangeCache(path)
    assert cache.find("a", _table()) == (None, "")
    cache.keep("a", _table())
    cache.keep("b", _table(graph_sha256="c" * 64))
    again = RangeCache(path)
    blank = _table(ranges={"x": (0.0, 0.0), "y": (0.0, 0.0)})
    assert again.find("a", blank) == (_table().ranges, f"ranges are those of {path}")
    assert again.find("c", blank) == (None, "")
    other = (None, f"the ranges in {path} were of another graph: made again")
    assert again.find("b", blank) == other
    again.keep("b", _table())
    assert read(path) == {"a": _table(), "b": _table()}


def test_without_a_file_nothing_is_found_or_written(tmp_path: Path) -> None:
    cache = RangeCache(None)
    cache.keep("a", _table())
    assert cache.find("b", _table()) == (None, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"graph_sha256": "c" * 64}, "graph"),
        ({"data_sha256": "c" * 64, "percentile": 99.0}, "data, percentile"),
        ({"tool": "onnxruntime 1.3"}, "tool"),
        ({"ranges": {"x": (0.0, 0.0)}}, "tensors"),
        ({"ranges": {"x": (0.0, 0.0), "y": (0.0, 0.0)}}, ""),
    ],
)
def test_what_differs_is_named(changes: dict[str, Any], said: str) -> None:
    assert _table().same_origin(_table(**changes)) == said


def _edited(text: str) -> str:
    return text.replace("-1.5", "-1.4")


def _truncated(text: str) -> str:
    return text[: len(text) // 2]


def _other_file(text: str) -> str:
    return json.dumps({"checksum": "", "weights": [1, 2]})


def _older(text: str) -> str:
    content = json.loads(text)
    return json.dumps({"format": 1, **content["graphs"]["a"], "checksum": content["checksum"]})


def _no_checksum(text: str) -> str:
    return json.dumps({name: v for name, v in json.loads(text).items() if name != "checksum"})


@pytest.mark.parametrize(
    "damage",
    [_edited, _truncated, _other_file, _older, _no_checksum, lambda _: "", lambda _: "[1]"],
)
def test_a_corrupt_cache_is_an_error_and_stays(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "ranges.json"
    write(path, {"a": _table()})
    path.write_text(damage(path.read_text()))
    before = path.read_bytes()
    with pytest.raises(RequestError, match=r"the cache .*ranges\.json .*; delete it"):
        read(path)
    assert path.read_bytes() == before


def test_bytes_or_a_folder_are_no_cache(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "binary", tmp_path):
        with pytest.raises(RequestError, match="cannot be read as a cache of ranges"):
            read(path)
