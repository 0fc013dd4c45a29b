"""A graph in memory behind the engine protocol, for looking into it: ONNX Runtime on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from fewstep.build.large import session_of
from fewstep.runtime.devices import Array, Buffer
from fewstep.runtime.devices.cpu import host_array
from fewstep.runtime.engines import BoundEngine, require_all
from fewstep.runtime.errors import EngineError, FewstepError
from fewstep.runtime.records import GraphInfo, TensorInfo


def _frugal(options: Any) -> None:
    """Give memory back at once: shapes differ from run to run, and each would keep its own."""
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False


class GraphEngine:
    """Runs an ONNX model on the CPU device.

    Args:
        name: the graph's name in the bundle, for messages.
        model: the graph; it may have more outputs than ``info``.
        info: the inputs and outputs that are bound.
        seen: takes the further outputs of every run, by name.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        EngineError: ONNX Runtime refuses the graph.
    """

    capturable = True  # on the CPU there is nothing to capture
    warm_up = 1

    def __init__(
        self,
        name: str,
        model: onnx.ModelProto,
        info: GraphInfo,
        seen: Callable[[Mapping[str, Array]], None] = lambda values: None,
    ) -> None:
        self.name, self._seen = name, seen
        self.inputs: Mapping[str, TensorInfo] = info.inputs
        self.outputs: Mapping[str, TensorInfo] = info.outputs
        try:
            self._session = session_of(model, _frugal)
        except FewstepError:
            raise
        except Exception as error:  # onnxruntime raises types of its own
            raise EngineError(f"ONNX Runtime refuses graph '{name}': {error}") from error
        self._names = [output.name for output in self._session.get_outputs()]

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        """Bind buffers by name."""
        require_all(self, bindings)
        arrays = {name: host_array(buffer) for name, buffer in bindings.items()}
        return BoundEngine(self.name, functools.partial(self._run, arrays))

    def close(self) -> None:
        """Nothing to release."""

    def _run(self, arrays: Mapping[str, Any]) -> None:
        try:
            given = {name: arrays[name] for name in self.inputs}
            values = dict(zip(self._names, self._session.run(self._names, given), strict=True))
        except Exception as error:  # onnxruntime raises types of its own
            raise EngineError(f"ONNX Runtime cannot run graph '{self.name}': {error}") from error
        for name in self.outputs:
            np.copyto(arrays[name], values.pop(name))
        self._seen(values)
