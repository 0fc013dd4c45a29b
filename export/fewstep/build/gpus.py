"""Published specifications of NVIDIA GPUs: peaks, memory and caches.

A peak is multiprocessors × clock × operations per multiprocessor and clock (:data:`RATES`). All
rates are *dense*: those with structured sparsity that NVIDIA advertises are twice as high.
Where the accumulator's type matters, fp16 and fp8 stand with an fp16 accumulator, the fastest
there is, so that a bound stays a bound; with an fp32 accumulator they are half as fast on GeForce,
which is what bf16 says, and as fast on the other cards. fp32 means the CUDA cores: engines are
built without TF32.

Clocks are the boost clock of the reference card, or the highest of a Jetson's power modes; for
Hopper and B200 NVIDIA's totals of the tensor cores hold at a lower one. Cards that boost higher go
below the bounds by as much. The accelerators beside a Jetson's GPU (DLA) are not in the table.

Confirmed by the sources that each GPU names, as public copies and quotations give them:

- GeForce: the rates; the cores, memory sizes and clocks of all cards, the clocks to 10 MHz; the
  bandwidths but those of 4060 and 4080; the exact MHz of 4090 and 5090; the L2 caches of 3090,
  4090 and 5090.
- Orin: clocks (1,173 MHz for Orin NX in Super Mode), bandwidths and memory; of the sparse int8
  TOPS, the GPU's share: 170 of 275 for AGX Orin, 157 less the DLA's 80 for Orin NX, all 67 for
  Orin Nano; the L2 cache of AGX Orin.
- Thor: clock, bandwidth, memory and the rates but bf16's; 20 multiprocessors and 32 MiB of L2 cache
  are what a device reports.
- A100, H100, H200, B200, L4, L40S and RTX PRO 6000: the totals that the tests hold the peaks
  against, bandwidth and memory. A B200 is the one of an HGX or DGX system, with 180 GB.
- By what devices report (``deviceQuery``, PyTorch, ``nvidia-smi``): multiprocessors of A100, H100
  SXM, H200, B200, L4 and L40S; clocks of A100, H100, L4 and L40S; the L2 caches of A100, H100 SXM,
  H200, B200 and L40S; 1,593 MHz of H100 PCIe's memory, which is 2,039 GB/s, printed as "2 TB/s".

Confirmed by GPU databases and reviews alone (fpsbench.com, cputronic.com, hmc-tech.com,
kitguru.net): the exact MHz and the L2 caches of the other GeForce cards, the bandwidths of 4060
and 4080, the L2 caches of L4, H100 PCIe and RTX PRO 6000, the latter's clock and its bf16 rate. By
what devices report to ``deviceQuery`` alone: 2 MiB of L2 cache on Orin Nano and Orin NX.

Assumptions: bf16 is as fast as fp16 on Orin and Thor; the system caches (4 MB on Orin, 16 MB on
Thor) serve the GPU in full; where NVIDIA prints 102 GB/s, it means 102.4; B200 has twice Hopper's
tensor operations per clock, and the clocks that then give its totals. Tests hold the peaks
against the totals that NVIDIA advertises. B300 is missing, as nothing of it was confirmed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fewstep.build.launches import LAUNCHES, Launch
from fewstep.runtime.errors import RequestError, choose

RATES: Mapping[str, Mapping[str, int]] = {
    "8.0": {"fp32": 128, "fp16": 2048, "bf16": 2048, "int8": 4096},
    "8.6": {"fp32": 256, "fp16": 1024, "bf16": 512, "int8": 2048},
    "8.7": {"fp32": 256, "fp16": 2048, "bf16": 2048, "int8": 4096},
    "8.9": {"fp32": 256, "fp16": 1024, "bf16": 512, "int8": 2048, "fp8": 2048},
    "9.0": {"fp32": 256, "fp16": 4096, "bf16": 4096, "int8": 8192, "fp8": 8192},
    "10.0": {"fp32": 256, "fp16": 8192, "bf16": 8192, "int8": 16384, "fp8": 16384},
    "11.0": {"fp32": 256, "fp16": 8192, "bf16": 8192, "int8": 16384, "fp8": 16384},
    "12.0": {"fp32": 256, "fp16": 1024, "bf16": 512, "int8": 2048, "fp8": 2048},
}
"""Dense operations per multiprocessor and clock, two per multiply-add, by compute capability.

8.6, 8.9 and 12.0: the appendices of the white papers below. 8.0, 9.0: from 312 and 989 dense FP16
TFLOPS of A100 and H100 SXM (108 and 132 multiprocessors, 1.41 and 1.83 GHz). 10.0: an assumption,
see above. 8.7: from the 170 INT8 TOPS and 85 FP16
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
A100 = (
    "NVIDIA A100 data sheet: https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/"
    "pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
)
HOPPER = (
    "NVIDIA H100 Tensor Core GPU Architecture: "
    "https://resources.nvidia.com/en-us-tensor-core/gtc22-whitepaper-hopper"
)
H100 = "NVIDIA H100: https://www.nvidia.com/en-us/data-center/h100/"
H200 = "NVIDIA H200: https://www.nvidia.com/en-us/data-center/h200/"
B200 = (
    "NVIDIA Blackwell data sheet, HGX B200: "
    "https://resources.nvidia.com/en-us-blackwell-architecture/datasheet"
)
L4 = "NVIDIA L4: https://www.nvidia.com/en-us/data-center/l4/"
L40S = "NVIDIA L40S: https://www.nvidia.com/en-us/data-center/l40s/"
RTX_PRO_6000 = (
    "RTX PRO 6000 Blackwell Workstation Edition data sheet: https://www.nvidia.com/content/dam/"
    "en-zz/Solutions/data-center/rtx-pro-6000-blackwell-workstation-edition/"
    "workstation-blackwell-rtx-pro-6000-workstation-edition-nvidia-us-3519208-web.pdf"
)
BLACKWELL_PRO = (
    "NVIDIA RTX Blackwell PRO GPU Architecture, V1.0: https://www.nvidia.com/content/dam/en-zz/"
    "Solutions/design-visualization/quadro-product-literature/"
    "NVIDIA-RTX-Blackwell-PRO-GPU-Architecture-v1.0.pdf"
)


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVIDIA describes it.

    ``cache_mib``: all that may keep data between two passes, generously: the L2 cache and, on a
    Jetson, the caches of the system. ``power_mode``: what a Jetson's numbers hold for.
    ``tensor_clock_mhz``: of all but fp32, where it differs. ``full_accumulate``: an fp32
    accumulator costs no speed, whatever :data:`RATES` says. ``sources``: title and address of
    where the numbers are from.
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
    tensor_clock_mhz: float | None = None
    full_accumulate: bool = False

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
        rates = dict(RATES[self.compute_capability])
        if self.full_accumulate:
            rates["bf16"] = rates["fp16"]
        clocks = dict.fromkeys(rates, self.tensor_clock_mhz or self.clock_mhz)
        clocks["fp32"] = self.clock_mhz
        return {key: self.multiprocessors * clocks[key] * 1e6 * rates[key] for key in rates}

    @property
    def launch(self) -> Launch:
        """What the start of a kernel costs."""
        return LAUNCHES[self.compute_capability]

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
            "launch": asdict(self.launch),
            "power_mode": self.power_mode,
            "sources": list(self.sources),
        }


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


def _hopper(
    name: str,
    title: str,
    multiprocessors: int,
    clocks_mhz: tuple[float, float],
    bandwidth_gb_s: float,
    memory_gib: int,
    cache_mib: int,
    source: str,
) -> Gpu:
    return Gpu(
        name,
        title,
        "9.0",
        multiprocessors,
        clocks_mhz[0],
        bandwidth_gb_s,
        memory_gib,
        cache_mib,
        sources=(HOPPER, source),
        tensor_clock_mhz=clocks_mhz[1],
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
    Gpu(
        "rtx-pro-6000",
        "RTX PRO 6000 Blackwell",
        "12.0",
        188,
        2617,
        1792,
        96,
        128,
        sources=(RTX_PRO_6000, BLACKWELL_PRO),
        full_accumulate=True,
    ),
    Gpu("l4", "L4", "8.9", 58, 2040, 300, 24, 48, sources=(L4,), full_accumulate=True),
    Gpu("l40s", "L40S", "8.9", 142, 2520, 864, 48, 96, sources=(L40S,), full_accumulate=True),
    Gpu("a100-pcie", "A100 PCIe 80 GB", "8.0", 108, 1410, 1935, 80, 40, sources=(A100,)),
    Gpu("a100-sxm", "A100 SXM 80 GB", "8.0", 108, 1410, 2039, 80, 40, sources=(A100,)),
    _hopper("h100-pcie", "H100 PCIe", 114, (1755, 1620), 2039, 80, 50, H100),
    _hopper("h100-sxm", "H100 SXM", 132, (1980, 1830), 3350, 80, 50, H100),
    _hopper("h200-sxm", "H200 SXM", 132, (1980, 1830), 4800, 141, 60, H200),
    Gpu(
        "b200",
        "B200 SXM 180 GB",
        "10.0",
        148,
        1980,
        7700,
        180,
        126,
        sources=(B200,),
        tensor_clock_mhz=1856,
    ),
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
