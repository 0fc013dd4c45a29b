"""How large every tensor of a bundle's graphs becomes on its golden rollouts.

float16 ends at 65,504. Each graph gets an output per float tensor with its largest magnitude, so
that one run over the recorded inputs tells them all without keeping any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper

from fewstep.build.capabilities import inferred
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import BundleError, EngineError
from fewstep.runtime.verify import rollouts

_PREFIX = "largest/"
_MOVES = frozenset(
    ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Expand", "Slice")
)
"""Operators whose outputs hold numbers of their first input and no others."""


def measure_ranges(bundle: Bundle) -> dict[str, dict[str, float]]:
    """Largest magnitude of every float tensor by graph and tensor, over all golden rollouts.

    Raises:
        BundleError: the bundle has no golden rollouts, or is damaged.
        EngineError: ONNX Runtime cannot run a graph.
    """
    if bundle.manifest.golden is None:
        raise BundleError(
            f"{bundle.path} has no golden rollouts; export it again to record them, or build with "
            "--precision fp32"
        )
    recorded = rollouts(bundle.arrays(bundle.manifest.golden))
    model, found = bundle.manifest.model, {}
    transformer = _Measured(bundle, "transformer")
    policies = [_Measured(bundle, name) for name in model.policies]
    decoder = _Measured(bundle, "decoder")
    for rollout in recorded.values():
        for step, tokens in enumerate(rollout["tokens"][:-1]):
            given = {"tokens": tokens, model.condition_input: rollout["condition"]}
            features = transformer.run(given).get("features")
            if features is not None:
                state = {"features": features, "step": np.full(len(tokens), step, np.int32)}
                for policy in policies:
                    policy.run(state)
        decoder.run({"tokens": rollout["sampled"][-1]})
    for measured in (transformer, *policies, decoder):
        found[measured.graph] = measured.all_tensors()
    return found


def load_graph(bundle: Bundle, name: str) -> onnx.ModelProto:
    """The fp32 ONNX model of a graph, weights included.

    Raises:
        BundleError: damaged, or no ONNX model.
    """
    path = bundle.graph_path(name)
    try:
        return onnx.load(path)
    except (DecodeError, OSError, ValueError) as error:
        raise BundleError(
            f"{path} is not an ONNX model ({error}); export the bundle again"
        ) from error


class _Measured:
    """A graph that reports the magnitudes of its tensors."""

    def __init__(self, bundle: Bundle, graph: str) -> None:
        import onnxruntime

        self.graph, self.largest = graph, dict[str, float]()
        model = load_graph(bundle, graph)
        self._outputs = [output.name for output in model.graph.output]
        self._nodes = onnx.GraphProto(node=model.graph.node)
        instrument(model)
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises types of its own
            raise EngineError(f"ONNX Runtime refuses graph '{graph}': {error}") from error

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        names = [output.name for output in self._session.get_outputs()]
        values = dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
        for name, value in values.items():
            if name.startswith(_PREFIX):
                tensor = name.removeprefix(_PREFIX)
                self.largest[tensor] = max(self.largest.get(tensor, 0.0), float(value))
        return {name: values[name] for name in self._outputs}

    def all_tensors(self) -> dict[str, float]:
        """What was measured, and what follows from it."""
        spread(self._nodes, self.largest)
        return self.largest


def instrument(model: onnx.ModelProto) -> None:
    """Add an output ``largest/TENSOR`` with the largest magnitude of every float tensor.

    Tensors that only move the numbers of another are left out; see :func:`spread`.
    """
    graph = model.graph
    moved = {name for node in graph.node if node.op_type in _MOVES for name in node.output}
    unseen = moved | {each.name for each in graph.initializer}
    for name in [name for name in _floats(inferred(model)) if name not in unseen]:
        graph.node.append(helper.make_node("Abs", [name], [f"magnitude/{name}"]))
        graph.node.append(
            helper.make_node("ReduceMax", [f"magnitude/{name}"], [_PREFIX + name], keepdims=0)
        )
        graph.output.append(helper.make_tensor_value_info(_PREFIX + name, TensorProto.FLOAT, []))


def spread(graph: onnx.GraphProto, largest: dict[str, float]) -> None:
    """Give tensors that only move the numbers of another that one's magnitude."""
    for node in graph.node:
        if node.op_type in _MOVES and node.input[0] in largest:
            largest.update(dict.fromkeys(node.output, largest[node.input[0]]))


def _floats(graph: onnx.GraphProto) -> Iterator[str]:
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            yield value.name
