"""Opsets and operators that TensorRT and TensorRT-RTX read, and what to use instead of others.

Sources. TensorRT-RTX: measured with 1.7.1 on a machine without a GPU: the parser's own
``supports_operator``, and the operator tests of the onnx package (``tests/build/test_opset.py``
asks the parser again). TensorRT: ``docs/operators.md`` and ``docs/Changelog.md`` of
github.com/onnx/onnx-tensorrt, 10.1 to 10.15.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import onnx
from onnx import helper

from fewstep.build.graphs import STANDARD, placed

OPSETS: Mapping[str, tuple[int, int]] = {"tensorrt": (9, 20), "tensorrt-rtx": (9, 26)}
"""Oldest and newest opset. TensorRT: what 10.3, the version of JetPack 6, documents."""

_INDICES = "index with integer tensors (Gather, ScatterElements) instead of boolean masks"
_NOISE = "make the random numbers an input of the graph, or draw in the runtime's kernels"
_QDQ = "quantize with QuantizeLinear and DequantizeLinear, with scales known beforehand"
_STANDARD_ONLY = "use operators of ONNX itself: export without one runtime's own optimizations"
_PLAIN = "write it with plain tensor operators (MatMul, Softmax, Gather, Where)"

_ABSENT = {
    # The first three build in TensorRT, but their outputs' shapes depend on values, which one CUDA
    # graph per shape cannot hold.
    _INDICES: "NonZero Compress NonMaxSuppression Unique",
    _NOISE: "Multinomial Bernoulli",
    _QDQ: "ConvInteger DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul",
    _PLAIN: "AffineGrid BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im "
    "ConcatFromSequence DFT Det ImageDecoder MaxRoiPool MaxUnpool MelWeightMatrix "
    "NegativeLogLikelihoodLoss Optional OptionalGetElement OptionalHasElement RegexFullMatch "
    "SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength "
    "SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer "
    "StringSplit TfIdfVectorizer",
}
# TensorRT-RTX: RoiAlign and DeformConv are plugins that it does not ship. Attention builds for some
# shapes in fp16, is refused in fp32, and ends the process when one tensor is query and key.
# TensorRT: the windows came with 10.4, STFT with 10.5, and 10.3 is supported.
_ABSENT_IN = {
    "tensorrt": "BlackmanWindow HammingWindow HannWindow STFT",
    "tensorrt-rtx": "Attention BitCast CausalConvWithState CumProd DeformConv LinearAttention "
    "RoiAlign SwiGLU",
}
ABSENT: Mapping[str, Mapping[str, str]] = {
    backend: {
        **{name: instead for instead, names in _ABSENT.items() for name in names.split()},
        **dict.fromkeys(own.split(), _PLAIN),
    }
    for backend, own in _ABSENT_IN.items()
}
"""Operators that a backend cannot build, or not for this runtime, with what to use instead."""


def unread_opsets(model: onnx.ModelProto, backend: str) -> tuple[int, ...]:
    """Opsets of ONNX that a model needs and a backend does not read."""
    oldest, newest = OPSETS[backend]
    own = (each.version for each in model.opset_import if each.domain in STANDARD)
    return tuple(version for version in own if not oldest <= version <= newest)


def absent_operators(model: onnx.ModelProto, backend: str) -> dict[str, list[str]]:
    """Nodes that a backend cannot build, also in subgraphs and functions, by their remedies."""
    local = {(each.domain, each.name) for each in model.functions}
    bodies = [helper.make_graph(each.node, each.name, [], []) for each in model.functions]
    found: dict[str, list[str]] = {}
    for each in itertools.chain.from_iterable(map(placed, (model.graph, *bodies))):
        domain, operator = each.node.domain, each.node.op_type
        if domain in STANDARD:
            if instead := ABSENT[backend].get(operator):
                found.setdefault(instead, []).append(f"{each.name} ({operator})")
        elif (domain, operator) not in local:
            found.setdefault(_STANDARD_ONLY, []).append(f"{each.name} ({domain}::{operator})")
    return found
