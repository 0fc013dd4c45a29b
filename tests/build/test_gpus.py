"""The table of GPUs against published totals, and the roofline of one stage by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fewstep.build.gpus import GPUS, Gpu, Stage, gpu_of, stage_bound

# Published figures

_PUBLISHED = [
    ("rtx-4090", "fp32", 82.6),
    ("rtx-4090", "fp16", 330.3),  # fp16 accumulator
    ("rtx-4090", "bf16", 165.2),  # fp32 accumulator
    ("rtx-4090", "int8", 660.6),
    ("rtx-4090", "fp8", 660.6),
    ("rtx-3090", "fp32", 35.6),
    ("rtx-3090", "fp16", 142),
    ("rtx-3090", "bf16", 71),
    ("rtx-5090", "fp32", 104.8),
    ("rtx-5090", "fp16", 419),
    ("rtx-5090", "fp8", 838),
    ("rtx-5090", "fp8", 3352 / 4),  # "AI TOPS": sparse fp4, of which dense fp8 is a quarter
    ("rtx-5080", "fp8", 1801 / 4),
    ("rtx-4080", "int8", 780 / 2),  # "AI TOPS": sparse int8
    ("rtx-4070", "int8", 466 / 2),
    ("rtx-4060", "int8", 242 / 2),
    ("rtx-3060", "int8", 102),
    ("agx-orin", "fp32", 5.3),
    ("agx-orin", "int8", 170 / 2),  # the GPU's share of 275 sparse TOPS
    ("orin-nano", "int8", 67 / 2),
    ("orin-nx", "int8", 77 / 2),
    ("thor", "fp8", 2070 / 4),
]


@pytest.mark.parametrize(("name", "precision", "tera"), _PUBLISHED)
def test_peaks_are_the_published_totals(name: str, precision: str, tera: float) -> None:
    assert gpu_of(name).peaks[precision] == pytest.approx(tera * 1e12, rel=0.011)


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_has_its_sources_and_plausible_figures(name: str) -> None:
    gpu = gpu_of(name)
    assert gpu.name == name
    assert all("https://" in source and "nvidia.com" in source for source in gpu.sources)
    assert gpu.integrated == name.startswith(("orin", "agx", "thor"))
    assert ("fp8" in gpu.peaks) == (float(gpu.compute_capability) >= 8.9)
    assert gpu.cache_bytes < gpu.memory_bytes
    assert gpu.peaks["fp32"] < gpu.peaks["bf16"] <= gpu.peaks["fp16"] < gpu.peaks["int8"]


# Roofline

_TOY = Gpu("toy", "Toy", "8.7", 10, 1000, 100, 8, 0, ("",))  # fp32: 2.56 TFLOP/s, no caches


def _stage(**changes: Any) -> Stage:
    return replace(Stage("toy", "every", 1, 1, 0, 0, 0, 0), **changes)


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
