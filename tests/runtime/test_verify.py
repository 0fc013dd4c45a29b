"""Verification: an intact bundle passes; wrong graphs and wrong recordings are caught."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fewstep.runtime.bundle import Bundle, write_manifest
from fewstep.runtime.errors import BundleError, EngineError
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import THRESHOLDS, Report, psnr, verify


def _verify(bundle: Path) -> Report:
    with Generator.open(bundle, threads=1) as generator:
        return verify(generator)


def _rehash(bundle: Path, **changes: object) -> None:
    """Make the manifest agree with changed files, as a malicious or careless tool would."""
    manifest = Bundle.read(bundle).manifest.model_dump()
    write_manifest(bundle, {**manifest, **changes})


def _scale_weights(path: Path, factor: float) -> None:
    graph = onnx.load(path)
    for initializer in graph.graph.initializer:
        values = numpy_helper.to_array(initializer)
        if values.ndim == 2 and values.dtype == np.float32:
            scaled = numpy_helper.from_array(values * np.float32(factor), initializer.name)
            initializer.CopyFrom(scaled)
    onnx.save(graph, path)


def test_intact_bundle_passes_for_every_schedule(tiny_bundle: Path) -> None:
    report = _verify(tiny_bundle)
    assert report.passed
    assert {check.schedule for check in report.checks} == {"cosine", "policy"}
    figures = {check.figure for check in report.checks if check.schedule == "policy"}
    assert figures == {
        "logit_error",
        "argmax_agreement",
        "psnr_db",
        "token_agreement",
        "action_error",
    }


def test_text_bundle_passes(tiny_text_bundle: Path) -> None:
    assert _verify(tiny_text_bundle).passed


@pytest.mark.parametrize(
    ("graph", "factor", "caught_by"),
    [
        ("transformer", 1.01, "logit_error"),
        ("policy", 1.2, "action_error"),
    ],
)
def test_changed_weights_are_caught(
    bundle_copy: Path, graph: str, factor: float, caught_by: str
) -> None:
    _scale_weights(bundle_copy / f"{graph}.onnx", factor)
    _rehash(bundle_copy)
    failed = {check.figure for check in _verify(bundle_copy).checks if not check.passed}
    assert caught_by in failed


def test_wrong_decoder_is_caught(bundle_copy: Path) -> None:
    golden = bundle_copy / "golden.npz"
    arrays = dict(np.load(golden))
    arrays["cosine/image"] = arrays["cosine/image"] * 0.9
    np.savez(golden, **arrays)
    _rehash(bundle_copy)
    failed = {(c.schedule, c.figure) for c in _verify(bundle_copy).checks if not c.passed}
    assert failed == {("cosine", "psnr_db")}


def test_thresholds_belong_to_the_precision(bundle_copy: Path) -> None:
    graphs = Bundle.read(bundle_copy).manifest.model_dump()["graphs"]
    variant = {name: {**graph, "precision": "int8"} for name, graph in graphs.items()}
    _rehash(bundle_copy, variants={"int8": variant})
    with Generator.open(bundle_copy, precision="int8", threads=1) as generator:
        report = verify(generator)
    limits = {check.figure: check.limit for check in report.checks}
    assert report.precision == "int8"
    assert limits["token_agreement"] == THRESHOLDS["int8"].token_agreement
    assert limits["logit_error"] == THRESHOLDS["int8"].logit_error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("empty", "holds no rollout"),
        ("cosine/logits", "'cosine' lacks logits"),
        ("tokens", "'cosine' is not of 16 tokens"),
    ],
)
def test_recordings_with_nothing_to_check_are_refused(
    bundle_copy: Path, change: str, message: str
) -> None:
    arrays = dict(np.load(bundle_copy / "golden.npz"))
    if change == "empty":
        arrays.clear()
    elif change == "tokens":
        arrays["cosine/tokens"] = arrays["cosine/tokens"][:, :, :9]
    else:
        del arrays[change]
    np.savez(bundle_copy / "golden.npz", **arrays)
    _rehash(bundle_copy)
    with pytest.raises(BundleError, match=message):
        _verify(bundle_copy)


def test_a_file_that_is_no_archive_is_refused(bundle_copy: Path) -> None:
    with (bundle_copy / "golden.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    _rehash(bundle_copy)
    with pytest.raises(BundleError, match="is not an array archive"):
        _verify(bundle_copy)


def test_bundle_without_golden_rollouts_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / "golden.npz").unlink()
    _rehash(bundle_copy, golden=None)
    with pytest.raises(BundleError, match="no golden rollouts"):
        _verify(bundle_copy)


def test_report_is_json(tiny_bundle: Path) -> None:
    report = json.loads(json.dumps(_verify(tiny_bundle).as_dict()))
    assert report["passed"] is True
    assert all(check["passed"] for check in report["checks"])


def test_psnr_of_a_known_error() -> None:
    image = np.zeros((4, 4), np.float32)
    assert psnr(image + 0.1, image, peak=1.0) == pytest.approx(20.0, abs=1e-4)
    assert psnr(image, image, peak=1.0) == 120.0
    assert math.isnan(psnr(image + math.nan, image, peak=1.0))


def test_nan_from_the_decoder_fails_verification_and_generation(bundle_copy: Path) -> None:
    _scale_weights(bundle_copy / "decoder.onnx", math.nan)
    _rehash(bundle_copy)
    failed = {check.figure for check in _verify(bundle_copy).checks if not check.passed}
    assert failed == {"psnr_db", "token_agreement"}
    with (
        Generator.open(bundle_copy, threads=1) as generator,
        pytest.raises(EngineError, match="NaN"),
    ):
        generator.generate(class_ids=[0])
