"""Metrics of quantized graphs against NumPy: of logits, and of what graphs without logits give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest

from fewstep.calibration.quantize import judge as judge_module
from fewstep.calibration.quantize.activations import measure
from fewstep.calibration.quantize.judge import Judge
from fewstep.calibration.quantize.qdq import quantized
from fewstep.calibration.quantize.readout import Readout
from fewstep.calibration.quantize.rollouts import Rollouts
from fewstep.calibration.quantize.settings import tolerances
from fewstep.runtime.errors import EngineError
from fewstep.runtime.records import Metrics

from .graphs import CODES, MATMULS, rollouts, run, transformer

_RANGES = measure(transformer(), ("x", "features", "flat"), rollouts(), method="min-max")
_HELD_OUT = rollouts(count=5, seed=9)
_OWN = Readout(own={"features": 0, "logits": 0})


def _build(names: Sequence[str]) -> onnx.ModelProto:
    return quantized(transformer(), names, _RANGES)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(transformer(), Readout("logits"), _HELD_OUT)


# --- logits


def _expected(model: onnx.ModelProto) -> Metrics:
    """By hand: every masked position of the conditional branch, all steps in one."""
    inputs = {
        name: np.concatenate([each.own[name] for each in _HELD_OUT.passes])
        for name in ("tokens", "condition")
    }
    tokens = inputs["tokens"]
    p, q = (
        np.exp(run(each, inputs, ["logits"])[0][tokens == CODES].astype(np.float64))
        for each in (transformer(), model)
    )
    p, q = (each / each.sum(-1, keepdims=True) for each in (p, q))
    kl = float((p * np.log(p / q)).sum(-1).mean())
    agreement = float((p.argmax(-1) == q.argmax(-1)).mean())
    return Metrics(kl_nats=kl, token_agreement=agreement)


def test_metrics_are_those_of_numpy(judge: Judge) -> None:
    found, expected = judge.metrics(_build(MATMULS)), _expected(_build(MATMULS))
    assert found.kl_nats == pytest.approx(expected.kl_nats, rel=1e-3)
    assert found.token_agreement == pytest.approx(expected.token_agreement)
    assert found.cost > 1e-6 and found.relative_error is None


def test_the_graph_itself_agrees(judge: Judge) -> None:
    found = judge.metrics(transformer())
    assert found.kl_nats == pytest.approx(0, abs=1e-12)
    assert found.token_agreement == 1.0


def test_fewer_positions_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept for reference stays within its limit."""
    monkeypatch.setattr(judge_module, "_MOST_NUMBERS", 40)
    few = Judge(transformer(), Readout("logits"), _HELD_OUT)
    assert 0 < sum(each.size for each in few._expected) <= 40
    assert few.metrics(_build(MATMULS)).cost > 0


@pytest.mark.parametrize("judged", [Readout("logits"), Readout(own={"logits": 0})])
def test_nan_is_refused(judged: Readout) -> None:
    judge, model = Judge(transformer(), judged, _HELD_OUT), transformer()
    bias = next(each for each in model.graph.initializer if each.name == "b_head")
    bias.raw_data = np.full(CODES, np.nan, np.float32).tobytes()
    with pytest.raises(EngineError, match="NaN or infinite numbers; quantize with --other-layers"):
        judge.metrics(model)


# --- what graphs without logits give


def _values(
    model: onnx.ModelProto, *, masked: bool
) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    """Features and logits of all passes by hand, at masked positions alone or at all."""
    found = []
    for each in _HELD_OUT.passes:
        at = each.own["tokens"] == CODES if masked else np.ones(each.own["tokens"].shape, bool)
        values = run(model, each.own, ["features", "logits"])
        found += [value[at].astype(np.float64).ravel() for value in values]
    return found


@pytest.mark.parametrize("masked", [True, False])
def test_the_relative_error_is_that_of_numpy(masked: bool) -> None:
    """Of all outputs together, where the family says so only at positions that count."""
    every = Rollouts(tuple(replace(each, counted=None) for each in _HELD_OUT.passes))
    judge = Judge(transformer(), _OWN, _HELD_OUT if masked else every)
    y, other = (
        np.concatenate(_values(each, masked=masked)) for each in (transformer(), _build(MATMULS))
    )
    expected = np.sqrt(((y - other) ** 2).sum() / (y**2).sum())
    found = judge.metrics(_build(MATMULS))
    assert found.relative_error == pytest.approx(float(expected), rel=1e-3)
    assert found.cost > 1e-4 and (found.kl_nats, found.token_agreement) == (None, None)
    assert judge.metrics(transformer()) == Metrics(relative_error=0.0)


def test_rows_may_come_second_and_other_positions_all_count() -> None:
    """What is judged is [N, B, W] as well, and as [B, 1, …] has other positions than count."""
    moved, pooled = (_with_output(name) for name in ("moved", "pooled"))
    features = Judge(transformer(), Readout(own={"features": 0}), _HELD_OUT)
    error = features.metrics(_build(MATMULS)).cost
    second = Judge(moved, Readout(own={"moved": 1}), _HELD_OUT)
    assert second.metrics(_with_output("moved", _build(MATMULS))).cost == pytest.approx(error)
    wrong = Judge(moved, Readout(own={"moved": 0}), _HELD_OUT)
    assert wrong.metrics(_with_output("moved", _build(MATMULS))).cost != pytest.approx(error)
    for axis in (0, None):
        other = Judge(pooled, Readout(own={"pooled": axis}), _HELD_OUT)
        values = [run(pooled, each.own, ["pooled"])[0] for each in _HELD_OUT.passes]
        assert sum(each.size for each in other._expected) == sum(each.size for each in values)


def _with_output(name: str, model: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """The transformer with its features in another layout: positions first, or their mean."""
    model = transformer() if model is None else model
    node = {
        "moved": onnx.helper.make_node("Transpose", ["features"], [name], perm=[1, 0, 2]),
        "pooled": onnx.helper.make_node("ReduceMean", ["features", "one"], [name]),
    }[name]
    shapes: dict[str, list[str | int | None]] = {
        "moved": [4, "batch", 8],
        "pooled": ["batch", 1, 8],
    }
    model.graph.node.append(node)
    info = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shapes[name])
    model.graph.output.append(info)
    return model


# --- tolerances


@pytest.mark.parametrize(
    ("found", "limits", "within"),
    [
        ({"kl_nats": 0.1, "token_agreement": 0.9}, {"max_kl": 0.2}, True),
        ({"kl_nats": 0.1, "token_agreement": 0.9}, {"max_kl": 0.05}, False),
        ({"kl_nats": 0.1, "token_agreement": 0.9}, {"min_token_agreement": 0.95}, False),
        ({"kl_nats": 0.1, "token_agreement": 0.9}, {"max_error": 0.01}, True),
        ({"relative_error": 0.02}, {"max_error": 0.02}, True),
        ({"relative_error": 0.02}, {"max_error": 0.01}, False),
        ({"relative_error": 0.02}, {"max_kl": 0.001, "min_token_agreement": 1.0}, True),
    ],
)
def test_tolerances_are_on_what_was_measured(
    found: dict[str, float], limits: dict[str, float], within: bool
) -> None:
    assert Metrics(**found).within(tolerances("layer", **limits)) == within


@pytest.mark.parametrize(
    "found", [{}, {"kl_nats": 0.1}, {"kl_nats": 0.1, "token_agreement": 1.0, "relative_error": 0.1}]
)
def test_metrics_are_of_one_kind(found: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected kl_nats and token_agreement, relative_error"):
        Metrics(**found)
