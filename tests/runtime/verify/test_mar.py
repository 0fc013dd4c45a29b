"""Verification of MAR: z, noise and images with the recorded tokens, and where a free run ends.

Covered: what a recording holds; that everything is compared, image by image too; which graph is
named when one is wrong, damaged or gives NaN; that tokens of one iteration do not hide another.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from tests.runtime.verify.rehash import rehash

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import TOLERANCES, Check, Report, recordings, verify

Weights = npt.NDArray[Any]

_ITERATIONS, _STEPS = 8, 10
_METRICS = {
    ("readout", "latent_error"): _ITERATIONS,
    ("head", "noise_error"): _ITERATIONS * _STEPS,
    ("decoder", "psnr_db"): 0,
    ("loop", "loop_error"): 0,
}
"""What is judged, and of how many runs where there are several."""


def _verify(bundle: Path, max_batch: int = 8) -> Report:
    with Generator.open(bundle, threads=1, max_batch=max_batch) as generator:
        return verify(generator)


def _changed(bundle: Path, folder: Path, graph: str, change: Callable[[Weights], Weights]) -> Path:
    """A copy of which one graph has other weights, where they are matrices or larger."""
    path = Path(shutil.copytree(bundle, folder / graph))
    model = onnx.load(path / f"{graph}.onnx")
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.ndim >= 2:
            made = change(values).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(made, weight.name))
    onnx.save(model, path / f"{graph}.onnx")
    rehash(path)
    return path


def _failed(report: Report) -> set[tuple[str, str]]:
    return {(check.graph, check.metric) for check in report.checks if not check.passed}


def _by_name(report: Report, rollout: str) -> dict[tuple[str, str], Check]:
    return {(each.graph, each.metric): each for each in report.checks if each.rollout == rollout}


def test_a_recording_has_every_run_that_is_judged(mar_bundle: Path) -> None:
    found = recordings(Bundle.read(mar_bundle))
    assert found.keys() == {"full", "cached", "image_encoder"}
    for name, recording in found.items():
        graphs = [run.graph for run in recording.runs.values()]
        assert graphs.count("readout") == _ITERATIONS
        assert graphs.count("head") == _ITERATIONS * _STEPS
        assert graphs.count("decoder") == 1
        tokens = recording.decisions["tokens"]
        assert tokens.shape == (_ITERATIONS, 2, 16, 12)
        assert [int(np.isnan(each[0, :, 0]).sum()) for each in tokens][-1] == 0
        assert ("similarity" in recording.decisions) == (name == "cached")
        assert (recording.settings["refresh"] > 1) == (name == "cached")
        assert recording.settings["reuse_guidance"] == (name == "cached")


def test_z_noise_and_images_are_compared_also_image_by_image(mar_bundle: Path) -> None:
    report, one = _verify(mar_bundle), _verify(mar_bundle, max_batch=1)
    assert report.passed and one.passed
    for rollout in ("full", "cached"):
        found = _by_name(report, rollout)
        assert {name: len(check.steps) for name, check in found.items()} == _METRICS
        assert _by_name(one, rollout).keys() == found.keys()
        assert 0 < found["readout", "latent_error"].value < 1e-5
        assert 0 < found["head", "noise_error"].value < 1e-5
        assert found["loop", "loop_error"].value < 1e-4


@pytest.mark.parametrize("graph", ["encoder", "decoder_start", "decoder_rest", "readout"])
def test_a_wrong_part_of_the_transformer_is_seen_in_z(
    graph: str, mar_bundle: Path, tmp_path: Path
) -> None:
    report = _verify(_changed(mar_bundle, tmp_path, graph, lambda values: 1.5 * values))
    assert {("readout", "latent_error"), ("loop", "loop_error")} <= _failed(report)
    assert "decoder" not in report.failing_graphs
    assert "readout" in report.failing_graphs


def test_a_wrong_head_is_named_and_no_other(mar_bundle: Path, tmp_path: Path) -> None:
    """The recorded tokens take the place of what it gave: every z is as it should be."""
    report = _verify(_changed(mar_bundle, tmp_path, "head", lambda values: 1.01 * values))
    assert report.failing_graphs == ("head",)
    for rollout in ("full", "cached"):
        found = _by_name(report, rollout)
        noise = found["head", "noise_error"]
        assert noise.value == max(noise.steps) > TOLERANCES["fp32"].noise_error
        assert found["readout", "latent_error"].passed
        assert found["decoder", "psnr_db"].passed


def test_a_wrong_decoder_is_named_and_no_other(mar_bundle: Path, tmp_path: Path) -> None:
    report = _verify(_changed(mar_bundle, tmp_path, "decoder", lambda values: 1.01 * values))
    assert _failed(report) == {("decoder", "psnr_db")}


@pytest.mark.parametrize(
    ("graph", "metric"), [("readout", "latent_error"), ("head", "noise_error")]
)
def test_nan_meets_no_tolerance(graph: str, metric: str, mar_bundle: Path, tmp_path: Path) -> None:
    report = _verify(_changed(mar_bundle, tmp_path, graph, lambda values: values * np.nan))
    for rollout in ("full", "cached"):
        found = _by_name(report, rollout)
        assert math.isnan(found[graph, metric].value)
        assert math.isnan(found["loop", "loop_error"].value)
    assert {(graph, metric), ("loop", "loop_error")} <= _failed(report)
