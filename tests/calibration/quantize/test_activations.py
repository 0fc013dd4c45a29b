"""Ranges of activations against NumPy, and the cache that they are kept in."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.calibration.quantize.activations import CalibrationTable, measure, read, write
from fewstep.calibration.quantize.rollouts import Rollouts
from fewstep.runtime.errors import EngineError, OutputError, RequestError

from .graphs import WIDTH, rollouts, run, transformer

_TENSORS = ("features", "flat")


def _values(data: Rollouts) -> dict[str, np.ndarray[Any, Any]]:
    model = transformer()
    found = [run(model, each.inputs, _TENSORS) for each in data.passes]
    return {
        name: np.concatenate([each[index].reshape(-1, WIDTH) for each in found])
        for index, name in enumerate(_TENSORS)
    }


def test_min_max_is_all_that_was_seen() -> None:
    data = rollouts()
    ranges = measure(transformer(), _TENSORS, data, method="min-max")
    for name, values in _values(data).items():
        largest = float(np.abs(values).max())
        assert ranges[name] == pytest.approx((-largest, largest), rel=1e-6)


def test_a_percentile_leaves_that_much_out() -> None:
    data = rollouts(count=40)
    ranges = measure(transformer(), _TENSORS, data, method="percentile", percentile=90.0)
    for name, values in _values(data).items():
        inside = float((np.abs(values) <= max(map(abs, ranges[name]))).mean())
        assert inside == pytest.approx(0.9, abs=0.02)


def test_entropy_clips_a_long_tail() -> None:
    """No more than min-max, and not much less than where nearly everything is."""
    data = rollouts(count=40)
    ranges = measure(transformer(), _TENSORS, data, method="entropy")
    for name, values in _values(data).items():
        largest = max(map(abs, ranges[name]))
        assert np.quantile(np.abs(values), 0.95) < largest <= np.abs(values).max() * 1.001


def test_passes_of_other_sizes_are_measured_too_and_progress_reported() -> None:
    reported: list[tuple[str, float]] = []
    data = Rollouts((*rollouts(count=8).passes, *rollouts(count=1).passes))
    measure(
        transformer(),
        _TENSORS,
        data,
        method="percentile",
        percentile=99.0,
        progress=lambda *each: reported.append(each),
    )
    assert reported == [("measuring ranges", each / 6) for each in range(7)]


def test_numbers_that_are_not_finite_are_refused() -> None:
    model = transformer()
    next(each for each in model.graph.initializer if each.name == "embedding").raw_data = np.full(
        (6, WIDTH), np.inf, np.float32
    ).tobytes()
    with pytest.raises(EngineError, match="NaN or infinite numbers: features"):
        measure(model, _TENSORS, rollouts(), method="min-max")


def test_no_room_for_temporary_files_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fewstep.calibration.quantize.activations.onnx.save", full)
    with pytest.raises(OutputError, match="No space left on device; make room there, or set TMP"):
        measure(transformer(), _TENSORS, rollouts(), method="min-max")


# --- the cache


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
    assert read(path) is None
    write(path, _table())
    assert read(path) == _table()
    write(path, _table(method="min-max", percentile=None))
    assert read(path) != _table()


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


def _no_checksum(text: str) -> str:
    return json.dumps({name: v for name, v in json.loads(text).items() if name != "checksum"})


@pytest.mark.parametrize(
    "damage", [_edited, _truncated, _other_file, _no_checksum, lambda _: "", lambda _: "[1]"]
)
def test_a_corrupt_cache_is_an_error_and_stays(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "ranges.json"
    write(path, _table())
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
