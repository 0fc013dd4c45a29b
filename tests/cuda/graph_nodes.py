"""What the graph of a replay consists of, as the driver lists it."""

from __future__ import annotations

from fewstep.runtime.devices.cuda import CudaReplay


def nodes_of(replay: object) -> list[str]:
    """Every node of the captured graphs: the name of its kernel, or else its kind."""
    assert isinstance(replay, CudaReplay)
    return [node for each in replay.captured for node in each.graph.nodes()]
