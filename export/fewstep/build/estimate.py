"""How fast a bundle could be on a GPU at best, before anyone owns one: a bound, not a measurement.

Every pass of a graph takes at least (the roofline)

    max(operations / peak,  bytes / bandwidth)

and the passes of the loop wait for one another, so their bounds add up. Each term is a true lower
bound for what it counts:

- *operations* are those of the matrix products (MatMul, Gemm, Conv), multiply and add; everything
  else counts as free. They come from onnx-tool. It takes a bias for one multiply-add per output,
  which a GPU does on the way: that part is taken off, and the rest agrees with PyTorch's counter
  to the last operation (tested).
- *bytes* are the weights of those products, once, in the precision's width, and the graph's
  inputs and outputs in their own types, without what the caches may keep from the pass before.
  Tensors inside the graph count as never leaving the chip. Counting every node's tensors instead
  would be an overestimate, because builders fuse nodes.

What the bound leaves out always costs time: launches, norms and softmax, tensors that do spill to
memory, tiles that do not fill the GPU. What could undercut it: clocks above the published ones, and
convolutions by Winograd's method, which multiplies up to 2.25 times less for 3 × 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from fewstep.build.gpus import (
    COMPUTE,
    GPUS,
    MEMORY,
    NONE,
    WIDTH_BYTES,
    Gpu,
    Stage,
    StageBound,
    When,
    gpu_of,
    stage_bound,
)
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError, RequestError, choose, missing
from fewstep.runtime.inspect import PlanMemory, plan_memory
from fewstep.runtime.manifest import GraphInfo, MaskedModel, TensorInfo
from fewstep.runtime.plan import PlanKey
from fewstep.runtime.request import RAMPS, schedule_of

CONTEXT_BYTES = 1 << 30
"""Allowance for the CUDA context, the engines' runtime and their activations: assumed, not
measured; large batches need more."""

SYSTEM_BYTES = 2 << 30
"""Allowance for the system where it shares the GPU's memory, as on a Jetson: assumed."""

_PRODUCTS = frozenset(("MatMul", "Gemm", "Conv"))


@dataclass(frozen=True)
class GraphWork:
    """What one graph computes and touches.

    ``flops`` of one image and ``flops_more`` of every further one; ``product_weights`` and
    ``other_weights`` in elements: those of matrix products, and the rest (embeddings, of which a
    pass reads a few rows, norms, biases).
    """

    graph: str
    info: GraphInfo
    flops: int
    flops_more: int
    product_weights: int
    other_weights: int

    def weight_bytes(self, precision: str) -> int:
        """Size of all weights in an engine; what is no product stays in 16 bits at least."""
        width = WIDTH_BYTES[precision]
        return self.product_weights * width + self.other_weights * max(width, 2)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {key: value for key, value in asdict(self).items() if key != "info"}


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
    def compute_share(self) -> float:
        """Share of ``batch_ms`` in which compute is the limit."""
        limited = [each for each in self.stages if each.limit == COMPUTE]
        total = self.batch_ms
        return sum(each.ms * each.stage.runs for each in limited) / total if total else 0.0

    @property
    def limit(self) -> str:
        """What limits the larger part of the time."""
        if not self.batch_ms:
            return NONE
        return COMPUTE if self.compute_share > 0.5 else MEMORY

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; without times where the device lacks the precision."""
        if self.reason is not None:
            return {"precision": self.precision, "available": False, "reason": self.reason}
        times = {"step_ms": self.step_ms, "image_ms": self.image_ms, "batch_ms": self.batch_ms}
        limits = {"limit": self.limit, "compute_share": self.compute_share}
        return {
            **{"precision": self.precision, "available": True, **times, **limits},
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
    """Bounds of a bundle on several devices, for one plan of its loop."""

    bundle: Bundle
    plan: PlanMemory
    schedule: str
    works: tuple[GraphWork, ...]
    devices: tuple[GpuBounds, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        key = self.plan.key
        return {
            "kind": "bound, not a measurement",
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
    return Estimate(bundle, plan, schedule or model.defaults.schedule, works, found)


def graph_work(bundle: Bundle, name: str) -> GraphWork:
    """Count one graph.

    Raises:
        BundleError: the graph is damaged, or onnx-tool does not know what is in it.
        MissingDependencyError: onnx-tool is not installed.
    """
    try:
        import onnx_tool
    except ImportError as error:
        raise missing("onnx-tool", "build") from error
    info, path = bundle.graph(name), bundle.graph_path(name)
    try:
        model = onnx.load(path)
        products, others = _weights(model.graph)
        counted = onnx_tool.Model(model).graph
        one, two = (_flops(counted, info, images) for images in (1, 2))
    except Exception as error:  # protobuf and onnx-tool raise whatever their parts raise
        problem = str(error) or type(error).__name__
        raise BundleError(
            f"{path}: the operations of graph '{name}' cannot be counted ({problem}); "
            "export the bundle again"
        ) from error
    return GraphWork(name, info, one, two - one, products, others)


def _weights(graph: onnx.GraphProto) -> tuple[int, int]:
    """Elements of the weights of matrix products, and of all others."""
    sizes = {each.name: math.prod(each.dims) for each in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in _PRODUCTS]
    products = {name for node in nodes for name in node.input[:2] if name in sizes}
    within = sum(sizes[name] for name in products)
    return within, sum(sizes.values()) - within


def _flops(graph: Any, info: GraphInfo, images: int) -> int:
    """Operations of the matrix products, biases not counted."""
    inputs = {
        name: np.zeros(_shape(each, images), each.dtype) for name, each in info.inputs.items()
    }
    graph.shape_infer(inputs)
    graph.profile()
    total = 0
    for node in graph.nodemap.values():
        if node.op_type in _PRODUCTS:
            bias = math.prod(node.outshape) if len(node.input) == 3 else 0
            total += 2 * (int(node.macs[0]) - bias)
    return total


def _shape(tensor: TensorInfo, images: int) -> tuple[int, ...]:
    return tuple(images if isinstance(size, str) else size for size in tensor.shape)


def _bytes(tensors: Iterable[TensorInfo], images: int) -> int:
    return sum(math.prod(_shape(t, images)) * np.dtype(t.dtype).itemsize for t in tensors)


def loop_stages(
    model: MaskedModel, key: PlanKey, works: Sequence[GraphWork], masked: float
) -> tuple[Stage, ...]:
    """What the decode loop runs for one batch, in its order.

    With guidance, step 0 runs at batch B, because the unconditional logits of the all-masked image
    are kept, and the other steps at 2B. The small kernels move a few kB and are left out.

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
        _pass(transformer, "first", batch, 1),
        _pass(transformer, "later", twice, steps - 1),
        *(_pass(each, "every", batch, steps) for each in policy),
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


def _pass(work: GraphWork, when: When, images: int, runs: int) -> Stage:
    flops = work.flops + work.flops_more * (images - 1)
    read, written = (_bytes(tensors.values(), images) for tensors in work.info.tensors)
    return Stage(work.graph, when, images, runs, flops, work.product_weights, read, written)


def _sampling(
    model: MaskedModel, when: When, images: int, rows: int, runs: int, masked: float
) -> Stage:
    """``sample_tokens``: the logits of ``rows`` images, where they are masked, float32."""
    read = int(4 * rows * model.num_tokens * model.codebook_size * masked)
    return Stage("sampling", when, images, runs, 0, 0, read, 0)


def _to_pixels(model: MaskedModel, images: int) -> Stage:
    """``to_pixels``: three float32 in, three bytes out, per pixel."""
    values = 3 * images * math.prod(model.image_size)
    return Stage("pixels", "end", images, 1, 0, 0, 4 * values, values)


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
