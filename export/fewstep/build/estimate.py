"""How fast a bundle could be on a GPU at best, before anyone owns one: a bound, not a measurement.

Every pass of a graph takes at least (the roofline, and the launches of its kernels)

    max(operations / peak,  bytes / bandwidth) + launches × time of one launch

and the passes of the loop wait for one another, so they add up. The roofline is a true lower bound
for what it counts; the launches are an estimate that is meant to be low:

- *operations* are those of matmuls and convolutions; everything else counts as free
  (``graph_work.py``).
- *bytes* are the weights of those, once, in the precision's width, and the graph's inputs and
  outputs in their own types, without what the caches may keep from the pass before.
  Tensors inside the graph count as never leaving the chip. Counting every node's tensors instead
  would be an overestimate, because builders fuse nodes.
- *launches* are the kernels of the graphs as if fused well (``graph_work.py``), the program's own
  kernels and its copies on the device, each at what an empty kernel takes in a CUDA graph
  (``launches.py``). For small models they are most of the time, and the batch does not change them.

What this leaves out always costs time: norms and softmax, tensors that do spill to memory, tiles
that do not fill the GPU, kernels that were not fused, and the copies from and to the host. What
could undercut it: clocks above the published ones, kernels that start before the one they need has
ended, and convolutions by Winograd's method, which multiplies up to 2.25 times less for 3 × 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fewstep.build.gpus import GPUS, Gpu, gpu_of
from fewstep.build.graph_work import GraphWork, Sizes, graph_work, sizes_of, tensor_bytes
from fewstep.build.roofline import (
    COMPUTE,
    LAUNCH,
    MEMORY,
    NONE,
    WIDTH_BYTES,
    Stage,
    StageBound,
    stage_bound,
)
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.inspect import PlannedDecode, planned_decode
from fewstep.runtime.program import ERROR, Copy, Launch, Op, Program, Repeat, Run, View

CONTEXT_BYTES = 1 << 30
"""Allowance for the CUDA context, the engines' runtime and their activations: assumed, not
measured; large batches need more."""

SYSTEM_BYTES = 2 << 30
"""Allowance for the system where it shares the GPU's memory, as on a Jetson: assumed."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a generator takes, and those of the device."""

    weights: int
    plan: int
    context: int
    system: int
    device: int

    @property
    def total(self) -> int:
        """Sum of what is taken."""
        return self.weights + self.plan + self.context + self.system

    @property
    def fits(self) -> bool:
        """Whether the device has that much."""
        return self.total <= self.device

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        sizes = {f"{key}_bytes": value for key, value in asdict(self).items()}
        return {**sizes, "total_bytes": self.total, "fits": self.fits}


@dataclass(frozen=True)
class PrecisionBound:
    """All stages in one precision; ``reason`` says why there are none."""

    precision: str
    batch: int
    stages: tuple[StageBound, ...]
    memory: MemoryNeed
    reason: str | None = None

    @property
    def batch_ms(self) -> float:
        """One whole batch: every stage as often as it runs."""
        return sum(each.ms * each.stage.runs for each in self.stages)

    @property
    def image_ms(self) -> float:
        """One image of the batch."""
        return self.batch_ms / self.batch

    @property
    def steps_ms(self) -> tuple[float, ...]:
        """Every step, of the whole batch."""
        count = 1 + max((step for each in self.stages for step in each.stage.steps), default=-1)
        found = [0.0] * count
        for each in self.stages:
            for step in each.stage.steps:
                found[step] += each.ms
        return tuple(found)

    @property
    def parts_ms(self) -> dict[str, float]:
        """``batch_ms`` by what it is: work that compute or memory limits, and launches."""
        parts = dict.fromkeys((COMPUTE, MEMORY, LAUNCH), 0.0)
        for each in self.stages:
            if each.work_limit != NONE:
                parts[each.work_limit] += each.work_ms * each.stage.runs
            parts[LAUNCH] += each.launch_ms * each.stage.runs
        return parts

    @property
    def limit(self) -> str:
        """The largest part."""
        parts = self.parts_ms
        return max(parts, key=parts.__getitem__) if self.batch_ms else NONE

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; without times where the device lacks the precision."""
        if self.reason is not None:
            return {"precision": self.precision, "available": False, "reason": self.reason}
        return {
            "precision": self.precision,
            "available": True,
            "image_ms": self.image_ms,
            "batch_ms": self.batch_ms,
            "steps_ms": self.steps_ms,
            "batch_parts_ms": self.parts_ms,
            "limit": self.limit,
            "memory": self.memory.as_dict(),
            "stages": [each.as_dict() for each in self.stages],
        }


@dataclass(frozen=True)
class GpuBounds:
    """One device in every precision asked for."""

    gpu: Gpu
    precisions: tuple[PrecisionBound, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**self.gpu.as_dict(), "precisions": [each.as_dict() for each in self.precisions]}


@dataclass(frozen=True)
class Estimate:
    """Bounds of a bundle on several devices, for one program.

    ``launches``: kernels and copies on the device in one batch, estimated.
    """

    bundle: Bundle
    plan: PlannedDecode
    works: tuple[GraphWork, ...]
    launches: int
    devices: tuple[GpuBounds, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "kind": "bound, not a measurement",
            "launches": {"per_batch": self.launches, "kind": "estimate; engines have more"},
            "bundle": str(self.bundle.path),
            "name": self.bundle.manifest.name,
            "batch": self.plan.batch,
            "settings": self.plan.settings,
            "key": asdict(self.plan.key),
            "graphs": [each.as_dict() for each in self.works],
            "devices": [each.as_dict() for each in self.devices],
        }


def estimate(
    bundle: Bundle,
    *,
    devices: Sequence[str] = (),
    precisions: Sequence[str] = (),
    batch: int = 1,
    **settings: Any,
) -> Estimate:
    """Bounds of time and the need of memory, from the fp32 graphs and published specifications.

    Args:
        bundle: the bundle; its files are hashed before they are read.
        devices: names in :data:`fewstep.build.gpus.GPUS`; all of them if empty.
        precisions: fp32, fp16, bf16, int8 or fp8; all of them if empty. The bundle need not have
            graphs in them.
        batch: images decoded together.
        settings: as of ``Generator.generate``; the bundle's defaults where there are none.

    Raises:
        RequestError: unknown device or precision, or as ``Generator.generate``.
        BundleError: a graph that is damaged or cannot be counted.
        MissingDependencyError: onnx-tool is not installed.
    """
    gpus = [gpu_of(name) for name in dict.fromkeys(devices or GPUS)]
    wanted = tuple(dict.fromkeys(precisions or WIDTH_BYTES))
    if unknown := [each for each in wanted if each not in WIDTH_BYTES]:
        raise RequestError(choose("precision", unknown[0], WIDTH_BYTES))
    plan = planned_decode(bundle, batch=batch, **settings)
    sizes: dict[str, list[Sizes]] = {}
    for part in plan.program.every_program:
        for op in part.different():
            if isinstance(op, Run):
                sizes.setdefault(op.graph, []).append(_sizes(plan, op, part))
    works = {name: graph_work(bundle, name, runs) for name, runs in sizes.items()}
    stages = program_stages(plan, works)
    counted = tuple(works.values())
    bounds = {
        gpu: tuple(_precision_bound(gpu, each, plan, counted, stages) for each in wanted)
        for gpu in gpus
    }
    found = tuple(GpuBounds(gpu, each) for gpu, each in bounds.items())
    launches = sum(each.launches * each.runs for each in stages)
    return Estimate(bundle, plan, counted, launches, found)


def program_stages(plan: PlannedDecode, works: Mapping[str, GraphWork]) -> tuple[Stage, ...]:
    """The operations of a program, those of the same cost together, in the order of their first.

    A kernel moves what its views hold, but for what it may skip, and a copy both its views.
    """
    found: dict[Stage, list[int]] = {}
    for op in plan.program.ops:
        times, each = (op.times, op.ops) if isinstance(op, Repeat) else (1, (op,))
        for one in each:
            found.setdefault(_stage(plan, works, one), []).extend([one.step] * times)
    return tuple(replace(stage, steps=tuple(steps)) for stage, steps in found.items())


def _stage(plan: PlannedDecode, works: Mapping[str, GraphWork], op: Op) -> Stage:
    """An operation, as if it ran in no step."""
    if isinstance(op, Run):
        return _run_stage(works[op.graph], _sizes(plan, op, plan.program))
    if isinstance(op, Copy):
        size = op.target.bytes_in(plan.program.every_buffer)
        return Stage("copy", (), (), 0, 0, size, size, launches=1)
    return _launch_stage(op, plan.program)


def _sizes(plan: PlannedDecode, run: Run, program: Program) -> Sizes:
    graph, buffers = plan.model.graphs[run.graph], program.every_buffer
    shapes = {name: view.shape_in(buffers) for name, view in run.bindings.items()}
    return sizes_of({**graph.inputs, **graph.outputs}, shapes)


def _run_stage(work: GraphWork, sizes: Sizes) -> Stage:
    read, written = (tensor_bytes(tensors.values(), sizes) for tensors in work.info.tensors)
    return Stage(
        work.graph,
        tuple(sizes.items()),
        (),
        flops=work.flops_at(sizes),
        weights=work.mac_weights,
        read_bytes=read,
        written_bytes=written,
        launches=max(1, work.launches),
    )


def _launch_stage(op: Launch, program: Program) -> Stage:
    buffers = program.every_buffer
    views = {name: view for name, view in op.views.items() if view.buffer != ERROR}
    written = {view for name, view in views.items() if name in op.writes}
    read = {view for name, view in views.items() if name not in op.skips} - written

    def size(of: Iterable[View]) -> int:
        return sum(view.bytes_in(buffers) for view in of)

    return Stage(op.kernel, (), (), 0, 0, size(read), size(written), launches=1)


def _precision_bound(
    gpu: Gpu,
    precision: str,
    plan: PlannedDecode,
    works: Sequence[GraphWork],
    stages: Sequence[Stage],
) -> PrecisionBound:
    memory = MemoryNeed(
        weights=sum(each.weight_bytes(precision) for each in works),
        plan=plan.total_bytes + plan.shared_bytes,
        context=CONTEXT_BYTES,
        system=SYSTEM_BYTES if gpu.integrated else 0,
        device=gpu.memory_bytes,
    )
    if precision not in gpu.peaks:
        reason = f"compute capability {gpu.compute_capability} has no {precision} tensor cores"
        return PrecisionBound(precision, plan.batch, (), memory, reason)
    bounds = tuple(stage_bound(each, gpu, precision) for each in stages)
    return PrecisionBound(precision, plan.batch, bounds, memory)
