"""The ranking of layers, and that no more is kept than the tolerances need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from fewstep.calibration.quantize.activations import measure
from fewstep.calibration.quantize.judge import Judge
from fewstep.calibration.quantize.qdq import quantized
from fewstep.calibration.quantize.readout import Readout
from fewstep.calibration.quantize.sensitivity import fewest_kept, rank
from fewstep.calibration.quantize.settings import tolerances
from fewstep.runtime.errors import RequestError
from fewstep.runtime.records import AutoChoice, LayerCost, Metrics

from .graphs import MATMULS, rollouts, transformer

_RANGES = measure(transformer(), ("x", "features", "flat"), rollouts(), method="min-max")
_HELD_OUT = rollouts(count=5, seed=9)


def _build(names: Sequence[str]) -> onnx.ModelProto:
    return quantized(transformer(), names, _RANGES)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(transformer(), Readout("logits"), _HELD_OUT)


def test_the_ranking_measures_each_alone(judge: Judge) -> None:
    reported: list[tuple[str, float]] = []
    groups = [[name] for name in MATMULS]
    ranking = rank(judge, _build, groups, "ranking", lambda *each: reported.append(each))
    assert {each.nodes[0] for each in ranking} == set(MATMULS)
    costs = [each.cost for each in ranking]
    assert costs == sorted(costs, reverse=True)
    for cost in ranking:
        assert cost.kl_nats == pytest.approx(judge.metrics(_build(cost.nodes)).kl_nats)
    assert reported == [("ranking", done) for done in (0.0, 0.25, 0.5, 0.75, 1.0)]


# --- selecting


class _Costs:
    """Stands in for a judge: the cost of a graph is the sum of its matmuls' costs."""

    def __init__(self, costs: dict[str, float]) -> None:
        self.costs, self.measured = costs, list[frozenset[str]]()

    def build(self, names: Sequence[str]) -> frozenset[str]:
        return frozenset(names)

    def metrics(self, names: frozenset[str]) -> Metrics:
        self.measured.append(names)
        total = sum(self.costs[name] for name in names)
        return Metrics(kl_nats=total, token_agreement=1 - total / 100)

    def choose(self, max_kl: float, agreement: float = 0.0) -> int:
        ranking = tuple(
            LayerCost(nodes=(name,), kl_nats=cost, token_agreement=1.0)
            for name, cost in sorted(self.costs.items(), key=lambda each: -each[1])
        )
        auto: AutoChoice = tolerances("layer", max_kl, agreement)
        wanted = auto.model_copy(update={"ranking": ranking})
        return fewest_kept(self, self.build, wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_the_fewest_are_kept_and_one_fewer_was_seen_to_fail(count: int) -> None:
    costs = {f"n{index}": float(index + 1) for index in range(count)}
    for kept in range(count):
        rest = set(sorted(costs, key=lambda name: -costs[name])[kept:])
        stand_in = _Costs(costs)
        assert stand_in.choose(sum(costs[name] for name in rest) + 0.1) == kept
        assert frozenset(rest) in stand_in.measured
        if kept:
            fewer = set(sorted(costs, key=lambda name: -costs[name])[kept - 1 :])
            assert frozenset(fewer) in stand_in.measured
        assert len(stand_in.measured) <= np.log2(count + 1) + 3


def test_both_tolerances_count() -> None:
    costs = {"a": 5.0, "b": 2.0, "c": 1.0}
    assert _Costs(costs).choose(100.0, 0.0) == 0
    assert _Costs(costs).choose(100.0, 0.97) == 1
    assert _Costs(costs).choose(1.5, 0.97) == 2


@pytest.mark.parametrize("costs", [{"a": 5.0}, {"a": 5.0, "b": 3.0}])
def test_tolerances_that_nothing_keeps_are_an_error_with_the_metrics(
    costs: dict[str, float],
) -> None:
    with pytest.raises(RequestError, match=r"no layer can be quantized within KL 1 .* KL \d"):
        _Costs(costs).choose(1.0)
