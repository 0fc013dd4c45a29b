"""A graph with explicit QuantizeLinear/DequantizeLinear around some of its matrix products.

``onnxruntime.quantization`` does it, with the recipe that TensorRT accepts: int8 with zero points
of 0 throughout, weights by output channel, nothing after a product and no int32 bias. With scale
s = max |x| / 127, x becomes s · clip(round(x / s), −128, 127).

ONNX Runtime puts a quantized tensor before *every* node that reads the original, quantized or not,
and even in the place of a graph output. So the chosen products first get names of their own for
what they read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from fewstep.build.capabilities import inferred
from fewstep.calibration.activations import Ranges
from fewstep.calibration.products import OPERATORS, Product, weighted_products

_OWN = "/quantized"
_SMALLEST_FP16_SCALE = 6.2e-5
"""Just above the smallest normal float16: below it, a scale would lose its precision, or be 0."""


def quantized(
    model: onnx.ModelProto,
    chosen: Collection[str],
    ranges: Ranges,
    *,
    fp16_scales: bool = False,
) -> onnx.ModelProto:
    """Quantize some products of an fp32 graph to int8.

    Args:
        model: the fp32 graph, weights included; not changed.
        chosen: names of products with weights.
        ranges: of the activations that they read.
        fp16_scales: make scales that float16 can hold.
    """
    products = [each for each in weighted_products(model.graph) if each.name in chosen]
    result = separated(model, products)
    if not products:
        return result
    result.graph.value_info.extend(inferred(result).value_info)
    options = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": list(OPERATORS),
    }
    if fp16_scales:
        options["MinimumRealRange"] = 2 * 127 * _SMALLEST_FP16_SCALE
    quantizer = QDQQuantizer(
        result,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=_as_ort(
            {each.activation + _OWN: ranges[each.activation] for each in products}
        ),
        nodes_to_quantize=list(chosen),
        nodes_to_exclude=[],
        op_types_to_quantize=list(OPERATORS),
        extra_options=options,
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    made = joined(quantizer.model.model)
    del made.graph.value_info[:]
    return made


def separated(model: onnx.ModelProto, products: Collection[Product]) -> onnx.ModelProto:
    """A copy in which the products have names of their own for what they read."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _separate(result.graph, products)
    return result


def joined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the identities of :func:`separated`; only QuantizeLinear reads them."""
    _join(model.graph)
    return model


def _separate(graph: onnx.GraphProto, products: Collection[Product]) -> None:
    chosen = {each.name for each in products}
    elsewhere = {name for node in graph.node if node.name not in chosen for name in node.input} | {
        each.name for each in graph.output
    }
    weights = {each.name: each for each in graph.initializer}
    for name in sorted({each.weight for each in products} & elsewhere):
        copy = graph.initializer.add()
        copy.CopyFrom(weights[name])
        copy.name += _OWN
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()
    for node in graph.node:
        if node.name in chosen:
            activation, weight = node.input[:2]
            if activation not in made:
                own = activation + _OWN
                nodes.append(helper.make_node("Identity", [activation], [own], own))
                made.add(activation)
            node.input[0] = activation + _OWN
            node.input[1] = weight + _OWN if weight in elsewhere else weight
        nodes.append(node)
    _replace_nodes(graph, nodes)


def _join(graph: onnx.GraphProto) -> None:
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


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _as_ort(ranges: Mapping[str, tuple[float, float]]) -> TensorsData:
    return TensorsData(
        CalibrationMethod.MinMax,
        {
            name: TensorData(lowest=np.float32(low), highest=np.float32(high))
            for name, (low, high) in ranges.items()
        },
    )
