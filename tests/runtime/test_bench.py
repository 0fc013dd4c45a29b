"""Benchmark bookkeeping: counts, stages, interleaving; times themselves are not asserted."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from fewstep.runtime import bench
from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator


def test_contenders_take_turns() -> None:
    calls: list[str] = []

    def run(name: str) -> bench.Run:
        def call() -> Mapping[str, float]:
            calls.append(name)
            return {}

        return call

    bench.measure({"a": (run("a"), 1, 1), "b": (run("b"), 1, 1)}, runs=3, warm_up=1)
    assert calls == ["a", "b"] * 4


def test_overhead_is_what_the_engines_do_not_explain() -> None:
    def run() -> Mapping[str, float]:
        return {"transformer": 1.0, "decoder": 1.0, "sampling": 5.0}

    (measured,) = bench.measure({"x": (run, 4, 2)}, runs=5)
    assert measured.runs == 5
    total = measured.total_ms
    assert measured.overhead == pytest.approx((total.p50 - 2.0) / 2.0)  # of equal engines
    assert measured.tokens_ms == pytest.approx(total.p50 - 1.0)
    assert measured.images_per_s == pytest.approx(4 / total.p50 * 1e3)
    assert total.p50 <= total.p90 <= total.p99
    assert measured.stages_ms["sampling"] == bench.Percentiles(5.0, 5.0, 5.0)


def test_percentiles_are_interpolated() -> None:
    assert bench.Percentiles.of([1.0, 2.0, 3.0]) == bench.Percentiles(2.0, 2.8, 2.98)


def test_generator_stages_sum_to_the_total(generator: Generator) -> None:
    timings = bench.contender(generator, batch=2, steps=4, schedule="policy")()
    assert {"transformer", "policy", "sampling", "decoder", "other", "total"} == set(timings)
    parts = sum(value for name, value in timings.items() if name != "total")
    assert parts == pytest.approx(timings["total"])


def test_text_bundles_are_timed_too(text_generator: Generator) -> None:
    assert bench.contender(text_generator, batch=2, steps=2)()["total"] > 0


def test_report_is_json_and_names_the_machine(generator: Generator) -> None:
    run = bench.contender(generator, batch=1, steps=1)
    measured = bench.measure({"fewstep": (run, 1, 1)}, runs=1)
    report = json.loads(json.dumps(bench.report(generator, measured).as_dict()))
    assert report["machine"]["cores"]
    assert report["peak_memory_bytes"] > 0
    assert report["measurements"][0]["name"] == "fewstep"


def test_no_runs_is_refused() -> None:
    with pytest.raises(RequestError, match="runs must be at least 1"):
        bench.measure({}, runs=0)
