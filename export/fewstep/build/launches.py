"""What the start of a kernel costs inside a CUDA graph, as others have measured it.

In a graph the CPU is out of the way, but a kernel that needs what the one before it wrote still
starts after its end. The times are those per kernel of a row of kernels that do nothing, or
next to nothing, in one graph: what every kernel of a captured generation costs at least on top of
its work. Engines may hide a part where the GPU can start a kernel early (programmatic dependent
launch, from 9.0), and none is measured by this project.

The papers and pages were read in public copies and quotations. Nothing was found for Ada, Orin
and Thor: Ampere's time stands in for the first two, B200's for Thor. A Jetson's clocks are lower
than those of the GPUs that were measured, so its launches take longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Launch:
    """Microseconds for each kernel of a CUDA graph, on what, and who says so.

    ``own``: whether it was measured on a GPU of that compute capability's generation.
    """

    us: float
    measured_on: str
    source: str
    own: bool = True

    @property
    def said(self) -> str:
        """What it was measured on, and whether that stands in for a GPU of no known time."""
        if self.own:
            return f"measured on {self.measured_on}"
        return f"no measurement of this GPU is known; this is of {self.measured_on}"


_AMPERE = Launch(
    0.55,  # (567 − 53) / (1,025 − 100)
    "NVIDIA Ampere, CUDA 12.6: 53 µs for 100 kernels in a row, 567 µs for 1,025",
    "Constant Time Launch for Straight-Line CUDA Graphs and Other Performance Enhancements: "
    "https://developer.nvidia.com/blog/"
    "constant-time-launch-for-straight-line-cuda-graphs-and-other-performance-enhancements/",
)
_HOPPER = Launch(
    1.3,
    "H100",
    "Look Ma, No Bubbles! Designing a Low-Latency Megakernel for Llama-1B: "
    "https://hazyresearch.stanford.edu/blog/2025-05-27-no-bubbles",
)
_BLACKWELL = Launch(
    0.8,
    "B200",
    "MPK: A Compiler and Runtime for Mega-Kernelizing Tensor Programs, section 6.1: "
    "https://arxiv.org/abs/2512.22219",
)
_RTX_BLACKWELL = Launch(
    0.39,
    "GeForce RTX 5070 Ti, driver 615.71: 2,000 kernels of one block in a row",
    "Host link, copy engines and the CUDA runtime: https://github.com/Euhedral-Engine/Euhedral/"
    "blob/1df25ada52b09d21ef95bf2cbd54a91e1f53b747/docs/nvidia/host-link-and-runtime.md",
)

LAUNCHES: Mapping[str, Launch] = {
    "8.0": _AMPERE,
    "8.6": _AMPERE,
    "8.7": replace(_AMPERE, own=False),
    "8.9": replace(_AMPERE, own=False),
    "9.0": _HOPPER,
    "10.0": _BLACKWELL,
    "11.0": replace(_BLACKWELL, own=False),
    "12.0": _RTX_BLACKWELL,
}
"""By compute capability."""
