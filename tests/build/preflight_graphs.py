"""Bundles with bad graphs, made in code, for the tests of preflight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fewstep.build.preflight import Problem, preflight
from fewstep.build.profiles import Profile
from fewstep.build.target import Target
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.records import BuildOptions, EngineBackend, Precision, ShapeRange

Ranges = dict[str, tuple[Profile, ...]]


def check(
    bundle: Bundle,
    *,
    backend: EngineBackend = "tensorrt-rtx",
    precision: Precision = "fp32",
    capabilities: Sequence[str] = ("8.6", "8.9", "12.0"),
    ranges: Ranges | None = None,
) -> tuple[Problem, ...]:
    wanted = Target(backend, precision, BuildOptions(), tuple(capabilities))
    return preflight(bundle, wanted, all_ranges(bundle) if ranges is None else ranges)


def only_problem(bundle: Bundle, **options: Any) -> Problem:
    (problem,) = check(bundle, **options)
    return problem


def all_ranges(bundle: Bundle) -> Ranges:
    """Batches of 1 to 4, tuned for 2."""

    def shape(sizes: tuple[int | str, ...], batch: int) -> tuple[int, ...]:
        return tuple(batch if isinstance(size, str) else size for size in sizes)

    return {
        name: (
            {
                key: ShapeRange(
                    min=shape(info.shape, 1), opt=shape(info.shape, 2), max=shape(info.shape, 4)
                )
                for key, info in graph.inputs.items()
            },
        )
        for name, graph in bundle.manifest.graphs.items()
    }


def with_graph(
    bundle: Bundle, content: bytes, files: Mapping[str, bytes] | None = None, listed: bool = False
) -> Bundle:
    """The bundle with another decoder, and whether its further files are listed as its weights."""
    graphs = bundle.manifest.model_dump()["graphs"]
    graphs["decoder"]["file"] = "bad.onnx"
    graphs["decoder"]["external"] = tuple(files or ()) if listed else ()
    return bundle.update({"bad.onnx": content, **(files or {})}, graphs=graphs)


def decoder(
    nodes: Sequence[onnx.NodeProto], weights: Sequence[TensorProto], opset: int = 20
) -> bytes:
    """tokens → x [batch, 16] → ``nodes`` → y [batch, …] → image, with the tiny decoder's shapes."""
    given = "y" if nodes else "x"
    around = [
        helper.make_node("Cast", ["tokens"], ["x"], "begin", to=TensorProto.FLOAT),
        *nodes,
        helper.make_node("ReduceMean", [given], ["mean"], "mean", keepdims=1),
        helper.make_node("Reshape", ["mean", "to"], ["one"], "reshape"),
        helper.make_node("Add", ["one", "base"], ["image"], "end"),
    ]
    others = [
        numpy_helper.from_array(np.array([-1, 1, 1, 1]), "to"),
        numpy_helper.from_array(np.zeros((1, 3, 8, 8), np.float32), "base"),
    ]
    graph = helper.make_graph(
        around,
        "decoder",
        [helper.make_tensor_value_info("tokens", TensorProto.INT32, ["batch", 16])],
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [*weights, *others],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def using(operator: str, domain: str) -> bytes:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32),
        helper.make_node(operator, ["i" if operator == "BitwiseNot" else "x"], ["z"], "culprit"),
        helper.make_node("Identity", ["x"], ["y"]),
    ]
    nodes[1].domain = domain
    if operator == "Multinomial":
        nodes[1].attribute.append(helper.make_attribute("sample_size", 1))
    if operator == "DynamicQuantizeLinear":
        nodes[1].output.extend(["scale", "zero"])
    return decoder(nodes, [])


def quantized(kind: int, zero: int = 0, opset: int = 20) -> bytes:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x/q"], "x/quantize"),
        helper.make_node("DequantizeLinear", ["x/q", "scale", "zero"], ["x/d"], "x/dequantize"),
        helper.make_node("DequantizeLinear", ["w/q", "scale", "zero"], ["w/d"], "w/dequantize"),
        helper.make_node("MatMul", ["x/d", "w/d"], ["y"], "matmul"),
    ]
    weights = [
        numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
        numpy_helper.from_array(np.array(zero).astype(dtype), "zero"),
        numpy_helper.from_array(np.ones((16, 16)).astype(dtype), "w/q"),
    ]
    return decoder(nodes, weights, opset)


def external(**place: str) -> bytes:
    """A decoder whose square weight, 1,024 bytes, is in another file."""
    model = onnx.load_from_string(
        decoder([helper.make_node("MatMul", ["x", "w"], ["y"], "matmul")], [square()])
    )
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        weight.external_data.add(key=key, value=value)
    content: bytes = model.SerializeToString()
    return content


def square() -> TensorProto:
    return weight("w", (16, 16))


def weight(name: str, shape: tuple[int, ...]) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)
