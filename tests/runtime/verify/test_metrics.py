"""Metrics of a replay against plain loops, and their properties."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.devices import Array
from fewstep.runtime.families import TensorKind
from fewstep.runtime.verify import METRICS, TITLES, TOLERANCES
from fewstep.runtime.verify.report import AT_LEAST

_SHAPE = (3, 2, 4, 7)  # steps, images, positions, codes


def _logits(seed: int, spread: float = 5.0, noise: float = 0.3) -> tuple[Array, Array]:
    """An engine's logits and PyTorch's."""
    random = np.random.default_rng(seed)
    expected = (spread * random.standard_normal(_SHAPE)).astype(np.float32)
    return expected + (noise * random.standard_normal(_SHAPE)).astype(np.float32), expected


def _found(actual: Array, expected: Array) -> dict[str, list[float]]:
    """All metrics of logits, by name; the first axis is that of the runs."""
    return {
        name: metric(list(actual), list(expected)) for name, metric in METRICS["logits"].items()
    }


def _probabilities(logits: list[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(each - top) for each in logits]
    return [each / sum(powers) for each in powers]


def _by_loops(actual: Array, expected: Array) -> dict[str, list[float]]:
    """The definitions, number by number, in double precision."""
    scale = max([1.0, *(abs(float(each)) for each in expected.flat)])
    found: dict[str, list[float]] = {}
    for step in range(len(expected)):
        errors, agreed, divergences = [], [], []
        for image in range(expected.shape[1]):
            for position in range(expected.shape[2]):
                a = [float(each) for each in actual[step, image, position]]
                e = [float(each) for each in expected[step, image, position]]
                errors += [abs(x - y) / scale for x, y in zip(a, e, strict=True)]
                agreed.append(a.index(max(a)) == e.index(max(e)))
                p, q = _probabilities(e), _probabilities(a)
                terms = (x * (math.log(x) - math.log(y)) for x, y in zip(p, q, strict=True))
                divergences.append(math.fsum(terms))
        metrics = {
            "logit_error": max(errors),
            "mean_logit_error": math.fsum(errors) / len(errors),
            "argmax_agreement": sum(agreed) / len(agreed),
            "kl_nats": math.fsum(divergences) / len(divergences),
        }
        for metric, value in metrics.items():
            found.setdefault(metric, []).append(value)
    return found


@given(st.integers(0, 2**31), st.sampled_from([0.01, 1.0, 30.0]), st.sampled_from([1e-3, 1.0]))
def test_metrics_of_logits_are_their_definitions(seed: int, spread: float, noise: float) -> None:
    actual, expected = _logits(seed, spread, noise)
    found, wanted = _found(actual, expected), _by_loops(actual, expected)
    assert found.keys() == wanted.keys()
    for metric, values in wanted.items():
        assert found[metric] == pytest.approx(values, rel=1e-5, abs=1e-9), metric


def test_kl_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2): KL = ln 2 − H(p) = 0.130812… nats, and not KL(q ‖ p)."""
    expected = np.log([[[[0.75, 0.25]]]])
    actual = np.log([[[[0.5, 0.5]]]])
    wanted = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert _found(actual, expected)["kl_nats"] == [pytest.approx(wanted, abs=1e-12)]
    other = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert _found(expected, actual)["kl_nats"] == [pytest.approx(other, abs=1e-12)]


@given(st.integers(0, 2**31), st.floats(-50, 50))
def test_kl_does_not_see_a_shift_of_all_logits(seed: int, shift: float) -> None:
    actual, expected = _logits(seed)
    moved = _found(actual.astype(np.float64) + shift, expected)["kl_nats"]
    assert moved == pytest.approx(_found(actual, expected)["kl_nats"], rel=1e-6)


@given(st.integers(0, 2**31))
def test_equal_logits_are_perfect(seed: int) -> None:
    _, expected = _logits(seed)
    assert _found(expected, expected) == {
        "logit_error": [0.0] * 3,
        "mean_logit_error": [0.0] * 3,
        "argmax_agreement": [1.0] * 3,
        "kl_nats": [0.0] * 3,
    }


@given(st.integers(0, 2**31))
def test_kl_is_positive_and_grows_with_noise(seed: int) -> None:
    small, large = (_found(*_logits(seed, noise=n))["kl_nats"] for n in (0.01, 1.0))
    assert all(0 < low < high for low, high in zip(small, large, strict=True))


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_spoils_its_step_only(odd: float) -> None:
    actual, expected = _logits(0)
    actual[1, 0, 2, 3] = odd
    found = _found(actual, expected)
    assert not math.isfinite(found["logit_error"][1])
    assert not math.isfinite(found["kl_nats"][1])
    for metric in ("logit_error", "kl_nats"):
        assert math.isfinite(found[metric][0])
        assert math.isfinite(found[metric][2])


def test_magnitudes_below_one_do_not_blow_errors_up() -> None:
    """Where relative errors mislead: logits near 0 with a difference that changes nothing."""
    expected = np.full((1, 1, 1, 4), 1e-6, np.float32)
    assert _found(-expected, expected)["logit_error"] == [pytest.approx(2e-6)]


@pytest.mark.parametrize(
    ("kind", "metric"), [("action", "action_error"), ("latents", "latent_error")]
)
@pytest.mark.parametrize(
    ("actual", "expected", "wanted"),
    [
        ([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 5.0]], [0.0, 0.2]),
        ([[0.5], [0.0]], [[0.25], [0.0]], [0.25, 0.0]),
        ([[9.0], [np.nan]], [[10.0], [0.0]], [0.1, np.nan]),
    ],
)
def test_largest_errors_by_hand(
    kind: TensorKind, metric: str, actual: Any, expected: Any, wanted: list[float]
) -> None:
    found = METRICS[kind][metric](list(np.array(actual)), list(np.array(expected)))
    assert found == pytest.approx(wanted, nan_ok=True)


def test_runs_may_have_shapes_of_their_own() -> None:
    """As the scales of a model that decides more tokens with every step."""
    random = np.random.default_rng(0)
    expected = [random.standard_normal((2, count, 7)).astype(np.float32) for count in (1, 4, 9)]
    actual = [each + np.float32(0.1) for each in expected]
    for metric in METRICS["logits"].values():
        assert len(metric(actual, expected)) == 3
    scale = max(1.0, *(float(np.abs(each).max()) for each in expected))
    assert METRICS["logits"]["logit_error"](actual, expected) == pytest.approx([0.1 / scale] * 3)


def test_psnr_of_a_known_error() -> None:
    image = np.zeros((4, 4), np.float32)
    (psnr,) = METRICS["image"].values()
    found = psnr([image + 0.1, image, image + math.nan], [image] * 3)
    assert found == pytest.approx([20.0, 120.0, math.nan], abs=1e-4, nan_ok=True)


def test_every_metric_has_a_title_and_a_tolerance_and_belongs_to_one_kind() -> None:
    names = [name for metrics in METRICS.values() for name in metrics]
    assert len(names) == len(set(names))
    assert {*names, "token_agreement", "loop_error"} == TITLES.keys()
    assert TITLES.keys() >= AT_LEAST
    assert all(hasattr(TOLERANCES["fp32"], name) for name in TITLES)


def test_cosines_are_those_of_pytorch_over_what_is_no_padding() -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    expected = random.standard_normal((2, 4, 8)).astype(np.float32)
    actual = expected + 0.3 * random.standard_normal((2, 4, 8)).astype(np.float32)
    each = torch.cosine_similarity(torch.from_numpy(actual), torch.from_numpy(expected), dim=-1)
    found = METRICS["states"]["state_cosine"]([actual], [expected])
    assert found == pytest.approx([each.mean().item()], abs=1e-6)
    expected[:, 2:] = 0  # padding
    found = METRICS["states"]["state_cosine"]([actual], [expected])
    assert found == pytest.approx([each[:, :2].mean().item()], abs=1e-6)
    actual[0, 0, 0] = np.nan
    assert np.isnan(METRICS["states"]["state_cosine"]([actual], [expected])[0])
