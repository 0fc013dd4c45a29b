"""Which norms over channels may be fp16, so that a builder fuses GroupNorm.

ONNX writes GroupNorm as InstanceNormalization between two Reshapes. Where that one node is fp32 in
an fp16 graph, the casts around it stand in the way of the builder's fused kernel
(``docs/architecture.md`` has the counts of layers). Two things decide instead:

- **The rule.** The statistics of a norm are means of squares, and no mean exceeds the largest of
  what it is of. So a norm may be fp16 where the square of the largest magnitude of its input on
  the golden rollouts keeps the distance from the end of float16 that every tensor has to keep:
  |x|² ≤ :data:`LARGEST_FP16` / :data:`HEADROOM`, or |x| ≤ 180. Then every square, mean and
  variance fits, whatever type a builder keeps them in. Sums over all positions would not, in this
  or any norm: kernels sum in fp32, as the one of TensorRT-RTX 1.7.1 does.
- **Verification.** The graph that was made has to meet the tolerance of ``fewstep verify`` on the
  golden rollouts. ONNX Runtime's CPU computes fp16 norms in fp32, so that this sees what rounding
  inputs, weights and outputs costs; for the statistics there is the rule, and ``fewstep
  verify`` on the GPU itself.

PSNR of images is the one tolerance that a graph can be held to alone, so only norms of graphs that
give nothing but images are fp16. Others stay fp32, and so do LayerNormalization and
RMSNormalization everywhere: builders fuse the casts around these.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx

from fewstep.build.graph_engine import GraphEngine
from fewstep.build.overflow import HEADROOM, LARGEST_FP16
from fewstep.build.precision import NORMS
from fewstep.build.recorded_inputs import engines_before
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.families import family_of
from fewstep.runtime.verify import TOLERANCES, recordings, replay
from fewstep.runtime.verify.metrics import psnr_db


def reasons_for_fp32(
    bundle: Bundle,
    name: str,
    graph: onnx.GraphProto,
    largest: Mapping[str, float],
    precision: str,
) -> dict[str, str]:
    """The norms of a graph that have to stay fp32 in a precision, with the reason.

    Args:
        bundle: that the graph is of.
        name: of the graph.
        graph: in fp32.
        largest: magnitudes of its tensors, from :func:`fewstep.build.overflow.measure_magnitudes`.
        precision: ``fp16`` or ``bf16``.
    """
    norms = [node for node in graph.node if node.op_type in NORMS]
    for_all = ""
    if precision != "fp16":
        for_all = f"opset 20 has no InstanceNormalization in {precision}"
    elif not _draws(bundle, name):
        for_all = "only norms of graphs that give images are verified in fp16"
    elif bundle.manifest.golden is None:
        for_all = "there are no golden rollouts to verify them with"
    found = {}
    for node in norms:
        if reason := for_all or _too_large(largest.get(node.input[0])):
            found[node.name] = reason
    return found


def fp16_norms(graph: onnx.GraphProto, in_fp32: Collection[str]) -> tuple[str, ...]:
    """The norms of a graph but those named."""
    names = (node.name for node in graph.node if node.op_type in NORMS)
    return tuple(name for name in names if name not in in_fp32)


def shortfall(bundle: Bundle, name: str, model: onnx.ModelProto) -> str:
    """How far a graph in fp16 is below the tolerance of ``fewstep verify``; empty if it meets it.

    Args:
        bundle: with golden rollouts.
        name: of a graph that gives images.
        model: the graph in fp16.

    Raises:
        BundleError: the golden rollouts are damaged or incomplete.
        EngineError: ONNX Runtime cannot run the graph.
    """
    needed, found = TOLERANCES["fp16"].psnr_db, list[float]()
    engine = GraphEngine(name, model, bundle.graph(name))
    with engines_before(bundle, name) as generator:
        generator.replace_engine(name, engine)
        for recording in recordings(bundle).values():
            for each in replay(generator, recording, name):
                for tensor, image in each.call.outputs.items():
                    expected = recording.runs[each.index].outputs[tensor][each.images]
                    found += psnr_db([image], [expected])
    worst = next((each for each in found if each != each), min(found))  # NaN is the worst
    if worst >= needed:
        return ""
    return f"with them in fp16 it reaches {worst:.1f} dB, expected at least {needed:g}"


def _draws(bundle: Bundle, name: str) -> bool:
    """Whether a graph gives nothing but images."""
    kinds = family_of(bundle.manifest.model.kind).kinds
    return all(kinds.get(tensor) == "image" for tensor in bundle.graph(name).outputs)


def _too_large(seen: float | None) -> str:
    if seen is None:
        return "the range of its input was not measured"
    if seen**2 <= LARGEST_FP16 / HEADROOM:
        return ""
    return f"its input reaches {seen:.4g}, whose square comes too near to the end of float16"
