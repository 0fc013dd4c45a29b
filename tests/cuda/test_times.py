"""Times of generations: of every stage if profiled, else of the graph as a whole.

Covered: events in the graph and nothing else beside its nodes; parts that add up to the total;
batches that are added; no events left behind, not even by an engine that fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.cuda.graph_nodes import nodes_of

from fewstep.runtime.devices import Buffer
from fewstep.runtime.engines import BoundEngine
from fewstep.runtime.errors import EngineError
from fewstep.runtime.families.masked.program import MaskedKey
from fewstep.runtime.generator import Generator

Open = Callable[..., Generator]
Counts = Callable[[], dict[str, int]]


# --- stages and totals


@pytest.mark.parametrize(
    ("schedule", "stages", "spans"),
    [("cosine", {"transformer", "sampling", "decoder"}, 7)]
    + [("policy", {"transformer", "policy", "sampling", "decoder"}, 10)],
)
def test_profiled_stages_are_events_in_the_graph(
    open_cuda: Open, on_cuda: Generator, schedule: str, stages: set[str], spans: int
) -> None:
    key = MaskedKey(2, 3, guided=True, policy="policy" if schedule == "policy" else None)
    with open_cuda(on_cuda.bundle.path, profile=True) as generator:
        nodes = nodes_of(generator.plans.get(key).replay)
        assert generator.device.timings() == {}  # of the trial run before the capture
        for _ in range(2):
            taken = generator.generate(class_ids=[0, 1], steps=3, schedule=schedule).timings_ms
    assert nodes.count("event_record") == 2 * spans
    plain = nodes_of(on_cuda.plans.get(key).replay)
    assert [node for node in nodes if node != "event_record"] == plain
    assert set(taken) == stages | {"other", "total"}
    _assert_times_add_up(taken)


def test_without_profiling_the_graph_is_timed_as_a_whole(on_cuda: Generator) -> None:
    for _ in range(2):  # the first run's own time is not that of making the plan
        taken = on_cuda.generate(class_ids=[0, 1, 2], steps=6).timings_ms
        assert set(taken) == {"device", "other", "total"}
        _assert_times_add_up(taken)


@pytest.mark.parametrize("profile", [False, True])
def test_times_of_several_batches_are_added(
    open_cuda: Open, on_cuda: Generator, live: Counts, profile: bool
) -> None:
    with open_cuda(on_cuda.bundle.path, profile=profile, max_batch=2) as generator:
        request: dict[str, Any] = {"class_ids": [0] * 10, "steps": 8}
        generator.generate(**request)
        before = live()
        taken = generator.generate(**request).timings_ms
        assert live() == before  # no events are left behind
    _assert_times_add_up(taken)
    assert taken["other"] < taken["total"] / 2  # a single batch of five would leave most


def _assert_times_add_up(taken: Mapping[str, float]) -> None:
    parts = [value for name, value in taken.items() if name != "total"]
    assert all(value >= 0 for value in parts)
    assert sum(parts) == pytest.approx(taken["total"], rel=1e-3)
    assert taken["total"] > 0


# --- engines that fail while they are timed


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("name", ["transformer", "policy", "decoder"])
def test_a_profiled_generator_outlives_an_engine_that_failed(
    open_cuda: Open,
    on_cuda: Generator,
    monkeypatch: pytest.MonkeyPatch,
    live: Counts,
    name: str,
    capturable: bool,
) -> None:
    request: dict[str, Any] = {"class_ids": [1], "steps": 2, "schedule": "policy"}
    expected, before = on_cuda.generate(**request).tokens, live()
    with open_cuda(on_cuda.bundle.path, profile=True) as generator:
        for engine in generator.engines.values():
            engine.capturable = capturable and engine.capturable  # type: ignore[misc]
        monkeypatch.setattr(generator.engines[name], "bind", _failing_once(generator, name))
        with pytest.raises(EngineError, match="broken"):
            generator.generate(**request)
        found = generator.generate(**request)
    assert (found.tokens == expected).all()
    assert live() == before


def _failing_once(generator: Generator, name: str) -> Callable[..., BoundEngine]:
    bind, failures = generator.engines[name].bind, ["broken"]

    def bind_failing(bindings: Mapping[str, Buffer]) -> BoundEngine:
        bound = bind(bindings)

        def run() -> None:
            if failures:
                raise EngineError(failures.pop())
            bound.run()

        return replace(bound, run=run)

    return bind_failing
