"""The real TensorRT-RTX, which builds small graphs without a GPU, and graphs to build."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

KINDS = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int4": TensorProto.INT4,
    "fp8": TensorProto.FLOAT8E4M3FN,
    "fp4": TensorProto.FLOAT4E2M1,
}


class Rtx:
    """Builds networks with TensorRT-RTX."""

    def __init__(self, module: Any) -> None:
        class Log(module.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: Any, message: str) -> None:
                pass

        self._module, self._log = module, Log()
        self._builder = module.Builder(self._log)

    def supports(self, operator: str) -> bool:
        network = self._network()
        found: bool = self._module.OnnxParser(network, self._log).supports_operator(operator)
        return found

    def builds(self, model: onnx.ModelProto, capability: str) -> bool:
        network = self._network()
        parser = self._module.OnnxParser(network, self._log)
        if not parser.parse(model.SerializeToString()):
            return False
        config = self._builder.create_builder_config()
        profile = self._builder.create_optimization_profile()
        shape = tuple(network.get_input(0).shape)
        profile.set_shape("x", *((rows, *shape[1:]) for rows in (1, 2, 4)))
        config.add_optimization_profile(profile)
        config.num_compute_capabilities = 1
        target = self._module.ComputeCapability(int(capability.replace(".", "")))
        if not config.set_compute_capability(target, 0):
            return False
        return self._builder.build_serialized_network(network, config) is not None

    def _network(self) -> Any:
        strongly_typed = self._module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return self._builder.create_network(1 << int(strongly_typed))


def unary(operator: str, tensors: str, opset: int = 20) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], "low", to=KINDS[tensors]),
        helper.make_node(operator, ["low"], ["p"], "middle"),
        helper.make_node("Cast", ["p"], ["y"], "high", to=TensorProto.FLOAT),
    ]
    return model_of(nodes, [], ["batch", 32], ["batch", 32], opset)


def in_a_condition(operator: str) -> onnx.ModelProto:
    kind = TensorProto.INT64 if operator == "NonZero" else TensorProto.FLOAT
    inputs = ["x"] if operator == "NonZero" else ["x", "x"]
    branches = [
        helper.make_graph(
            [helper.make_node(operator, inputs, [f"{name}_y"], f"inner_{name}")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", kind, None)],
        )
        for name in ("yes", "no")
    ]
    given = helper.make_tensor("given", TensorProto.BOOL, [], [True])
    node = helper.make_node(
        "If", ["given"], ["y"], "choice", then_branch=branches[0], else_branch=branches[1]
    )
    if operator == "NonZero":
        branches[1].node[0].op_type = node.attribute[1].g.node[0].op_type = "Shape"
    return model_of([node], [given], [8, 8], None, kind=kind)


def in_a_function(operator: str) -> onnx.ModelProto:
    inputs = ["a"] if operator == "NonZero" else ["a", "a"]
    body = [helper.make_node(operator, inputs, ["b"], "inner")]
    opsets = [helper.make_opsetid("", 20)]
    function = helper.make_function("own", "Inside", ["a"], ["b"], body, opsets)
    call = helper.make_node("Inside", ["x"], ["y"], "call", domain="own")
    kind = TensorProto.INT64 if operator == "NonZero" else TensorProto.FLOAT
    model = model_of([call], [], [8, 8], None, kind=kind)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def model_of(
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[TensorProto],
    x: Sequence[int | str],
    y: Sequence[int | str] | None,
    opset: int = 20,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", kind, y)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)
