"""A graph with explicit QuantizeLinear/DequantizeLinear around some of its matmuls.

``onnxruntime.quantization`` does it, with the recipe that TensorRT accepts: int8 with zero points
of 0 throughout, weights by output channel, nothing after a matmul and no int32 bias. With scale
s = max |x| / 127, x becomes s · clip(round(x / s), −128, 127). Convolutions are made the same way:
TensorRT and OpenVINO run them in int8 so, and what they give keeps its precision.

ONNX Runtime puts a quantized tensor before *every* node that reads the original, quantized or not,
and even in the place of a graph output. So the selected matmuls first get names of their own for
what they read.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from fewstep.build.graphs import CONVOLUTIONS, inferred
from fewstep.calibration.quantize.activations import Ranges
from fewstep.calibration.quantize.matmuls import OPERATORS, Matmul, weighted_matmuls

_OWN = "/quantized"
SMALLEST_FP16_SCALE = 6.2e-5
"""Just above the smallest normal float16: below it, a scale would lose its precision, or be 0."""


def quantized(
    model: onnx.ModelProto,
    selected: Collection[str],
    ranges: Ranges,
    *,
    fp16_scales: bool = False,
) -> onnx.ModelProto:
    """Quantize some matmuls and convolutions of an fp32 graph to int8.

    Args:
        model: the fp32 graph, weights included; not changed.
        selected: names of matmuls or convolutions with weights.
        ranges: of the activations that they read.
        fp16_scales: make scales that float16 can hold.
    """
    weighted = weighted_matmuls(model.graph, convolutions=True)
    matmuls = [each for each in weighted if each.name in selected]
    result = separated(model, matmuls)
    if not matmuls:
        return result
    result.graph.value_info.extend(inferred(result).value_info)
    operators = [*OPERATORS, *sorted(CONVOLUTIONS)]
    options = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": operators,
    }
    if fp16_scales:
        options["MinimumRealRange"] = 2 * 127 * SMALLEST_FP16_SCALE
    named = {}
    for each in matmuls:
        low, high = map(np.float32, ranges[each.activation])
        named[each.activation + _OWN] = TensorData(lowest=low, highest=high)
    quantizer = QDQQuantizer(
        result,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, named),
        nodes_to_quantize=list(selected),
        nodes_to_exclude=[],
        op_types_to_quantize=operators,
        extra_options=options,
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    made = joined(quantizer.model.model)
    del made.graph.value_info[:]
    return made


def separated(model: onnx.ModelProto, matmuls: Collection[Matmul]) -> onnx.ModelProto:
    """A copy in which the matmuls have names of their own for what they read."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph, names = result.graph, {each.name for each in matmuls}
    elsewhere = {name for node in graph.node if node.name not in names for name in node.input}
    elsewhere |= {each.name for each in graph.output}
    weights = {each.name: each for each in graph.initializer}
    for name in sorted({each.weight for each in matmuls} & elsewhere):
        copy = graph.initializer.add()
        copy.CopyFrom(weights[name])
        copy.name += _OWN
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()
    for node in graph.node:
        if node.name in names:
            activation, weight = node.input[:2]
            if activation not in made:
                own = activation + _OWN
                nodes.append(helper.make_node("Identity", [activation], [own], own))
                made.add(activation)
            node.input[0] = activation + _OWN
            node.input[1] = weight + _OWN if weight in elsewhere else weight
        nodes.append(node)
    _replace_nodes(graph, nodes)
    return result


def joined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the identities of :func:`separated`; only QuantizeLinear reads them."""
    graph = model.graph
    original = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Identity" and node.output[0] == node.input[0] + _OWN
    }
    kept = []
    for node in graph.node:
        if node.output[0] not in original:
            for index, name in enumerate(node.input):
                node.input[index] = original.get(name, name)
            kept.append(node)
    _replace_nodes(graph, kept)
    return model


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
