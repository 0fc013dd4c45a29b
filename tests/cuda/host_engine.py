"""Engines for GPUs that have neither TensorRT nor onnxruntime-gpu: ONNX Runtime on the host.

A run is three kinds of work on the device's stream: copies of the inputs into pinned memory, a host
function that runs ONNX Runtime's CPU provider on it, and copies of the outputs back. All of them
may be captured, so the loop, its plans and its graph run as with a real engine, and their
results have to be those of the CPU device bit by bit. The emulated driver and real ones take the
same path.

The host function needs Python's lock. Whoever waits for the stream must not hold it: pycuda's
``Stream.synchronize`` gives it up, ``cuMemFree`` and ``cuMemFreeHost`` do not.
"""

from __future__ import annotations

import contextlib
import ctypes
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.device import Buffer, Device
from fewstep.runtime.device.cpu import CpuBuffer
from fewstep.runtime.device.cuda_driver import checked, load_bindings, load_driver, translated
from fewstep.runtime.engine import BoundEngine, Engine, require_all
from fewstep.runtime.engine.onnxruntime import OnnxRuntimeEngine

_HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@dataclass(frozen=True)
class _Staged:
    """A buffer of the device and the pinned memory that stands for it on the host."""

    device: Buffer
    host: npt.NDArray[Any]


class HostEngine:
    """Enqueues a CPU engine on a stream of the device.

    Args:
        engine: the CPU engine.
        stream: handle of the stream.
    """

    capturable, warm_up = True, 1

    def __init__(self, engine: Engine, stream: int) -> None:
        self.engine, self._driver, self._cuda = engine, load_driver(), load_bindings()
        self._stream = self._cuda.CUstream(stream)
        self.name, self.inputs, self.outputs = engine.name, engine.inputs, engine.outputs

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        """Bind buffers, with pinned memory beside them."""
        require_all(self, bindings)
        staged: dict[str, _Staged] = {}
        with contextlib.ExitStack() as stack, translated(self._driver, "allocating pinned memory"):
            stack.callback(_free, staged, self._driver)
            for name, buffer in bindings.items():
                pinned = self._driver.pagelocked_empty(buffer.shape, buffer.dtype)
                staged[name] = _Staged(buffer, pinned)
            stack.pop_all()
        bound = self.engine.bind({name: CpuBuffer(each.host) for name, each in staged.items()})
        function = _HostFunction(lambda _: self._compute(bound, staged))
        return BoundEngine(
            self.name,
            run=lambda: self._enqueue(staged, function),
            close=lambda: self._release(bound, staged),
        )

    def close(self) -> None:
        """Close the engine behind."""
        self.engine.close()

    def _enqueue(self, staged: Mapping[str, _Staged], function: Any) -> None:
        for name in self.inputs:
            each = staged[name]
            self._copy(each.host.ctypes.data, each.device.pointer, each.host.nbytes)
        address = self._cuda.CUhostFn(ctypes.cast(function, ctypes.c_void_p).value)
        checked(self._cuda.cuLaunchHostFunc(self._stream, address, 0), f"enqueuing {self.name}")
        for name in self.outputs:
            each = staged[name]
            self._copy(each.device.pointer, each.host.ctypes.data, each.host.nbytes)

    def _copy(self, target: int, source: int, size: int) -> None:
        """Between addresses of either kind; the driver tells them apart."""
        checked(self._cuda.cuMemcpyAsync(target, source, size, self._stream), "copying")

    def _compute(self, bound: BoundEngine, staged: Mapping[str, _Staged]) -> None:
        """What the stream calls. No exception passes through the driver: NaN tells instead."""
        try:
            bound.run()
        except Exception:
            traceback.print_exc()
            for name in self.outputs:
                staged[name].host.reshape(-1).view(np.uint8).fill(0xFF)

    def _release(self, bound: BoundEngine, staged: dict[str, _Staged]) -> None:
        with contextlib.suppress(Exception):  # a lost GPU has nothing to wait for
            self._cuda.cuStreamSynchronize(self._stream)
        bound.close()
        _free(staged, self._driver)


def _free(staged: dict[str, _Staged], driver: Any) -> None:
    while staged:
        pinned: Any = staged.popitem()[1].host.base
        with contextlib.suppress(driver.Error):
            pinned.free()


def open_engine(bundle: Bundle, graph: str, device: Device, threads: int, precision: str) -> Engine:
    """Stands in for ``fewstep.runtime.engine.choice.open_engine``."""
    path, info = bundle.graph_path(graph, precision), bundle.graph(graph, precision)
    engine = OnnxRuntimeEngine(graph, path, info, threads=threads)
    stream = device.cuda_stream
    return engine if stream is None else HostEngine(engine, stream.handle)
