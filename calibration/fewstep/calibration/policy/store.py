"""A tuned policy into its bundle: graph, golden rollout, and how it was made."""

from __future__ import annotations

import torch
from torch import nn

from fewstep.calibration.added_graph import add_graph, exported
from fewstep.calibration.policy.networks import Shape
from fewstep.export.source import Graph
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.policies import PolicyInfo, policies_of


def add_policy(bundle: Bundle, name: str, actor: nn.Module, info: PolicyInfo) -> Bundle:
    """Export an actor and add it as the newest policy; the others stay.

    Args:
        bundle: as it is now.
        name: of the new graph.
        actor: features ``[B, N, C]`` and step ``[B]`` to raw actions ``[B, A]``.
        info: what the manifest says of it.

    Raises:
        ExportError: the graph does not compute what the actor does.
        OutputError: the bundle cannot be written; it is as before.
    """
    actor = actor.cpu().eval()
    policies = policies_of(bundle)
    newest = [*policies][-1]
    example = {
        "features": Shape.of(bundle.graph(newest)).features(2),
        "step": torch.tensor([0, 3], dtype=torch.int32),
    }
    graph = exported(name, Graph(actor, example, ("action",)))
    described = {each: known.model_dump() for each, known in policies.items()}
    return add_graph(bundle, graph, newest, {"policies": {**described, name: info.model_dump()}})
