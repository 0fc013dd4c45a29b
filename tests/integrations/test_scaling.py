"""The arithmetic of docs/scaling.md."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from tests.benchmarks.scaling import Work, measured, planned, wait_s


def _simulated(servers: int, load: float, requests: int = 60_000) -> float:
    """Mean wait for services of one second, request by request."""
    free, now, waited = [0.0] * servers, 0.0, 0.0
    for gap in np.random.default_rng(0).exponential(1 / (servers * load), requests):
        now += gap
        start = max(now, heapq.heappop(free))
        waited += start - now
        heapq.heappush(free, start + 1)
    return waited / requests


def test_waits_are_those_of_a_simulated_queue() -> None:
    assert wait_s(1, 0.8, 3.0) == pytest.approx(3 * 0.8 / (2 * (1 - 0.8)))  # M/D/1
    for servers, load in ((1, 0.8), (4, 0.8), (100, 0.9)):
        assert wait_s(servers, load, 1.0) == pytest.approx(_simulated(servers, load), rel=0.2)


def test_what_gpus_make_and_need() -> None:
    work = Work(png_ms=10, png_bytes=100e3, answer_ms=0.3, answer_bytes=133e3)
    one, many = (planned(gpus, 10.0, 8, 3.6, work) for gpus in (1, 1000))
    assert (one.images, one.png_cores, one.stored) == (100, 1, 10e6)
    assert one.cost == pytest.approx(10.0)  # 10,000 s of a GPU at 0.001 a second
    assert many.cost == pytest.approx(one.cost) and many.images == 1000 * one.images
    assert many.waits[0.95] < one.waits[0.95] / 100


def test_pngs_are_measured() -> None:
    plain = measured([np.zeros((16, 16, 3), np.uint8)])
    noise = measured([np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)])
    assert plain.png_bytes < noise.png_bytes < noise.answer_bytes
    assert noise.png_ms > 0
