"""Verification: an intact bundle passes; wrong graphs and wrong recordings are caught."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fewstep.runtime.bundle import Bundle, write_manifest
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import BundleError, EngineError
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import (
    THRESHOLDS,
    TITLES,
    Check,
    Report,
    Thresholds,
    psnr,
    verify,
)


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
    found = {(check.schedule, check.graph, check.figure) for check in report.checks}
    assert len(found) == len(report.checks)
    for schedule in ("cosine", "policy"):
        figures = {(graph, figure) for each, graph, figure in found if each == schedule}
        policy = {("policy", "action_error")} if schedule == "policy" else set()
        assert figures == policy | {
            ("transformer", "logit_error"),
            ("transformer", "mean_logit_error"),
            ("transformer", "argmax_agreement"),
            ("transformer", "kl_nats"),
            ("decoder", "psnr_db"),
            ("loop", "token_agreement"),
        }


@pytest.fixture
def two_policies(bundle_copy: Path) -> Path:
    """A second policy for four steps: the same graph, recorded under its own name."""
    graphs = Bundle.read(bundle_copy).manifest.model_dump()["graphs"]
    model = Bundle.read(bundle_copy).manifest.model_dump()["model"]
    graphs["policy-4"] = {**graphs["policy"], "file": "policy-4.onnx"}
    model["policies"]["policy-4"] = {"residual": True, "steps": 4}
    shutil.copy(bundle_copy / "policy.onnx", bundle_copy / "policy-4.onnx")
    arrays = dict(np.load(bundle_copy / "golden.npz"))
    own = [key for key in arrays if key.startswith("policy/")]
    arrays |= {key.replace("policy/", "policy-4/"): arrays[key] for key in own}
    np.savez(bundle_copy / "golden.npz", **arrays)
    _rehash(bundle_copy, graphs=graphs, model=model)
    return bundle_copy


def test_every_policy_is_verified_under_its_name(two_policies: Path) -> None:
    report = _verify(two_policies)
    assert report.passed
    acted = {(each.schedule, each.graph) for each in report.checks if each.figure == "action_error"}
    assert acted == {("policy", "policy"), ("policy-4", "policy-4")}


@pytest.mark.parametrize("wrong", ["policy", "policy-4"])
def test_the_policy_that_is_wrong_is_named(two_policies: Path, wrong: str) -> None:
    _scale_weights(two_policies / f"{wrong}.onnx", 1.2)
    _rehash(two_policies)
    report = _verify(two_policies)
    failed = {each.schedule for each in report.checks if not each.passed}
    assert failed == {wrong}
    assert report.failing_graphs[0] == wrong


def test_teacher_forced_figures_are_there_by_step(tiny_bundle: Path) -> None:
    for check in _verify(tiny_bundle).checks:
        if check.figure in ("psnr_db", "token_agreement"):
            assert (check.steps, check.worst_step) == ((), None)
            continue
        assert len(check.steps) == 4
        largest = check.figure in ("logit_error", "action_error")
        overall = max(check.steps) if largest else np.mean(check.steps)
        assert check.value == pytest.approx(overall, rel=1e-12)
        worst = min(check.steps) if check.figure == "argmax_agreement" else max(check.steps)
        assert check.steps[check.worst_step or 0] == worst


def test_the_report_says_what_ran(tiny_bundle: Path) -> None:
    report = _verify(tiny_bundle)
    assert (report.backend, report.device, report.precision) == ("onnxruntime", "cpu", "fp32")


def test_text_bundle_passes(tiny_text_bundle: Path) -> None:
    assert _verify(tiny_text_bundle).passed


@pytest.mark.parametrize(
    ("graph", "factor", "caught_by"),
    [
        ("transformer", 1.01, {"logit_error", "mean_logit_error", "kl_nats"}),
        ("policy", 1.2, {"action_error"}),
        ("decoder", math.nan, {"psnr_db"}),
    ],
)
def test_changed_weights_are_caught(
    bundle_copy: Path, graph: str, factor: float, caught_by: set[str]
) -> None:
    _scale_weights(bundle_copy / f"{graph}.onnx", factor)
    _rehash(bundle_copy)
    report = _verify(bundle_copy)
    failed = {check.figure for check in report.checks if not check.passed and check.graph == graph}
    assert caught_by <= failed
    assert report.failing_graphs[0] == graph
    assert not report.passed


def _damage_one(path: Path, operator: str, change: Callable[[Array], Array]) -> None:
    """Change the weights of one node that nothing else reads."""
    model = onnx.load(path)
    weights = {each.name: each for each in model.graph.initializer}
    node = next(
        each
        for each in model.graph.node
        if each.op_type == operator
        and each.input[1] in weights
        and len(set(weights[each.input[1]].dims)) == 1
    )
    changed = change(numpy_helper.to_array(weights[node.input[1]]).copy())
    model.graph.initializer.append(numpy_helper.from_array(changed, "changed"))
    node.input[1] = "changed"
    onnx.save(model, path)


def _one_weight(values: Array) -> Array:
    values[1, 2] += np.abs(values).max()
    return values


def _transposed(values: Array) -> Array:
    return np.ascontiguousarray(values.T)


def _one_nan(values: Array) -> Array:
    values[0, 0] = np.nan
    return values


@pytest.mark.parametrize("change", [_one_weight, _transposed, _one_nan])
def test_one_wrong_product_fails_its_graph(
    bundle_copy: Path, change: Callable[[Array], Array]
) -> None:
    _damage_one(bundle_copy / "transformer.onnx", "MatMul", change)
    _rehash(bundle_copy)
    report = _verify(bundle_copy)
    failed = {(check.graph, check.figure) for check in report.checks if not check.passed}
    assert {("transformer", "logit_error"), ("transformer", "kl_nats")} <= failed
    assert not any(graph == "decoder" for graph, _ in failed)
    json.dumps(report.as_dict(), allow_nan=False)


def test_bars_of_a_figure_may_be_left_out() -> None:
    bars = Thresholds(1e-3, 0.9, 0.9, 40.0)
    assert (bars.kl_nats, bars.mean_logit_error, bars.action_error) == (math.inf,) * 3
    check = Check("transformer", "cosine", "kl_nats", 3.0, bars.kl_nats, True)
    assert check.passed
    assert check.as_dict()["limit"] is None


@pytest.mark.parametrize("at_most", [True, False])
def test_nan_never_passes(at_most: bool) -> None:
    for limit in (0.0, math.inf, -math.inf):
        check = Check("decoder", "cosine", "psnr_db", math.nan, limit, at_most, (1.0, math.nan))
        assert not check.passed
        assert (check.worst_step, check.as_dict()["value"]) == (1, None)


@pytest.mark.parametrize("figure", [each.name for each in fields(Thresholds)])
def test_bars_are_looser_the_lower_the_precision(figure: str) -> None:
    """And every figure has a title, and a bar that is judged."""
    bars = [getattr(THRESHOLDS[each], figure) for each in ("fp32", "fp16", "bf16", "int8")]
    higher_is_better = figure in ("argmax_agreement", "token_agreement", "psnr_db")
    assert bars == sorted(bars, reverse=higher_is_better)
    assert THRESHOLDS["fp8"] == THRESHOLDS["int8"]
    assert all(map(math.isfinite, bars))
    assert figure in TITLES


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
