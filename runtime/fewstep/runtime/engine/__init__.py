"""Engines: compiled graphs with named inputs and outputs in device memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from fewstep.runtime.device import Buffer
from fewstep.runtime.manifest import TensorInfo


class Engine(Protocol):
    """One compiled graph.

    ``inputs`` and ``outputs`` give dtype and shape of each tensor; a dimension that may vary
    carries its name.
    """

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> Mapping[str, TensorInfo]: ...

    @property
    def outputs(self) -> Mapping[str, TensorInfo]: ...

    def enqueue(self, bindings: Mapping[str, Buffer]) -> None:
        """Run the graph on buffers bound by tensor name; outputs are written in place.

        Raises:
            EngineError: a binding is missing or has another dtype or shape, or the run failed.
        """
        ...

    def close(self) -> None:
        """Release what the engine holds."""
        ...
