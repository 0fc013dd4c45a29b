"""How fast a bundle could be on a GPU at best, before anyone owns one: a bound, not a measurement.

Every pass of a graph takes at least (the roofline, and the launches of its kernels)

    max(operations / peak,  bytes / bandwidth) + launches × time of one launch

and the passes of the loop wait for one another, so they add up. The roofline is a true lower bound
for what it counts; the launches are an estimate that is meant to be low:

- *operations* are those of the matrix products; everything else counts as free (``graph_work.py``).
- *bytes* are the weights of those products, once, in the precision's width, and the graph's
  inputs and outputs in their own types, without what the caches may keep from the pass before.
  Tensors inside the graph count as never leaving the chip. Counting every node's tensors instead
  would be an overestimate, because builders fuse nodes.
- *launches* are the kernels of the graphs as if fused well (``graph_work.py``), the loop's own
  kernels and its copies on the device, each at what an empty kernel takes in a CUDA graph
  (``launches.py``). For small models they are most of the time, and the batch does not change them.

What this leaves out always costs time: norms and softmax, tensors that do spill to memory, tiles
that do not fill the GPU, kernels that were not fused, and the copies from and to the host. What
could undercut it: clocks above the published ones, kernels that start before the one they need has
ended, and convolutions by Winograd's method, which multiplies up to 2.25 times less for 3 × 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fewstep.build.gpus import GPUS, Gpu, gpu_of
from fewstep.build.graph_work import GraphWork, graph_work, tensor_bytes
from fewstep.build.roofline import (
    COMPUTE,
    LAUNCH,
    MEMORY,
    NONE,
    WIDTH_BYTES,
    Stage,
    StageBound,
    When,
    stage_bound,
)
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.inspect import PlanMemory, plan_memory
from fewstep.runtime.manifest import MaskedModel
from fewstep.runtime.plan import PlanKey
from fewstep.runtime.request import RAMPS, schedule_of

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
    def step_ms(self) -> float:
        """One step after the first; where there is no other, the first."""
        known = {each.stage.when for each in self.stages}
        own: When = "later" if "later" in known else "first"
        return sum(each.ms for each in self.stages if each.stage.when in (own, "every"))

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
            **{"precision": self.precision, "available": True},
            **{"step_ms": self.step_ms, "image_ms": self.image_ms, "batch_ms": self.batch_ms},
            **{"batch_parts_ms": self.parts_ms, "limit": self.limit},
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
    """Bounds of a bundle on several devices, for one plan of its loop.

    ``launches``: kernels and copies on the device in one batch, estimated.
    """

    bundle: Bundle
    plan: PlanMemory
    schedule: str
    works: tuple[GraphWork, ...]
    launches: int
    devices: tuple[GpuBounds, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        key = self.plan.key
        return {
            "kind": "bound, not a measurement",
            "launches": {"per_batch": self.launches, "kind": "estimate; engines have more"},
            **{"bundle": str(self.bundle.path), "name": self.bundle.manifest.name},
            **{"batch": key.batch, "steps": key.steps, "schedule": self.schedule},
            "guided": key.guided,
            "graphs": [each.as_dict() for each in self.works],
            "devices": [each.as_dict() for each in self.devices],
        }


def estimate(
    bundle: Bundle,
    *,
    devices: Sequence[str] = (),
    precisions: Sequence[str] = (),
    batch: int = 1,
    steps: int | None = None,
    schedule: str | None = None,
) -> Estimate:
    """Bounds of time and the need of memory, from the fp32 graphs and published figures.

    Args:
        bundle: the bundle; its files are hashed before they are read.
        devices: names in :data:`fewstep.build.gpus.GPUS`; all of them if empty.
        precisions: fp32, fp16, bf16, int8 or fp8; all of them if empty. The bundle need not have
            graphs in them.
        batch: images decoded together.
        steps: transformer passes; the bundle's default if ``None``.
        schedule: a curve, ``policy`` or a policy's name; the bundle's default if ``None``.

    Raises:
        RequestError: unknown device or precision, or as ``Generator.generate``.
        BundleError: a graph that is damaged or cannot be counted.
        MissingDependencyError: onnx-tool is not installed.
    """
    gpus = [gpu_of(name) for name in dict.fromkeys(devices or GPUS)]
    wanted = tuple(dict.fromkeys(precisions or WIDTH_BYTES))
    if unknown := [each for each in wanted if each not in WIDTH_BYTES]:
        raise RequestError(choose("precision", unknown[0], WIDTH_BYTES))
    plan = plan_memory(bundle, batch=batch, steps=steps, schedule=schedule)
    policy = plan.key.policy
    used = ["transformer", *([policy] if policy else []), "decoder"]
    works = tuple(graph_work(bundle, name) for name in used)
    model = bundle.manifest.model
    masked = masked_share(model, plan.key, schedule)
    stages = loop_stages(model, plan.key, works, masked)
    bounds = {
        gpu: tuple(_precision_bound(gpu, each, plan, works, stages) for each in wanted)
        for gpu in gpus
    }
    found = tuple(GpuBounds(gpu, each) for gpu, each in bounds.items())
    launches = sum(each.launches * each.runs for each in stages)
    return Estimate(bundle, plan, schedule or model.defaults.schedule, works, launches, found)


def loop_stages(
    model: MaskedModel, key: PlanKey, works: Sequence[GraphWork], masked: float
) -> tuple[Stage, ...]:
    """What the decode loop runs for one batch, in its order.

    With guidance, step 0 runs at batch B, because the unconditional logits of the all-masked image
    are kept, and the other steps at 2B. Small kernels and copies move a few kB and count as
    launches only: ``initial_tokens``; in every step a copy to what the transformer reads,
    ``sample_tokens`` and ``remask``; with a policy a copy of the step and ``policy_parameters``.

    Args:
        model: the bundle's model description.
        key: batch, steps, guidance and schedule.
        works: transformer, policy if there is one, decoder.
        masked: share of the positions that are sure to be masked, and sampled, after step 0.
    """
    transformer, *policy, decoder = works
    batch, steps = key.batch, key.steps
    twice = 2 * batch if key.guided else batch
    stages = [
        Stage("initial tokens", "start", batch, 1, 0, 0, 0, 0, launches=1),
        _pass(transformer, "first", batch, 1, more_launches=1),
        _pass(transformer, "later", twice, steps - 1, more_launches=1),
        *(_pass(each, "every", batch, steps, more_launches=2) for each in policy),
        _sampling(model, "first", batch, batch + key.guided, 1, 1.0),
        _sampling(model, "later", batch, twice, steps - 1, masked),
        _pass(decoder, "end", batch, 1),
        _to_pixels(model, batch),
    ]
    return tuple(each for each in stages if each.runs)


def masked_share(model: MaskedModel, key: PlanKey, schedule: str | None) -> float:
    """Share of positions that are masked when a step after the first begins, on average.

    A policy may decide all of them at once: 0.
    """
    fixed = schedule_of(model, schedule, dict.fromkeys(RAMPS), key.steps)
    if isinstance(fixed, str) or key.steps == 1:
        return 0.0
    ratios = fixed.parameters(key.steps, model.num_tokens)[:-1, 0]
    return float(np.mean(np.floor(ratios * model.num_tokens))) / model.num_tokens


def _pass(work: GraphWork, when: When, images: int, runs: int, more_launches: int = 0) -> Stage:
    flops = work.flops + work.flops_more * (images - 1)
    read, written = (tensor_bytes(tensors.values(), images) for tensors in work.info.tensors)
    launches = work.launches + more_launches
    sizes = (flops, work.product_weights, read, written, launches)
    return Stage(work.graph, when, images, runs, *sizes)


def _sampling(
    model: MaskedModel, when: When, images: int, rows: int, runs: int, masked: float
) -> Stage:
    """``sample_tokens`` and ``remask``: logits of ``rows`` images, where masked, float32."""
    read = int(4 * rows * model.num_tokens * model.codebook_size * masked)
    return Stage("sampling", when, images, runs, 0, 0, read, 0, launches=2)


def _to_pixels(model: MaskedModel, images: int) -> Stage:
    """``to_pixels``: three float32 in, three bytes out, per pixel."""
    values = 3 * images * math.prod(model.image_size)
    return Stage("pixels", "end", images, 1, 0, 0, 4 * values, values, launches=1)


def _precision_bound(
    gpu: Gpu,
    precision: str,
    plan: PlanMemory,
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
        return PrecisionBound(precision, plan.key.batch, (), memory, reason)
    bounds = tuple(stage_bound(each, gpu, precision) for each in stages)
    return PrecisionBound(precision, plan.key.batch, bounds, memory)
