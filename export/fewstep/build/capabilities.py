"""What TensorRT and TensorRT-RTX can build: operators, opsets, arithmetic by compute capability.

Sources. TensorRT-RTX: measured with 1.7.1 on a machine without a GPU; one graph per arithmetic and
compute capability (``tests/build/test_capabilities.py`` builds them again), the parser's own
``supports_operator``, and the operator tests of the onnx package. TensorRT:
``docs/operators.md`` and ``docs/Changelog.md`` of github.com/onnx/onnx-tensorrt, 10.1 to 10.15.

Both build strongly typed networks, so the types in the ONNX graph decide what a GPU must be able to
do. :func:`demands` reads them off: a graph needs the highest compute capability of its parts.
"""

from __future__ import annotations

import itertools
import math
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
from onnx import TensorProto, helper, numpy_helper

STANDARD = ("", "ai.onnx")
"""Names of the domain of ONNX's own operators."""

TITLES: Mapping[str, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}

OPSETS: Mapping[str, tuple[int, int]] = {"tensorrt": (9, 20), "tensorrt-rtx": (9, 26)}
"""Oldest and newest opset. TensorRT: what 10.3, the version of JetPack 6, documents."""

TENSORRT_SINCE: Mapping[str, str] = {
    **dict.fromkeys(("7.5", "8.0", "8.6", "8.7", "8.9", "9.0"), "10.3"),
    **dict.fromkeys(("10.0", "12.0"), "10.8"),
    **{"10.1": "10.10", "11.0": "10.13"},
    **dict.fromkeys(("10.3", "12.1"), "10.14"),
}
"""Compute capabilities that TensorRT builds for, and its first version that does, 10.3 at the
earliest. 10.1 and 11.0 are one GPU, Thor: under CUDA 12 (DRIVE OS 7) and under CUDA 13 (JetPack 7).

Sources: NVIDIA's support matrices for TensorRT 10.0 to 10.6; the release notes of 10.5 (without
7.0, Volta), 10.8 (Blackwell), 10.14 (B300, DGX Spark) and of 10.10 for DRIVE OS 7.0.3; JetPack 7
has 10.13.
"""

TENSORRT_BEFORE: Mapping[str, str] = {
    "5.3": "Jetson Nano has JetPack 4 with TensorRT 8.2",
    "6.2": "Jetson TX2 has JetPack 4 with TensorRT 8.2",
    "7.2": "Jetson Xavier has JetPack 5 with TensorRT 8.5",
}
"""Compute capabilities of Jetsons whose last TensorRT is too old for fewstep."""

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

NAMES: Mapping[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.DOUBLE: "fp32",  # the parser makes fp32 of it
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.INT4: "int4",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.FLOAT4E2M1: "fp4",
}
"""Names of the types that matrix products compute in or are quantized to."""

QUANTIZED = (TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1)
"""Types that QuantizeLinear and DequantizeLinear may have, the most demanding last."""

_TYPES_NEED: Mapping[str, Mapping[str, str]] = {
    "tensorrt": {"bf16": "8.0", "fp8": "8.9"},
    "tensorrt-rtx": {"bf16": "8.0", "int4": "8.0", "fp8": "8.9", "fp4": "12.0"},
}
"""Lowest compute capability of a graph with any tensor of the type."""

_FP32_PRODUCTS_NEED: Mapping[str, str] = {"tensorrt-rtx": "8.0"}
"""Convolutions are no such products: TensorRT-RTX builds them in fp32 for 7.5 as well."""

PRODUCTS = frozenset(("MatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN"))
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
CONVOLUTIONS = frozenset(("Conv", "ConvTranspose"))

_LAYOUT = frozenset(
    ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "Expand")
)
"""Operators that may stand between a DequantizeLinear and its product."""


@dataclass(frozen=True)
class Placed:
    """A node, its name (with those of the nodes around it) and what is known where it stands.

    ``types``: element types of tensors; ``makers``: nodes by the tensors that they make.
    """

    name: str
    node: onnx.NodeProto
    types: Mapping[str, int]
    makers: Mapping[str, onnx.NodeProto]


@dataclass(frozen=True)
class Product:
    """A matrix product or convolution.

    ``arithmetic`` is the type of its quantized inputs, else ``tensors``, the type of its inputs
    as the graph has them, after any DequantizeLinear; "" where the graph does not tell.
    """

    name: str
    operator: str
    arithmetic: str
    tensors: str

    @property
    def title(self) -> str:
        """What to call such products in a message."""
        kind = "convolutions" if self.operator in CONVOLUTIONS else "matrix products"
        if self.arithmetic == self.tensors:
            return f"{self.arithmetic} {kind}"
        return f"{self.arithmetic} {kind} with {self.tensors} inputs and outputs"


@dataclass(frozen=True)
class Demand:
    """Something in a graph that needs a compute capability, and the nodes that have it.

    ``kind`` is the type that is to blame; ``what`` says it in full.
    """

    kind: str
    what: str
    lowest: str
    nodes: tuple[str, ...]


def version(capability: str) -> tuple[int, int]:
    """A compute capability such as "8.9", to compare with others."""
    major, _, minor = capability.partition(".")
    return int(major), int(minor)


def name_of(node: onnx.NodeProto) -> str:
    """A node's name, or the first tensor it makes where it has none."""
    made = next(filter(None, node.output), "nothing")
    return str(node.name or f"{node.op_type} making {made}")


def placed(graph: onnx.GraphProto) -> Iterator[Placed]:
    """Every node of a graph and of the subgraphs in it (If, Loop, Scan)."""
    yield from _placed(graph, "", ChainMap(), ChainMap())


def tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Weights and constants of a graph and of the subgraphs in it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
        for inner in _subgraphs(node):
            yield from tensors(inner)


def products(graph: onnx.GraphProto) -> tuple[Product, ...]:
    """Every matrix product and convolution of a graph whose types are inferred."""
    return tuple(_product(each) for each in placed(graph) if _multiplies(each.node))


def demands(graph: onnx.GraphProto, backend: str) -> tuple[Demand, ...]:
    """What a graph, with its types inferred, asks of a GPU: one entry per type or kind."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for each in placed(graph):
        for need in _needs(each, backend):
            found.setdefault(need, []).append(each.name)
    return tuple(Demand(*need, tuple(nodes)) for need, nodes in found.items())


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


def unusable_quantization(
    graph: onnx.GraphProto, weights: Mapping[str, TensorProto], folder: Path
) -> dict[str, list[str]]:
    """QuantizeLinear and DequantizeLinear nodes that the parsers refuse, by the reason.

    Args:
        graph: types inferred.
        weights: initializers by name, with their values.
        folder: where those kept in other files are.
    """
    found: dict[str, list[str]] = {}
    for each in placed(graph):
        if reason := _unusable(each, weights, folder):
            found.setdefault(reason, []).append(each.name)
    return found


def stored_bytes(tensor: TensorProto) -> int:
    """Bytes that the numbers of a tensor take, wherever they are stored."""
    four = (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1)
    count: int = math.prod(tensor.dims)
    if tensor.data_type in four:
        return (count + 1) // 2
    return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def not_finite(graph: onnx.GraphProto) -> list[str]:
    """Weights and constants of a graph, stored in it, that hold NaN or infinite numbers."""
    found = []
    for tensor in tensors(graph):
        external = tensor.data_location == TensorProto.EXTERNAL
        if tensor.data_type in _FLOATS and not external:
            values = onnx.numpy_helper.to_array(tensor)
            if not np.isfinite(values).all():
                found.append(tensor.name or "a constant")
    return found


def inferred(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph with the types of its tensors, of a copy without large weights."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for weight in light.graph.initializer:
        if len(weight.raw_data) > 4096 and weight.data_type in NAMES:  # shapes are integers
            weight.ClearField("raw_data")
    if light.functions:
        light = onnx.inliner.inline_local_functions(light)
    return onnx.shape_inference.infer_shapes(light).graph


def _placed(
    graph: onnx.GraphProto,
    prefix: str,
    types: ChainMap[str, int],
    makers: ChainMap[str, onnx.NodeProto],
) -> Iterator[Placed]:
    own = {each.name: each.data_type for each in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        own[value.name] = value.type.tensor_type.elem_type
    types = types.new_child(own)
    makers = makers.new_child({name: node for node in graph.node for name in node.output if name})
    for node in graph.node:
        name = prefix + name_of(node)
        yield Placed(name, node, types, makers)
        for inner in _subgraphs(node):
            yield from _placed(inner, f"{name}/", types, makers)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)


def _multiplies(node: onnx.NodeProto) -> bool:
    transposes = node.op_type == "Einsum" and len(node.input) == 1
    return node.op_type in PRODUCTS | CONVOLUTIONS and not transposes


def _product(each: Placed) -> Product:
    inputs = [name for name in each.node.input[:2] if name]
    kinds = {each.types.get(name, 0) for name in inputs} - {0}
    plain = {NAMES.get(kind) or type_name(kind) for kind in kinds}
    low = {_quantized(each, name) for name in inputs}
    tensors = min(plain, default="")
    arithmetic = next((NAMES[kind] for kind in reversed(QUANTIZED) if kind in low), tensors)
    return Product(each.name, each.node.op_type, arithmetic, tensors)


def _quantized(each: Placed, tensor: str) -> int:
    """The type that a tensor is dequantized from, 0 if it is not."""
    maker = each.makers.get(tensor)
    while maker is not None and maker.op_type in _LAYOUT:
        maker = each.makers.get(maker.input[0])
    if maker is None or maker.op_type != "DequantizeLinear":
        return 0
    return each.types.get(maker.input[0], 0)


def _needs(each: Placed, backend: str) -> Iterator[tuple[str, str, str]]:
    """Kinds of work in one node: the type to blame, the whole name, the lowest capability."""
    node = each.node
    if _multiplies(node) and node.op_type not in CONVOLUTIONS and backend in _FP32_PRODUCTS_NEED:
        product = _product(each)
        if product.tensors == "fp32":
            yield "fp32", product.title, _FP32_PRODUCTS_NEED[backend]
    kinds = {NAMES.get(each.types.get(name, 0), "") for name in (*node.input, *node.output)}
    for kind, lowest in _TYPES_NEED[backend].items():
        if kind in kinds:
            yield kind, f"{kind} tensors", lowest


def _unusable(each: Placed, weights: Mapping[str, TensorProto], folder: Path) -> str:
    node = each.node
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return ""
    kind = each.types.get((node.output if node.op_type == "QuantizeLinear" else node.input)[0], 0)
    if kind not in (0, *QUANTIZED):
        names = ", ".join(NAMES[each] for each in QUANTIZED)
        return f"expected quantization to one of {names}, received {type_name(kind)}"
    if len(node.input) < 3 or not node.input[2]:
        return ""
    zero, maker = weights.get(node.input[2]), each.makers.get(node.input[2])
    if maker is not None and maker.op_type == "Constant":
        zero = next((each.t for each in maker.attribute if each.name == "value"), None)
    values = None if zero is None else numpy_helper.to_array(zero, base_dir=str(folder))
    if values is None or not np.any(values.astype(np.float32)):
        return ""
    return "expected zero points of 0, received others"


def type_name(kind: int) -> str:
    """An ONNX element type in the words of the manifest."""
    try:
        name = str(TensorProto.DataType.Name(kind)).lower()
    except ValueError:
        return f"type {kind}"
    return {"float": "float32", "double": "float64"}.get(name, name)
