"""The roofline and the launches of one stage, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fewstep.build.gpus import Gpu
from fewstep.build.roofline import Stage, stage_bound

_TOY = Gpu("toy", "Toy", "8.7", 10, 1000, 100, 8, 0, ("",))  # fp32: 2.56 TFLOP/s, no caches


def _stage(**changes: Any) -> Stage:
    return replace(Stage("toy", (), (0,), 0, 0, 0, 0, launches=0), **changes)


def test_roofline_by_hand() -> None:
    compute = stage_bound(_stage(flops=2_560_000_000, read_bytes=1000), _TOY, "fp32")
    assert compute.ms == pytest.approx(1.0)
    assert compute.limit == "compute"
    memory = stage_bound(_stage(weights=25_000_000, written_bytes=100), _TOY, "fp32")
    assert memory.ms == pytest.approx(1.0, rel=1e-5)
    assert memory.limit == "memory"
    assert stage_bound(_stage(weights=25_000_000), _TOY, "int8").ms == pytest.approx(0.25)


def test_caches_may_hold_what_they_can_and_no_more() -> None:
    cached, mib = replace(_TOY, cache_mib=1), 1 << 20
    held = stage_bound(_stage(read_bytes=mib, written_bytes=mib), cached, "fp32")
    assert (held.ms, held.limit) == (0.0, "none")
    beyond = stage_bound(_stage(read_bytes=mib + 300, written_bytes=mib + 700), cached, "fp32")
    assert beyond.memory_ms == pytest.approx(1e3 * 1000 / 100e9)


def test_launches_come_on_top_of_the_work() -> None:
    """10 launches of 0.55 µs beside 1 ms, and beside next to nothing."""
    long = stage_bound(_stage(flops=2_560_000_000, launches=10), _TOY, "fp32")
    assert long.launch_ms == pytest.approx(0.0055)
    assert long.work_ms == pytest.approx(1.0)
    assert long.ms == pytest.approx(1.0055)
    assert long.limit == "compute"
    short = stage_bound(_stage(flops=256, launches=10), _TOY, "fp32")
    assert short.ms == pytest.approx(0.0055 + 1e-7)
    assert (short.work_limit, short.limit) == ("compute", "launches")
