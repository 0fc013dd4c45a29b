"""Ranges of activations against NumPy."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pytest

from fewstep.calibration.quantize.activations import measure
from fewstep.calibration.quantize.rollouts import Rollouts
from fewstep.runtime.errors import EngineError, OutputError

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
