"""Benchmark bookkeeping: counts, stages, interleaving; times themselves are not asserted."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from fewstep.runtime import bench
from fewstep.runtime.bench import Contender, Measurement
from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator

_GRAPHS = frozenset(("transformer", "decoder"))


def _contender(stages: Mapping[str, float], **options: Any) -> Contender:
    """One whose every run says that it took so long."""
    return Contender(lambda: stages, 4, {"steps": 2}, **options)


def _measured(what: Contender, runs: int = 5) -> Measurement:
    (measured,) = bench.measure({"x": what}, runs=runs)
    return measured


# --- measuring


def test_contenders_take_turns_and_progress_is_told() -> None:
    calls, told = list[str](), list[tuple[str, float]]()

    def contender(name: str) -> Contender:
        def run() -> Mapping[str, float]:
            calls.append(name)
            return {}

        return Contender(run, 1, {})

    bench.measure(
        {"a": contender("a"), "b": contender("b")},
        runs=4,
        progress=lambda what, fraction: told.append((what, fraction)),
    )
    assert calls == ["a", "b"] * 5
    quarters = [0.25, 0.5, 0.75, 1.0]
    assert told[:2] == [("warming up a", 1.0), ("warming up b", 1.0)]
    assert told[2:] == [(name, quarter) for quarter in quarters for name in ("a", "b")]


def test_without_a_number_of_runs_they_go_on_for_the_time_that_is_asked_for() -> None:
    def sleep() -> Mapping[str, float]:
        time.sleep(0.01)
        return {}

    fractions = list[float]()
    measured = bench.measure(
        {"a": Contender(sleep, 1, {}), "b": Contender(sleep, 1, {})},
        seconds=0.2,
        progress=lambda what, fraction: fractions.append(fraction),
    )
    assert all(bench.LEAST_RUNS < each.runs <= 20 for each in measured)
    assert all(0 <= each <= 1 for each in fractions) and fractions[-1] > 0.9
    (slow,) = bench.measure({"a": Contender(sleep, 1, {})}, seconds=1e-6)
    assert slow.runs == bench.LEAST_RUNS


def test_ratios_are_of_runs_of_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that gets slower all the time, twice as long is still twice as long."""
    now, round_of = [0.0], {"a": 0, "b": 0}
    monkeypatch.setattr("fewstep.runtime.bench.time.perf_counter", lambda: now[0])

    def contender(name: str, work: float) -> Contender:
        def run() -> Mapping[str, float]:
            round_of[name] += 1
            now[0] += work * 2 ** round_of[name]
            return {}

        return Contender(run, 1, {})

    first, second = bench.measure({"a": contender("a", 1.0), "b": contender("b", 2.0)}, runs=6)
    assert (first.ratio, second.ratio) == (1.0, 2.0)
    assert first.spread > 1


def test_a_busy_machine_and_uneven_times_are_said(generator: Generator) -> None:
    even = replace(_measured(_contender({})), spread=0.0)
    uneven = replace(even, name="y", spread=0.5)
    assert bench.report(generator, [even], 0.0).warnings == ()
    assert bench.report(generator, [even], None).warnings == ()
    busy, spread = bench.report(generator, [even, uneven], 0.4).warnings
    assert "other processes took 40% of its CPUs" in busy
    assert "times of y spreads over 50%" in spread


def test_overhead_is_what_the_graphs_do_not_explain() -> None:
    stages = {"transformer": 1.0, "decoder": 1.0, "sampling": 5.0}
    measured = _measured(_contender(stages, graphs=_GRAPHS))
    total = measured.total_ms
    assert (measured.runs, measured.batch, measured.settings) == (5, 4, {"steps": 2})
    assert measured.overhead == pytest.approx((total.p50 - 2.0) / 2.0)  # graphs never vary here
    assert measured.images_per_s == pytest.approx(4 / total.p50 * 1e3)
    assert measured.stages_ms == {
        name: bench.Percentiles(value, None, None) for name, value in stages.items()
    }


@pytest.mark.parametrize("stages", [{"device": 1.0, "other": 0.5}, {}])
def test_without_the_times_of_graphs_nothing_is_known_of_overhead(
    stages: dict[str, float],
) -> None:
    assert _measured(_contender(stages, graphs=_GRAPHS)).overhead is None


def test_what_a_contender_says_of_its_total_does_not_count() -> None:
    measured = _measured(_contender({"total": 1e9}), runs=1)
    assert measured.total_ms.p50 < 1e6
    assert measured.stages_ms == {}


def test_percentiles_are_interpolated() -> None:
    hundred = [float(value) for value in range(101)]
    assert bench.Percentiles.of(hundred) == bench.Percentiles(50.0, 90.0, 99.0)


def test_percentiles_that_so_few_runs_cannot_tell_are_left_out() -> None:
    assert bench.Percentiles.of([1.0, 2.0, 3.0]) == bench.Percentiles(2.0, None, None)
    assert bench.Percentiles.of([1.0] * 10) == bench.Percentiles(1.0, 1.0, None)


def test_no_runs_is_refused() -> None:
    with pytest.raises(RequestError, match="runs must be at least 1"):
        bench.measure({}, runs=0)
    for seconds in (0.0, float("nan"), float("inf")):
        with pytest.raises(RequestError, match="seconds must be above 0"):
            bench.measure({}, seconds=seconds)


# --- a generator's runs


def test_the_stages_of_a_generation_sum_to_its_total(generator: Generator) -> None:
    settings = {"steps": 4, "schedule": "policy"}
    what = bench.contender(generator, batch=2, settings=settings)
    complete = {"steps": 4, "schedule": "policy-exported", "decoder": "full"}
    assert (what.batch, what.settings) == (2, complete)
    assert what.graphs == {"transformer", "policy", "decoder"}
    timings = what.run()
    assert {*what.graphs, "sampling", "other", "total"} == set(timings)
    parts = sum(value for name, value in timings.items() if name != "total")
    assert parts == pytest.approx(timings["total"])


def test_text_bundles_are_timed_too(text_generator: Generator) -> None:
    what = bench.contender(text_generator, batch=2, settings={"steps": 2})
    assert what.graphs == {"transformer", "decoder"}
    assert what.run()["total"] > 0


def test_more_images_than_there_are_classes_begin_again(generator: Generator) -> None:
    what = bench.contender(generator, batch=8, settings={"steps": 1})  # of 5 classes
    assert what.run()["total"] > 0


@pytest.mark.parametrize(
    ("batch", "settings", "message"),
    [
        (9, {}, "batch 9 exceeds the 8 images that are decoded together.*larger --max-batch"),
        (1, {"steps": 17}, "steps must be 1 … 16"),
        (1, {"step": 4}, "unknown setting 'step'.*Did you mean 'steps'"),
    ],
)
def test_what_cannot_be_timed_is_refused_before_anything_runs(
    generator: Generator, batch: int, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        bench.contender(generator, batch=batch, settings=settings)


def test_a_report_is_json_and_names_the_machine(generator: Generator) -> None:
    what = bench.contender(generator, batch=1, settings={"steps": 1, "guidance": (0.0, 1.0)})
    measured = bench.measure({"fewstep": what}, runs=1)
    report = json.loads(json.dumps(bench.report(generator, measured).as_dict()))
    assert report["machine"]["cores"]
    assert report["peak_memory_bytes"] > 0
    (entry,) = report["measurements"]
    assert (entry["name"], entry["settings"]["guidance"]) == ("fewstep", [0.0, 1.0])
    assert entry["settings"]["schedule"] == "cosine"  # complete, whatever the defaults become
