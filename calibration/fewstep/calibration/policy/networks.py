"""Actor and critic, and the actor of a policy graph that a bundle has.

The actor is AdaNAT's policy network, or a table with one action per step for all images, to see
what adapting to the image is worth. The critic is a policy network with one output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from fewstep.build.graphs import MAC_OPERATORS, load_graph
from fewstep.export.models.policy import FixedPolicy, PolicyNet
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.engines import run_once
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import CalibrationError
from fewstep.runtime.records import GraphInfo

SIZES: Mapping[str, Any] = {"hidden_size": 64}
"""Constructor arguments of a new policy network, where the bundle has none to take after."""

_TOLERANCE = 1e-3

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """What a policy reads and gives: N features of width C, a square of ``side``; A actions."""

    side: int
    width: int
    actions: int

    @classmethod
    def of(cls, graph: GraphInfo) -> Shape:
        """That of a policy's graph.

        Raises:
            KeyError: it is no policy's graph.
        """
        _, count, width = graph.inputs["features"].shape
        return cls(math.isqrt(int(count)), int(width), int(graph.outputs["action"].shape[1]))

    def features(self, rows: int) -> Tensor:
        """Random features ``[rows, N, C]``, the same every time."""
        random = torch.Generator().manual_seed(0)
        return torch.randn((rows, self.side**2, self.width), generator=random)


def new_actor(
    shape: Shape, steps: int, *, adaptive: bool, sizes: Mapping[str, Any] = SIZES
) -> nn.Module:
    """An actor whose action is 0 in every state: it follows the schedule of the family."""
    if not adaptive:
        return FixedPolicy(steps, shape.actions)
    return PolicyNet(shape.width, shape.actions, grid_size=shape.side, **sizes)


def new_critic(shape: Shape, sizes: Mapping[str, Any] = SIZES) -> PolicyNet:
    """A critic whose value is 0 in every state."""
    return PolicyNet(shape.width, 1, grid_size=shape.side, **sizes)


def actor_of(bundle: Bundle, name: str) -> PolicyNet:
    """The policy network of a bundle's graph, with its weights.

    Weights are found by the shape of the network and then checked: both must give the same
    actions in random states.

    Raises:
        CalibrationError: the graph is no such network, such as one that tells images not apart.
    """
    found = list(_layers(load_graph(bundle, name).graph))
    try:
        shape = Shape.of(bundle.graph(name))
        actor = _rebuilt(shape, found)
    except (StopIteration, KeyError, ValueError, RuntimeError) as error:
        raise CalibrationError(_not_readable(name)) from error
    if not _difference(bundle, name, shape, actor) <= _TOLERANCE:
        raise CalibrationError(_not_readable(name))
    return actor


def _not_readable(name: str) -> str:
    return (
        f"graph '{name}' is no policy network of AdaNAT's shape, so its weights cannot be read; "
        "start from another policy, or from nothing with --start scratch"
    )


def _layers(graph: onnx.GraphProto) -> Iterator[tuple[str, Array, Array]]:
    """Operator, weight as PyTorch has it, and bias of every weighted node, in order."""
    weights = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    added = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}
    for node in graph.node:
        if node.op_type not in MAC_OPERATORS or node.input[1] not in weights:
            continue
        weight = weights[node.input[1]]
        transposed = any(each.name == "transB" and each.i for each in node.attribute)
        if node.op_type != "Conv" and not transposed:
            weight = weight.T
        names = list(node.input[2:])
        if not names and node.output[0] in added:
            names = [name for name in added[node.output[0]].input if name in weights]
        bias = weights[names[0]] if names else np.zeros(len(weight), np.float32)
        yield node.op_type, np.array(weight), np.array(bias)


def _rebuilt(shape: Shape, layers: list[tuple[str, Array, Array]]) -> PolicyNet:
    """A network with the weights put where their shapes fit, in order."""
    actor = PolicyNet(shape.width, shape.actions, grid_size=shape.side, **_sizes(shape, layers))
    remaining = list(layers)
    for module in actor.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            wanted = tuple(module.weight.shape)
            index = next(i for i, each in enumerate(remaining) if each[1].shape == wanted)
            _, weight, bias = remaining.pop(index)
            assert module.bias is not None
            with torch.no_grad():
                module.weight.copy_(torch.from_numpy(weight))
                module.bias.copy_(torch.from_numpy(bias))
    if remaining:
        raise ValueError("weights are left over")
    return actor


def _sizes(shape: Shape, layers: list[tuple[str, Array, Array]]) -> dict[str, Any]:
    """Arguments of the network: by the two convolutions, the layer that reads all places, and the
    last."""
    hidden, channels = (len(weight) for kind, weight, _ in layers if kind == "Conv")
    flat = (shape.side // 2) ** 2 * channels
    last = max(index for index, (kind, _, _) in enumerate(layers) if kind == "Conv")
    first = next(len(weight) for _, weight, _ in layers[last + 1 :] if weight.shape[1] == flat)
    return {
        "hidden_size": hidden,
        "channels": channels,
        "widths": (first, layers[-1][1].shape[1]),
    }


@torch.no_grad()
def _difference(bundle: Bundle, name: str, shape: Shape, actor: PolicyNet) -> float:
    """Largest difference between the actions of graph and network."""
    features, step = shape.features(4), torch.arange(4, dtype=torch.int32)
    engine = OnnxRuntimeEngine(name, bundle.graph_path(name), bundle.graph(name))
    state = {"features": features.numpy(), "step": step.numpy()}
    expected = run_once(CpuDevice(), engine, state)["action"]
    engine.close()
    return float(np.abs(actor(features, step).numpy() - expected).max())
