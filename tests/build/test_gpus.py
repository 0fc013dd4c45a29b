"""The tables of GPUs and launches against published totals."""

from __future__ import annotations

import pytest

from fewstep.build.gpus import GPUS, RATES, gpu_of
from fewstep.build.launches import LAUNCHES

# Published specifications

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
    ("a100-sxm", "fp32", 19.5),
    ("a100-sxm", "fp16", 312),
    ("a100-pcie", "bf16", 312),
    ("a100-sxm", "int8", 624),
    ("h100-sxm", "fp32", 67),
    ("h100-sxm", "fp16", 989.4),
    ("h100-sxm", "int8", 1979),
    ("h100-sxm", "fp8", 3958 / 2),
    ("h100-pcie", "fp32", 51),
    ("h100-pcie", "bf16", 1513 / 2),  # sparse
    ("h100-pcie", "fp8", 3026 / 2),
    ("h200-sxm", "fp16", 1979 / 2),
    ("b200", "fp32", 75),
    ("b200", "fp16", 4500 / 2),
    ("b200", "int8", 9000 / 2),
    ("b200", "fp8", 9000 / 2),
    ("l4", "fp32", 30.3),
    ("l4", "bf16", 242 / 2),
    ("l4", "fp8", 485 / 2),
    ("l40s", "fp32", 91.6),
    ("l40s", "bf16", 733 / 2),
    ("l40s", "fp16", 733 / 2),
    ("l40s", "fp8", 1466 / 2),
    ("rtx-pro-6000", "fp32", 125),
    ("rtx-pro-6000", "fp16", 4000 / 8),  # "AI TOPS": sparse fp4, of which fp16 is an eighth
    ("rtx-pro-6000", "bf16", 503.8),
]


@pytest.mark.parametrize(("name", "precision", "tera"), _PUBLISHED)
def test_peaks_are_the_published_totals(name: str, precision: str, tera: float) -> None:
    assert gpu_of(name).peaks[precision] == pytest.approx(tera * 1e12, rel=0.011)


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_has_its_sources_and_plausible_numbers(name: str) -> None:
    gpu = gpu_of(name)
    assert gpu.name == name
    assert all("https://" in source and "nvidia.com" in source for source in gpu.sources)
    assert gpu.integrated == name.startswith(("orin", "agx", "thor"))
    assert ("fp8" in gpu.peaks) == (float(gpu.compute_capability) >= 8.9)
    assert gpu.cache_bytes < gpu.memory_bytes
    assert gpu.peaks["fp32"] < gpu.peaks["bf16"] <= gpu.peaks["fp16"] < gpu.peaks["int8"]
    assert (gpu.peaks["bf16"] < gpu.peaks["fp16"]) == gpu.title.startswith("GeForce")
    assert (gpu.tensor_clock_mhz or gpu.clock_mhz) <= gpu.clock_mhz


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_has_launches_with_a_source(name: str) -> None:
    launch = gpu_of(name).launch
    assert 0.3 < launch.us < 3  # what is published for CUDA graphs
    assert ": https://" in launch.source
    assert launch.measured_on
    assert launch.own is (gpu_of(name).compute_capability not in ("8.7", "8.9", "11.0"))
    assert launch.said.endswith(launch.measured_on)


def test_amperes_launches_are_the_slope_between_two_graphs() -> None:
    per_node = (567 - 53) / (1025 - 100)
    assert LAUNCHES["8.0"].us == pytest.approx(per_node, abs=0.01)


def test_every_rate_has_launches_and_a_gpu() -> None:
    assert LAUNCHES.keys() == RATES.keys() == {gpu.compute_capability for gpu in GPUS.values()}
