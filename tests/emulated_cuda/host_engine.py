"""Engines for the emulated driver: ONNX Runtime on the CPU, as host functions of a CUDA stream.

Emulated device memory is host memory, so ONNX Runtime's CPU provider can work on the device's own
pointers. Enqueuing it as a host function keeps it in the order of the stream, and makes it a node
of a captured graph, where a real engine would put its kernels.
"""

from __future__ import annotations

import ctypes
import math
import traceback
from collections.abc import Mapping
from typing import Any

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.device import Buffer, Device
from fewstep.runtime.device.cuda_driver import checked, load_bindings
from fewstep.runtime.engine import Engine
from fewstep.runtime.engine.onnxruntime import OnnxRuntimeEngine

_HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_NAN = 0xFF  # as every byte of a float


class HostEngine:
    """Enqueues a CPU engine on a stream of the emulated driver.

    Args:
        engine: the CPU engine.
        stream: handle of the stream.
    """

    capturable = True

    def __init__(self, engine: Engine, stream: int) -> None:
        self.engine, self._cuda = engine, load_bindings()
        self._stream = self._cuda.CUstream(stream)
        self.name, self.inputs, self.outputs = engine.name, engine.inputs, engine.outputs
        self._functions: dict[tuple[Any, ...], Any] = {}  # a graph calls them as long as it lives

    def enqueue(self, bindings: Mapping[str, Buffer]) -> None:
        """Run on these buffers when the stream comes to it."""
        key = tuple((name, b.pointer, b.shape, b.dtype) for name, b in bindings.items())
        if key not in self._functions:
            self._functions[key] = _HostFunction(lambda _, b=dict(bindings): self._run(b))
        address = ctypes.cast(self._functions[key], ctypes.c_void_p).value
        function = self._cuda.CUhostFn(address)
        checked(self._cuda.cuLaunchHostFunc(self._stream, function, 0), f"enqueuing {self.name}")

    def trim(self) -> None:
        """Trim the engine behind."""
        self.engine.trim()

    def close(self) -> None:
        """Close the engine behind."""
        self.engine.close()

    def _run(self, bindings: Mapping[str, Buffer]) -> None:
        """What the stream calls. No exception passes through the driver: NaN tells instead."""
        try:
            self.engine.enqueue(bindings)
        except Exception:
            traceback.print_exc()
            for name in self.outputs:
                buffer = bindings[name]
                size = math.prod(buffer.shape) * buffer.dtype.itemsize
                ctypes.memset(buffer.pointer, _NAN, size)


def open_engine(bundle: Bundle, graph: str, device: Device, threads: int, precision: str) -> Engine:
    """Stands in for ``fewstep.runtime.engine.choice.open_engine``."""
    path, info = bundle.graph_path(graph, precision), bundle.graph(graph, precision)
    engine = OnnxRuntimeEngine(graph, path, info, threads=threads)
    stream = device.cuda_stream
    return engine if stream is None else HostEngine(engine, stream.handle)
