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
- **Verification.** The graph that was made has to meet the bar of ``fewstep verify`` on the golden
  rollouts. ONNX Runtime's CPU computes fp16 norms in fp32, so that this sees what the rounding of
  their inputs, weights and outputs costs; for the statistics there is the rule, and ``fewstep
  verify`` on the GPU itself.

Only the decoder has such norms in the models that can be exported, and its bar, PSNR, is the one
that a graph can be held to alone. Norms elsewhere stay fp32, and so do LayerNormalization and
RMSNormalization everywhere: builders fuse the casts around these.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx

from fewstep.build.precision import HEADROOM, LARGEST_FP16, NORMS
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import EngineError
from fewstep.runtime.verify import THRESHOLDS, golden, psnr

_VERIFIED = "decoder"


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
        largest: magnitudes of its tensors, from :func:`fewstep.build.ranges.measure_ranges`.
        precision: ``fp16`` or ``bf16``.
    """
    norms = [node for node in graph.node if node.op_type in NORMS]
    for_all = ""
    if precision != "fp16":
        for_all = f"opset 20 has no InstanceNormalization in {precision}"
    elif name != _VERIFIED:
        for_all = f"only norms of the {_VERIFIED} are verified in fp16"
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


def shortfall(bundle: Bundle, model: onnx.ModelProto) -> str:
    """How far a decoder in fp16 is below the bar of ``fewstep verify``; empty if it meets it.

    Args:
        bundle: with golden rollouts.
        model: the decoder.

    Raises:
        BundleError: the golden rollouts are damaged or incomplete.
        EngineError: ONNX Runtime cannot run the graph.
    """
    import onnxruntime

    limit = THRESHOLDS["fp16"].psnr_db
    recorded = golden(bundle).values()
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        images = [
            session.run(["image"], {"tokens": rollout["sampled"][-1]})[0] for rollout in recorded
        ]
    except Exception as error:  # onnxruntime raises types of its own
        raise EngineError(f"ONNX Runtime cannot run the fp16 {_VERIFIED}: {error}") from error
    found = [
        psnr(image, rollout["image"], peak=1.0)
        for image, rollout in zip(images, recorded, strict=True)
    ]
    worst = next((each for each in found if each != each), min(found))  # NaN is the worst
    if worst >= limit:
        return ""
    return f"with them in fp16 it reaches {worst:.1f} dB, expected at least {limit:g}"


def _too_large(seen: float | None) -> str:
    if seen is None:
        return "the range of its input was not measured"
    if seen**2 <= LARGEST_FP16 / HEADROOM:
        return ""
    return f"its input reaches {seen:.4g}, whose square comes too near to the end of float16"
