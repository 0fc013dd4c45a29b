"""Actor and critic, and the actor of a policy graph that a bundle has.

The actor is AdaNAT's policy network, or a table with one action per step for all images, to see
what adapting to the image is worth. The critic is a policy network with one output.
"""

from __future__ import annotations

from collections.abc import Iterator

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
from fewstep.runtime.families.masked.model import masked_model

HIDDEN = 64
"""Width of a new policy network, unless the bundle has one to take after."""

_TOLERANCE = 1e-3
_ACTIONS = 4

Array = npt.NDArray[np.float32]


def new_actor(bundle: Bundle, steps: int, *, adaptive: bool, hidden: int = HIDDEN) -> nn.Module:
    """An actor whose action is 0 in every state: with the residual, AdaNAT's heuristic schedule."""
    model = masked_model(bundle)
    if not adaptive:
        return FixedPolicy(steps)
    return PolicyNet(model.feature_width, _ACTIONS, hidden, model.grid[0])


def new_critic(bundle: Bundle, hidden: int = HIDDEN) -> PolicyNet:
    """A critic whose value is 0 in every state."""
    model = masked_model(bundle)
    return PolicyNet(model.feature_width, 1, hidden, model.grid[0])


def actor_of(bundle: Bundle, name: str) -> PolicyNet:
    """The policy network of a bundle's graph, with its weights.

    Weights are found by the shape of the network and then checked: both must give the same
    actions in random states.

    Raises:
        CalibrationError: the graph is no such network, such as one that tells images not apart.
    """
    found = list(_layers(load_graph(bundle, name).graph))
    try:
        actor = _rebuilt(bundle, found)
    except (StopIteration, KeyError, ValueError, RuntimeError) as error:
        raise CalibrationError(_not_readable(name)) from error
    if not _difference(bundle, name, actor) <= _TOLERANCE:
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


def _rebuilt(bundle: Bundle, layers: list[tuple[str, Array, Array]]) -> PolicyNet:
    """A network with the weights put where their shapes fit, in order."""
    depthwise = next(weight for kind, weight, _ in layers if kind == "Conv")
    actor = PolicyNet(
        masked_model(bundle).feature_width, _ACTIONS, len(depthwise), masked_model(bundle).grid[0]
    )
    remaining = list(layers)
    for module in actor.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            shape = tuple(module.weight.shape)
            index = next(i for i, each in enumerate(remaining) if each[1].shape == shape)
            _, weight, bias = remaining.pop(index)
            assert module.bias is not None
            with torch.no_grad():
                module.weight.copy_(torch.from_numpy(weight))
                module.bias.copy_(torch.from_numpy(bias))
    if remaining:
        raise ValueError("weights are left over")
    return actor


@torch.no_grad()
def _difference(bundle: Bundle, name: str, actor: PolicyNet) -> float:
    """Largest difference between the actions of graph and network."""
    model, random = masked_model(bundle), torch.Generator().manual_seed(0)
    shape = (4, model.num_tokens, model.feature_width)
    features: Tensor = torch.randn(shape, generator=random)
    step = torch.arange(4, dtype=torch.int32)
    engine = OnnxRuntimeEngine(name, bundle.graph_path(name), bundle.graph(name))
    state = {"features": features.numpy(), "step": step.numpy()}
    expected = run_once(CpuDevice(), engine, state)["action"]
    engine.close()
    return float(np.abs(actor(features, step).numpy() - expected).max())
