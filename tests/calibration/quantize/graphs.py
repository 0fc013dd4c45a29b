"""Small graphs with every kind of matmul, made in code, rollouts to feed them, and what quantizing
made of the one graph that a bundle has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fewstep.calibration.quantize.outcome import Outcome, QuantizedGraph
from fewstep.calibration.quantize.rollouts import Pass, Rollouts

WIDTH, CODES, LENGTH = 8, 5, 4


def transformer(*, text: bool = False) -> onnx.ModelProto:
    """One attention block with a head: qkv → attention → projection → Gemm → head.

    ``tokens [B, 4]``, ``condition [B]`` → ``logits [B, 4, 5]``, ``features [B, 4, 8]``. The
    projection's input is a graph output as well and feeds a sum; ``text [B, 4, 8]`` adds a matmul
    that embeds an input.
    """
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        values = 0.4 * random.standard_normal(shape).astype(np.float32)
        return numpy_helper.from_array(values, name)

    node = helper.make_node
    nodes = [
        node("Gather", ["embedding", "tokens"], ["x0"], "embed"),
        node("Gather", ["classes", "condition"], ["c"], "embed_class"),
        node("Unsqueeze", ["c", "one"], ["c1"], "unsqueeze"),
        node("Add", ["x0", "c1"], ["x1"], "add_class"),
        *([node("MatMul", ["text", "w_text"], ["t"], "text")] if text else []),
        *([node("Add", ["x1", "t"], ["x"], "add_text")] if text else []),
        *([] if text else [node("Identity", ["x1"], ["x"], "nothing")]),
        node("MatMul", ["x", "w_query"], ["q"], "query"),
        node("MatMul", ["x", "w_key"], ["k"], "key"),
        node("Transpose", ["k"], ["kt"], "transpose", perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["scores"], "attend"),
        node("Softmax", ["scores"], ["p"], "softmax", axis=-1),
        node("MatMul", ["p", "x"], ["mixed"], "mix"),
        node("Add", ["x", "mixed"], ["features"], "residual"),
        node("MatMul", ["features", "w_projection"], ["h"], "projection"),
        node("Relu", ["h"], ["r"], "relu"),
        node("Reshape", ["r", "rows"], ["flat"], "flatten"),
        node("Gemm", ["flat", "w_gemm", "b_gemm"], ["g"], "gemm", transB=1),
        node("Reshape", ["g", "back"], ["g3"], "unflatten"),
        node("Add", ["features", "g3"], ["y"], "residual_2"),
        node("MatMul", ["y", "w_head"], ["l"], "head"),
        node("Add", ["l", "b_head"], ["logits"], "head_bias"),
    ]
    weights = [
        *(weight("embedding", CODES + 1, WIDTH), weight("classes", 4, WIDTH)),
        *(weight(f"w_{name}", WIDTH, WIDTH) for name in ("query", "key", "projection", "gemm")),
        *([weight("w_text", WIDTH, WIDTH)] if text else []),
        *(weight("b_gemm", WIDTH), weight("w_head", WIDTH, CODES), weight("b_head", CODES)),
        numpy_helper.from_array(np.array([1]), "one"),
        numpy_helper.from_array(np.array([-1, WIDTH]), "rows"),
        numpy_helper.from_array(np.array([-1, LENGTH, WIDTH]), "back"),
    ]
    info = helper.make_tensor_value_info
    inputs = [
        info("tokens", TensorProto.INT32, ["batch", LENGTH]),
        info("condition", TensorProto.INT32, ["batch"]),
        *([info("text", TensorProto.FLOAT, ["batch", LENGTH, WIDTH])] if text else []),
    ]
    outputs = [
        info("logits", TensorProto.FLOAT, ["batch", LENGTH, CODES]),
        info("features", TensorProto.FLOAT, ["batch", LENGTH, WIDTH]),
    ]
    graph = helper.make_graph(nodes, "small", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


MATMULS = ("query", "key", "projection", "gemm")
"""Those of :func:`transformer` that may be quantized."""


def rollouts(count: int = 6, steps: int = 3, seed: int = 0) -> Rollouts:
    """Random rollouts for :func:`transformer`, all masked at first, guided: the second half of a
    pass has no condition."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, CODES + 1, (steps, count, LENGTH)).astype(np.int32)
    tokens[0] = CODES
    condition = (np.arange(count) % 3).astype(np.int32)
    both = np.concatenate([condition, np.full(count, 3, np.int32)])
    return Rollouts(
        tuple(
            Pass(
                inputs={"tokens": np.tile(each, (2, 1)), "condition": both},
                own={"tokens": each, "condition": condition},
                counted=each == CODES,
            )
            for each in tokens
        )
    )


def run(
    model: onnx.ModelProto, inputs: Mapping[str, npt.NDArray[np.generic]], names: Sequence[str]
) -> list[npt.NDArray[np.float32]]:
    """Outputs of a graph, also of tensors inside it, without ONNX Runtime's optimizations."""
    import onnxruntime

    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    known = {each.name for each in opened.graph.output}
    opened.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in names if name not in known
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(opened.SerializeToString(), options)
    found: list[npt.NDArray[np.float32]] = session.run(list(names), dict(inputs))
    return found


def weight_of(model: onnx.ModelProto, name: str) -> npt.NDArray[np.float32]:
    """An initializer's values."""
    tensor = next(each for each in model.graph.initializer if each.name == name)
    values: npt.NDArray[np.float32] = numpy_helper.to_array(tensor)
    return values


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """A node by its name."""
    found: onnx.NodeProto = next(node for node in model.graph.node if node.name == name)
    return found


def only(outcome: Outcome) -> QuantizedGraph:
    """The one graph that was quantized."""
    (graph,) = outcome.graphs
    return graph
