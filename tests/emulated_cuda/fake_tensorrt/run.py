"""What the stream calls for an enqueued engine: ONNX Runtime on the memory at the addresses."""

from __future__ import annotations

import math
import traceback
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from tests.emulated_cuda.fake_tensorrt.graph import Tensor
from tests.emulated_cuda.fake_tensorrt.library import Library
from tests.emulated_cuda.fake_tensorrt.stream import array_at, fill

if TYPE_CHECKING:
    from tests.emulated_cuda.fake_tensorrt.engine import ICudaEngine

_GARBAGE = 0xFF  # as every byte: NaN as a float, -1 as an int


@dataclass(frozen=True)
class Run:
    """One enqueued run, with everything as it was at that moment.

    ``memory``: address and size of the user's scratch memory. All of it is overwritten before and
    after the graph runs, so that inputs and outputs that lie in it are lost.
    """

    context: weakref.ref[Any]
    library: Library
    engine: str
    shapes: Mapping[str, tuple[int, ...]]
    addresses: Mapping[str, int]
    outputs: Mapping[str, Tensor]
    memory: tuple[int, int]

    def __call__(self) -> None:
        """No exception passes through the driver: it is printed, and outputs become garbage."""
        self._overwrite_scratch()
        context = self.context()
        try:
            if context is None:
                raise RuntimeError(f"engine '{self.engine}' ran after its context was released")
            self._compute(context.engine)
            self.library.note("ran", engine=self.engine)
        except Exception:
            traceback.print_exc()
            self.library.note("failed", engine=self.engine)
            for name, tensor in self.outputs.items():
                fill(self.addresses[name], _GARBAGE, self._array(tensor).nbytes)
        self._overwrite_scratch()

    def _compute(self, engine: ICudaEngine) -> None:
        inputs = {name: self._array(tensor) for name, tensor in engine.graph.inputs.items()}
        found = engine.session().run(list(self.outputs), inputs)
        for tensor, values in zip(self.outputs.values(), found, strict=True):
            target = self._array(tensor)
            if values.shape != target.shape:
                raise RuntimeError(f"output {tensor.name} has shape {values.shape}")
            np.copyto(target, values, casting="no")

    def _array(self, tensor: Tensor) -> Any:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.onnx_dtype)
        return array_at(self.addresses[tensor.name], self.shapes[tensor.name], dtype)

    def _overwrite_scratch(self) -> None:
        address, size = self.memory
        if size:
            fill(address, _GARBAGE, size)


def tensor_bytes(tensor: Tensor, shape: tuple[int, ...]) -> int:
    """Size of a tensor; sizes that are not known count as one."""
    item = onnx.helper.tensor_dtype_to_np_dtype(tensor.onnx_dtype).itemsize
    return int(math.prod(max(size, 1) for size in shape) * item)
