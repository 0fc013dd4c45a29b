"""The least that one run of a stage takes: the roofline, and the launches of its kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from fewstep.build.gpus import Gpu

WIDTH_BYTES: Mapping[str, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
"""Bytes per weight by precision, in the order in which results appear."""

COMPUTE, MEMORY, LAUNCH, NONE = "compute", "memory", "launches", "none"
"""What limits a stage."""


@dataclass(frozen=True)
class Stage:
    """An operation of the program that runs ``runs`` times while one batch is made.

    ``name``: of the graph, the kernel, or ``copy``; ``sizes``: of the graph's dimensions that vary.
    ``steps``: those it runs in, as often as it runs. ``flops``, ``weights`` (elements),
    ``read_bytes`` (without the weights), ``written_bytes`` and ``launches`` (kernels and copies on
    the device) are those of one run.
    """

    name: str
    sizes: tuple[tuple[str, int], ...]
    steps: tuple[int, ...]
    flops: int
    weights: int
    read_bytes: int
    written_bytes: int
    launches: int

    @property
    def runs(self) -> int:
        """How often it runs in a batch."""
        return len(self.steps)

    @property
    def title(self) -> str:
        """The name with its sizes, for people."""
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes)
        return f"{self.name} ({sizes})" if sizes else self.name


@dataclass(frozen=True)
class StageBound:
    """The least that one run of a stage takes, and what of it is the largest part."""

    stage: Stage
    compute_ms: float
    memory_ms: float
    launch_ms: float

    @property
    def work_ms(self) -> float:
        """Milliseconds of one run without its launches: the roofline."""
        return max(self.compute_ms, self.memory_ms)

    @property
    def ms(self) -> float:
        """Milliseconds of one run: a kernel starts after the end of the one it needs."""
        return self.work_ms + self.launch_ms

    @property
    def work_limit(self) -> str:
        """``compute``, ``memory``, or ``none`` where the caches may hold everything."""
        if not self.work_ms:
            return NONE
        return COMPUTE if self.compute_ms > self.memory_ms else MEMORY

    @property
    def limit(self) -> str:
        """``launches`` where these take more than the work, else as :attr:`work_limit`."""
        return LAUNCH if self.launch_ms > self.work_ms else self.work_limit

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; every step once, however often it runs there."""
        parts = ("compute_ms", "memory_ms", "launch_ms", "ms", "limit")
        bounds = {name: getattr(self, name) for name in parts}
        stage = replace(self.stage, steps=tuple(dict.fromkeys(self.stage.steps)))
        return {
            **asdict(stage),
            "sizes": dict(stage.sizes),
            "runs": self.stage.runs,
            **bounds,
        }


def stage_bound(stage: Stage, gpu: Gpu, precision: str) -> StageBound:
    """Roofline and launches of one run of a stage.

    Of what it reads, the caches may hold their own size from before, and as much of what it
    writes may stay in them.
    """
    read = stage.weights * WIDTH_BYTES[precision] + stage.read_bytes
    moved = max(0, read - gpu.cache_bytes) + max(0, stage.written_bytes - gpu.cache_bytes)
    return StageBound(
        stage,
        compute_ms=1e3 * stage.flops / gpu.peaks[precision],
        memory_ms=1e3 * moved / (gpu.bandwidth_gb_s * 1e9),
        launch_ms=1e-3 * stage.launches * gpu.launch.us,
    )
