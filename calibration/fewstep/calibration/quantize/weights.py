"""A graph whose weights alone are int8, with a DequantizeLinear before what reads them.

For graphs that run once and have more weights than work, as text encoders do: activations stay as
they are, so nothing has to be measured and outliers of activations cost nothing. With scales
s = max |w| / 127 of every column of a weight, w becomes s · clip(round(w / s), −127, 127). Beside
matmuls this quantizes tables of embeddings, which may be half of a text encoder.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fewstep.calibration.quantize.matmuls import Matmul, weighted_matmuls
from fewstep.calibration.quantize.qdq import SMALLEST_FP16_SCALE

_MOST = 127


def stored_weights(graph: onnx.GraphProto) -> tuple[Matmul, ...]:
    """The matmuls with a weight, and tables of embeddings as such: Gathers of rows ``[M, W]``."""
    float_tables = {
        each.name
        for each in graph.initializer
        if each.data_type == onnx.TensorProto.FLOAT and len(each.dims) == 2
    }
    tables = (
        Matmul(node.name, node.input[1], node.input[0], "")
        for node in graph.node
        if node.op_type == "Gather"
        and node.input[0] in float_tables
        and not any(each.name == "axis" and each.i for each in node.attribute)
    )
    return (*tables, *weighted_matmuls(graph))


def quantized(
    model: onnx.ModelProto, selected: Collection[str], *, fp16_scales: bool = False
) -> onnx.ModelProto:
    """Store the weights of some matmuls and tables of an fp32 graph in int8.

    Args:
        model: the fp32 graph, weights included; not changed.
        selected: names of nodes of :func:`stored_weights`.
        fp16_scales: make scales that float16 can hold.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    chosen = {each.name: each.weight for each in stored_weights(graph) if each.name in selected}
    by_rows = {node.input[1] for node in graph.node if node.name in chosen and _flipped(node)}
    least = SMALLEST_FP16_SCALE if fp16_scales else float(np.finfo(np.float32).tiny)
    given = {each.name: each for each in graph.initializer}
    nodes = []
    for weight in dict.fromkeys(chosen.values()):
        axis = 0 if weight in by_rows else 1
        values = numpy_helper.to_array(given[weight])
        made = _stored(weight, values, axis, least)
        graph.initializer.extend(made)
        names, output = [each.name for each in made], f"{weight}/dequantized"
        nodes.append(helper.make_node("DequantizeLinear", names, [output], output, axis=axis))
    for node in graph.node:
        if node.name in chosen:
            place = list(node.input).index(chosen[node.name])
            node.input[place] = f"{chosen[node.name]}/dequantized"
    rest = [onnx.NodeProto.FromString(each.SerializeToString()) for each in graph.node]
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    read = {name for node in rest for name in node.input}
    for each in (given[name] for name in dict.fromkeys(chosen.values()) if name not in read):
        graph.initializer.remove(each)
    return result


def _flipped(node: onnx.NodeProto) -> bool:
    """Whether its weight has the output channels as rows."""
    return node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)


def _stored(
    name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]], axis: int, least: float
) -> tuple[onnx.TensorProto, onnx.TensorProto, onnx.TensorProto]:
    """A weight ``[M, W]`` in int8, its scales along ``axis``, and their zero points."""
    scales = np.maximum(np.abs(values).max(1 - axis) / _MOST, least).astype(np.float32)
    whole = np.round(values / np.expand_dims(scales, 1 - axis))
    return (
        numpy_helper.from_array(np.clip(whole, -_MOST, _MOST).astype(np.int8), f"{name}/int8"),
        numpy_helper.from_array(scales, f"{name}/scale"),
        numpy_helper.from_array(np.zeros(len(scales), np.int8), f"{name}/zero"),
    )
