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
from tests.runtime.verify.rehash import rehash

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import EngineError
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import TITLES, TOLERANCES, Check, Report, Tolerances, verify
from fewstep.runtime.verify.report import AT_LEAST


def _verify(bundle: Path, max_batch: int = 8) -> Report:
    with Generator.open(bundle, threads=1, max_batch=max_batch) as generator:
        return verify(generator)


def _scale_weights(path: Path, factor: float) -> None:
    graph = onnx.load(path)
    for initializer in graph.graph.initializer:
        values = numpy_helper.to_array(initializer)
        if values.ndim == 2 and values.dtype == np.float32:
            scaled = numpy_helper.from_array(values * np.float32(factor), initializer.name)
            initializer.CopyFrom(scaled)
    onnx.save(graph, path)


# --- what is checked


def test_an_intact_bundle_passes_for_every_rollout(tiny_bundle: Path) -> None:
    report = _verify(tiny_bundle)
    assert report.passed
    found = {(check.rollout, check.graph, check.metric) for check in report.checks}
    assert len(found) == len(report.checks)
    for rollout in ("cosine", "policy"):
        metrics = {(graph, metric) for each, graph, metric in found if each == rollout}
        policy = {("policy", "action_error")} if rollout == "policy" else set()
        assert metrics == policy | {
            ("transformer", "logit_error"),
            ("transformer", "mean_logit_error"),
            ("transformer", "argmax_agreement"),
            ("transformer", "kl_nats"),
            ("decoder", "psnr_db"),
            ("loop", "token_agreement"),
        }


def test_text_bundle_passes(tiny_text_bundle: Path) -> None:
    assert _verify(tiny_text_bundle).passed


def test_metrics_with_forced_decisions_are_there_by_step(tiny_bundle: Path) -> None:
    for check in _verify(tiny_bundle).checks:
        if check.metric in ("psnr_db", "token_agreement"):
            assert (check.steps, check.worst_step) == ((), None)
            continue
        assert len(check.steps) == 4
        largest = check.metric in ("logit_error", "action_error")
        overall = max(check.steps) if largest else np.mean(check.steps)
        assert check.value == pytest.approx(overall, rel=1e-12)
        worst = min(check.steps) if check.metric == "argmax_agreement" else max(check.steps)
        assert check.steps[check.worst_step or 0] == worst


def test_the_report_says_what_ran(tiny_bundle: Path) -> None:
    report = _verify(tiny_bundle)
    assert (report.backend, report.device, report.precision) == ("onnxruntime", "cpu", "fp32")
    told = json.loads(json.dumps(report.as_dict()))
    assert told["passed"] is True
    assert all(check["passed"] for check in told["checks"])


def test_decoded_one_by_one_the_metrics_are_the_same(bundle_copy: Path) -> None:
    """An engine may take fewer images than were recorded. What is wrong is wrong either way."""
    _scale_weights(bundle_copy / "transformer.onnx", 1.01)
    rehash(bundle_copy)
    one, all_ = _verify(bundle_copy, max_batch=1), _verify(bundle_copy, max_batch=8)
    assert not one.passed
    assert len(one.checks) == len(all_.checks) > 10
    for found, expected in zip(one.checks, all_.checks, strict=True):
        place = (expected.graph, expected.rollout, expected.metric)
        assert (found.graph, found.rollout, found.metric) == place
        assert found.value == pytest.approx(expected.value, rel=1e-3, abs=1e-9), place
        assert found.steps == pytest.approx(expected.steps, rel=1e-3, abs=1e-9), place


# --- what is caught


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
    rehash(bundle_copy)
    report = _verify(bundle_copy)
    failed = {check.metric for check in report.checks if not check.passed and check.graph == graph}
    assert caught_by <= failed
    assert report.failing_graphs[0] == graph
    assert not report.passed


@pytest.mark.parametrize("graph", ["transformer", "decoder"])
def test_a_wrong_graph_fails_the_loop_and_no_graph_before_it(bundle_copy: Path, graph: str) -> None:
    """Tokens are no business of the decoder's; wrong logits are none of its own."""
    _scale_weights(bundle_copy / f"{graph}.onnx", 3.0)
    rehash(bundle_copy)
    report = _verify(bundle_copy)
    assert set(report.failing_graphs) - {"policy"} == {graph}
    agreements = {check.passed for check in report.checks if check.metric == "token_agreement"}
    assert agreements == {graph == "decoder"}


def test_nan_from_the_decoder_fails_verification_and_generation(bundle_copy: Path) -> None:
    _scale_weights(bundle_copy / "decoder.onnx", math.nan)
    rehash(bundle_copy)
    failed = {check.metric for check in _verify(bundle_copy).checks if not check.passed}
    assert failed == {"psnr_db", "token_agreement"}
    with (
        Generator.open(bundle_copy, threads=1) as generator,
        pytest.raises(EngineError, match="NaN"),
    ):
        generator.generate(class_ids=[0])


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
    rehash(bundle_copy)
    report = _verify(bundle_copy)
    failed = {(check.graph, check.metric) for check in report.checks if not check.passed}
    assert {("transformer", "logit_error"), ("transformer", "kl_nats")} <= failed
    assert not any(graph == "decoder" for graph, _ in failed)
    json.dumps(report.as_dict(), allow_nan=False)


# --- several policies


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
    arrays["policy-4/settings"] = np.array(json.dumps({"steps": 4, "schedule": "policy-4"}))
    np.savez(bundle_copy / "golden.npz", **arrays)
    rehash(bundle_copy, graphs=graphs, model=model)
    return bundle_copy


def test_every_policy_is_verified_under_its_name(two_policies: Path) -> None:
    report = _verify(two_policies)
    assert report.passed
    acted = {(each.rollout, each.graph) for each in report.checks if each.metric == "action_error"}
    assert acted == {("policy", "policy"), ("policy-4", "policy-4")}


@pytest.mark.parametrize("wrong", ["policy", "policy-4"])
def test_the_policy_that_is_wrong_is_named(two_policies: Path, wrong: str) -> None:
    _scale_weights(two_policies / f"{wrong}.onnx", 1.2)
    rehash(two_policies)
    report = _verify(two_policies)
    failed = {each.rollout for each in report.checks if not each.passed}
    assert failed == {wrong}
    assert report.failing_graphs[0] == wrong


# --- tolerances


def test_tolerances_of_a_metric_may_be_left_out() -> None:
    found = Tolerances(1e-3, 0.9, 0.9, 40.0)
    assert (found.kl_nats, found.mean_logit_error, found.action_error) == (math.inf,) * 3
    check = Check("transformer", "cosine", "kl_nats", 3.0, found.kl_nats, True)
    assert check.passed
    assert check.as_dict()["tolerance"] is None


@pytest.mark.parametrize("at_most", [True, False])
def test_nan_never_passes(at_most: bool) -> None:
    for tolerance in (0.0, math.inf, -math.inf):
        check = Check("decoder", "cosine", "psnr_db", math.nan, tolerance, at_most, (1.0, math.nan))
        assert not check.passed
        assert (check.worst_step, check.as_dict()["value"]) == (1, None)


@pytest.mark.parametrize("metric", [each.name for each in fields(Tolerances)])
def test_tolerances_are_looser_the_lower_the_precision(metric: str) -> None:
    found = [getattr(TOLERANCES[each], metric) for each in ("fp32", "fp16", "bf16", "int8")]
    assert found == sorted(found, reverse=metric in AT_LEAST)
    assert TOLERANCES["fp8"] == TOLERANCES["int8"]
    assert metric in TITLES
    assert all(map(math.isfinite, found))


def test_tolerances_belong_to_the_precision(bundle_copy: Path) -> None:
    graphs = Bundle.read(bundle_copy).manifest.model_dump()["graphs"]
    variant = {name: {**graph, "precision": "int8"} for name, graph in graphs.items()}
    rehash(bundle_copy, variants={"int8": variant})
    with Generator.open(bundle_copy, precision="int8", threads=1) as generator:
        report = verify(generator)
    found = {check.metric: check.tolerance for check in report.checks}
    assert report.precision == "int8"
    assert found["token_agreement"] == TOLERANCES["int8"].token_agreement
    assert found["logit_error"] == TOLERANCES["int8"].logit_error
