"""Published figures of NVIDIA GPUs (peaks, memory, caches) and the roofline they make.

A peak is multiprocessors × clock × operations per multiprocessor and clock (:data:`RATES`). All
rates are *dense*: the figures with structured sparsity that NVIDIA advertises are twice as high.
Where the accumulator's type matters, fp16 and fp8 stand with an fp16 accumulator, the fastest
there is, so that a bound stays a bound; with an fp32 accumulator they are half as fast on GeForce,
which is what bf16 says. fp32 means the CUDA cores: engines are built without TF32.

Clocks are the boost clock of the reference card, or the highest of a Jetson's power modes. Cards
that boost higher go below the bounds by as much. The accelerators beside a Jetson's GPU (DLA) are
not in the table.

Confirmed by the sources that each GPU names, as public copies and quotations give them:

- GeForce: the rates; the cores, memory sizes and clocks of all cards, the clocks to 10 MHz; the
  bandwidths but those of 4060 and 4080; the exact MHz of 4090 and 5090; the L2 caches of 3090,
  4090 and 5090.
- Orin: clocks (1,173 MHz for Orin NX in Super Mode), bandwidths and memory; of the sparse int8
  TOPS, the GPU's share: 170 of 275 for AGX Orin, 157 less the DLA's 80 for Orin NX, all 67 for
  Orin Nano; the L2 cache of AGX Orin.
- Thor: clock, bandwidth, memory and the rates but bf16's; 20 multiprocessors and 32 MiB of L2 cache
  are what a device reports.

Confirmed by GPU databases and reviews alone (fpsbench.com, cputronic.com, kitguru.net): the exact
MHz and the L2 caches of the other cards, the bandwidths of 4060 and 4080. By what devices report to
``deviceQuery`` alone: 2 MiB of L2 cache on Orin Nano and Orin NX.

Assumptions: bf16 is as fast as fp16 on Orin and Thor; the system caches (4 MB on Orin, 16 MB on
Thor) serve the GPU in full; where NVIDIA prints 102 GB/s, it means 102.4. Tests hold the products
against the totals that NVIDIA advertises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fewstep.runtime.errors import RequestError, choose

WIDTH_BYTES: Mapping[str, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
"""Bytes per weight by precision, in the order in which results appear."""

RATES: Mapping[str, Mapping[str, int]] = {
    "8.6": {"fp32": 256, "fp16": 1024, "bf16": 512, "int8": 2048},
    "8.7": {"fp32": 256, "fp16": 2048, "bf16": 2048, "int8": 4096},
    "8.9": {"fp32": 256, "fp16": 1024, "bf16": 512, "int8": 2048, "fp8": 2048},
    "11.0": {"fp32": 256, "fp16": 8192, "bf16": 8192, "int8": 16384, "fp8": 16384},
    "12.0": {"fp32": 256, "fp16": 1024, "bf16": 512, "int8": 2048, "fp8": 2048},
}
"""Dense operations per multiprocessor and clock, two per multiply-add, by compute capability.

8.6, 8.9 and 12.0: the appendices of the white papers below. 8.7: from the 170 INT8 TOPS and 85 FP16
TFLOPS of AGX Orin, both sparse (16 multiprocessors, 1.3 GHz). 11.0: from the 517 dense FP8, 1,035
sparse INT8 and 517 sparse FP16 TFLOPS of T5000 (20 multiprocessors, 1.575 GHz). bf16 is taken to be
as fast as fp16 on both, an assumption.
"""

AMPERE = (
    "NVIDIA Ampere GA102 GPU Architecture, V2: "
    "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
)
ADA = (
    "NVIDIA Ada GPU Architecture, V2.1: "
    "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
)
BLACKWELL = (
    "NVIDIA RTX Blackwell GPU Architecture: https://images.nvidia.com/aem-dam/Solutions/geforce/"
    "blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
)
GEFORCE = (
    "GeForce graphics cards, compared: https://www.nvidia.com/en-us/geforce/graphics-cards/compare/"
)
RTX_3060 = (
    "GeForce RTX 3060, questions and answers: "
    "https://www.nvidia.com/en-us/geforce/news/game-on-you-asked-we-answered-qa/"
)
RTX_50 = (
    "GeForce RTX 50 series, beside RTX 4070: https://www.nvidia.com/en-us/geforce/news/"
    "rtx-50-series-graphics-cards-gpu-laptop-announcements/"
)
ORIN_MODULES = (
    "Jetson Orin modules, compared: "
    "https://www.nvidia.com/en-us/autonomous-machines/embedded-systems/jetson-orin/"
)
AGX_ORIN = (
    "Jetson AGX Orin Series Technical Brief, v1.2: https://www.nvidia.com/content/dam/en-zz/"
    "Solutions/gtcf21/jetson-orin/nvidia-jetson-agx-orin-technical-brief.pdf"
)
ORIN_NX = (
    "Jetson Orin NX Series Data Sheet, DS-10712-001, v1.7: "
    "https://developer.nvidia.com/downloads/jetson-orin-nx-module-series-data-sheet"
)
ORIN_NANO = (
    "Jetson Orin Nano Series Data Sheet, DS-11105-001, v1.5: "
    "https://developer.nvidia.com/downloads/jetson-orin-nano-series-data-sheet"
)
ORIN_NANO_KIT = (
    "Jetson Orin Nano Developer Kit User Guide: "
    "https://docs.nvidia.com/jetson/orin-nano-devkit/user-guide/latest/index.html"
)
THOR = (
    "Jetson Thor Series Modules Data Sheet, DS-11945-001: https://developer.nvidia.com/downloads/"
    "assets/embedded/secure/jetson/thor/docs/jetson-thor-series-modules-datasheet_ds-11945-001.pdf"
)
THOR_RATES = (
    "Introducing Jetson Thor: https://developer.nvidia.com/blog/"
    "introducing-nvidia-jetson-thor-the-ultimate-platform-for-physical-ai/"
)
THOR_DEVICE = (
    "Core counts of Jetson AGX Thor, in the forum: https://forums.developer.nvidia.com/t/"
    "clarification-on-cuda-core-and-tensor-core-counts-for-jetson-agx-thor/356355"
)


When = Literal["first", "later", "every", "end"]
"""In which steps a stage runs, or after them."""

COMPUTE, MEMORY, NONE = "compute", "memory", "none"
"""What limits a stage."""


@dataclass(frozen=True)
class Gpu:
    """One GPU as its maker describes it.

    ``cache_mib``: all that may keep data between two passes, generously: the L2 cache and, on a
    Jetson, the caches of the system. ``power_mode``: what a Jetson's figures hold for.
    ``sources``: title and address of where the figures are from.
    """

    name: str
    title: str
    compute_capability: str
    multiprocessors: int
    clock_mhz: float
    bandwidth_gb_s: float
    memory_gib: int
    cache_mib: int
    sources: tuple[str, ...]
    power_mode: str | None = None

    @property
    def integrated(self) -> bool:
        """Whether the system's memory is the GPU's, as on a Jetson."""
        return self.power_mode is not None

    @property
    def memory_bytes(self) -> int:
        """Size of the memory."""
        return self.memory_gib << 30

    @property
    def cache_bytes(self) -> int:
        """Size of the caches."""
        return self.cache_mib << 20

    @property
    def peaks(self) -> dict[str, float]:
        """Dense peak in operations per second, by the precisions that the GPU has."""
        rates = RATES[self.compute_capability]
        return {key: self.multiprocessors * self.clock_mhz * 1e6 * rates[key] for key in rates}

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "compute_capability": self.compute_capability,
            "peak_operations_per_s": self.peaks,
            "bandwidth_bytes_per_s": self.bandwidth_gb_s * 1e9,
            "memory_bytes": self.memory_bytes,
            "cache_bytes": self.cache_bytes,
            "power_mode": self.power_mode,
            "sources": list(self.sources),
        }


@dataclass(frozen=True)
class Stage:
    """A part of the loop that runs ``runs`` times while one batch is made.

    ``batch`` is that of the pass. ``flops``, ``weights`` (elements), ``read_bytes`` (without the
    weights) and ``written_bytes`` are those of one run.
    """

    name: str
    when: When
    batch: int
    runs: int
    flops: int
    weights: int
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class StageBound:
    """The least that one run of a stage takes, and which of the two limits it."""

    stage: Stage
    compute_ms: float
    memory_ms: float

    @property
    def ms(self) -> float:
        """Milliseconds of one run."""
        return max(self.compute_ms, self.memory_ms)

    @property
    def limit(self) -> str:
        """``compute``, ``memory``, or ``none`` where the caches may hold everything."""
        if not self.ms:
            return NONE
        return COMPUTE if self.compute_ms > self.memory_ms else MEMORY

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        times = {"compute_ms": self.compute_ms, "memory_ms": self.memory_ms}
        return {**asdict(self.stage), **times, "ms": self.ms, "limit": self.limit}


def stage_bound(stage: Stage, gpu: Gpu, precision: str) -> StageBound:
    """The roofline of one run of a stage.

    Of what it reads, the caches may hold their own size from before, and as much of what it
    writes may stay in them.
    """
    read = stage.weights * WIDTH_BYTES[precision] + stage.read_bytes
    moved = max(0, read - gpu.cache_bytes) + max(0, stage.written_bytes - gpu.cache_bytes)
    compute_s = stage.flops / gpu.peaks[precision]
    return StageBound(stage, 1e3 * compute_s, 1e3 * moved / (gpu.bandwidth_gb_s * 1e9))


def _geforce(
    number: int,
    capability: str,
    multiprocessors: int,
    boost_mhz: float,
    bandwidth_gb_s: float,
    memory_gib: int,
    cache_mib: int,
    *more: str,
) -> Gpu:
    return Gpu(
        f"rtx-{number}",
        f"GeForce RTX {number}",
        capability,
        multiprocessors,
        boost_mhz,
        bandwidth_gb_s,
        memory_gib,
        cache_mib,
        sources=(_WHITE_PAPERS[capability], GEFORCE, *more),
    )


_WHITE_PAPERS = {"8.6": AMPERE, "8.9": ADA, "12.0": BLACKWELL}
_ALL = (
    Gpu(
        "orin-nano",
        "Jetson Orin Nano 8 GB",
        "8.7",
        8,
        1020,
        102.4,
        8,
        6,
        sources=(ORIN_NANO, ORIN_NANO_KIT),
        power_mode="MAXN_SUPER; before JetPack 6.2 625 MHz and 68 GB/s, at 15 W",
    ),
    Gpu(
        "orin-nx",
        "Jetson Orin NX 16 GB",
        "8.7",
        8,
        1173,
        102.4,
        16,
        6,
        sources=(ORIN_NX,),
        power_mode="MAXN_SUPER; before JetPack 6.2 918 MHz, in MAXN",
    ),
    Gpu(
        "agx-orin",
        "Jetson AGX Orin 64 GB",
        "8.7",
        16,
        1300,
        204.8,
        64,
        8,
        sources=(AGX_ORIN, ORIN_MODULES),
        power_mode="MAXN, up to 60 W",
    ),
    Gpu(
        "thor",
        "Jetson T5000 (AGX Thor)",
        "11.0",
        20,
        1575,
        273,
        128,
        48,
        sources=(THOR, THOR_RATES, THOR_DEVICE),
        power_mode="MAXN, up to 130 W",
    ),
    _geforce(3060, "8.6", 28, 1777, 360, 12, 3, RTX_3060),
    _geforce(3090, "8.6", 82, 1695, 936, 24, 6),
    _geforce(4060, "8.9", 24, 2460, 272, 8, 24),
    _geforce(4070, "8.9", 46, 2475, 504, 12, 36, RTX_50),
    _geforce(4080, "8.9", 76, 2505, 716.8, 16, 64),
    _geforce(4090, "8.9", 128, 2520, 1008, 24, 72),
    _geforce(5080, "12.0", 84, 2617, 960, 16, 64),
    _geforce(5090, "12.0", 170, 2407, 1792, 32, 96),
)

GPUS: Mapping[str, Gpu] = {gpu.name: gpu for gpu in _ALL}
"""The table, by the name that ``fewstep estimate --device`` takes."""


def gpu_of(name: str) -> Gpu:
    """A GPU of the table.

    Raises:
        RequestError: no such name; the message lists those there are.
    """
    if name not in GPUS:
        raise RequestError(choose("device", name, GPUS))
    return GPUS[name]
