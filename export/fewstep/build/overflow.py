"""fp16 overflow: how large tensors become on the golden rollouts, and which fp16 cannot hold.

float16 ends at 65,504. Each graph gets an output per float tensor with its largest magnitude, so
that one run over the recorded inputs tells them all without keeping any. Nodes with a tensor that
comes within :data:`HEADROOM` of that end stay fp32 in fp16 graphs (``variants.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper

from fewstep.build.graph_engine import GraphEngine
from fewstep.build.graphs import inferred, load_graph
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.errors import BundleError
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import recordings, replay

LARGEST_FP16 = 65_504.0
HEADROOM = 2.0
"""How much larger a tensor may become elsewhere than on the golden rollouts."""

_PREFIX = "largest/"
_MOVES = frozenset(
    ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Expand", "Slice")
)
"""Operators whose outputs hold numbers of their first input and no others."""


def measure_magnitudes(bundle: Bundle) -> dict[str, dict[str, float]]:
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
    recorded = recordings(bundle).values()
    found: dict[str, dict[str, float]] = {name: {} for name in bundle.manifest.graphs}
    engines = {name: _measuring(bundle, name, found[name]) for name in found}
    with Generator(bundle, CpuDevice(), engines) as generator:
        for recording in recorded:
            for _ in replay(generator, recording):
                pass  # the engines note what they see
    for name, largest in found.items():
        spread(load_graph(bundle, name).graph, largest)
    return found


def out_of_range(
    graph: onnx.GraphProto, largest: Mapping[str, float], precision: str
) -> dict[str, float]:
    """Nodes with a tensor near the end of the precision (or not finite), with its magnitude.

    Args:
        graph: in fp32.
        largest: magnitudes of its tensors, of :func:`measure_magnitudes`.
        precision: ``fp16``; all others end where fp32 does.
    """
    limit = LARGEST_FP16 / HEADROOM if precision == "fp16" else float("inf")
    found = {}
    for node in graph.node:
        seen = [largest[name] for name in (*node.input, *node.output) if name in largest]
        beyond = [value for value in seen if not value <= limit]
        if beyond:
            found[node.name] = max(beyond)
    return found


def _measuring(bundle: Bundle, name: str, largest: dict[str, float]) -> GraphEngine:
    """An engine of a graph that notes the largest magnitude of its tensors over all runs."""
    instrumented = load_graph(bundle, name)
    instrument(instrumented)

    def note(values: Mapping[str, Array]) -> None:
        for key, value in values.items():
            tensor = key.removeprefix(_PREFIX)
            seen = float(value)
            largest[tensor] = max(largest.get(tensor, 0.0), seen if seen == seen else math.inf)

    return GraphEngine(name, instrumented, bundle.graph(name), note)


def instrument(model: onnx.ModelProto) -> None:
    """Add an output ``largest/TENSOR`` with the largest magnitude of every float tensor.

    Tensors that only move the numbers of another are left out; see :func:`spread`.
    """
    graph, typed = model.graph, inferred(model)
    moved = {name for node in graph.node if node.op_type in _MOVES for name in node.output}
    unseen = moved | {each.name for each in graph.initializer}
    for value in (*typed.input, *typed.value_info, *typed.output):
        name = value.name
        if value.type.tensor_type.elem_type != TensorProto.FLOAT or name in unseen:
            continue
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
