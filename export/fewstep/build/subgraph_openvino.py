"""Tensors inside a graph as OpenVINO computes them, for ``fewstep verify --layers``."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx

from fewstep.build.layers import Walks
from fewstep.build.subgraph import SubgraphExtractor, Walk
from fewstep.runtime.devices import Array
from fewstep.runtime.engines.openvino import OpenVino, one_line
from fewstep.runtime.errors import EngineError


def walk_in(precision: str) -> Walks:
    """What :func:`fewstep.build.layers.first_divergence` takes to look at OpenVINO's tensors.

    Args:
        precision: that OpenVINO computes in.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        EngineError: the CPU does not compute in it.
    """
    api = OpenVino.load()
    api.graphs(precision)
    config = api.config(precision)

    def run(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            compiled = api.core.compile_model(
                api.core.read_model(model.SerializeToString()), "CPU", config
            )
            found = compiled({name: np.ascontiguousarray(each) for name, each in inputs.items()})
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot run a subgraph: {one_line(error)}") from error
        return {output.name: found[output.name] for output in model.graph.output}

    def walk(
        graph: SubgraphExtractor, inputs: Mapping[str, Array], wanted: Collection[str]
    ) -> Walk:
        return Walk(graph, inputs, wanted, run)

    return walk
