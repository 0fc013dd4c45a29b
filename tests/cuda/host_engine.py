"""Engines for GPUs that have neither TensorRT nor onnxruntime-gpu: ONNX Runtime on the host.

A run is three kinds of work on the device's stream: copies of the inputs into pinned memory, a host
function that runs ONNX Runtime's CPU provider on it, and copies of the outputs back. All of them
may be captured, so the loop, its plans and its graph run as with a real engine, and their
results have to be those of the CPU device bit by bit. The emulated driver and real ones take the
same path.

The host function needs Python's lock, and most of pycuda's calls keep it while they may wait for
the driver: a launch whose queue is full, a kernel that is loaded, memory that comes or goes. So
outside a capture the engine waits for its host function, with the lock given up, and no such
function is ever pending while others call CUDA. The calls of this file go to libcuda itself:
cuda-bindings before 12.9.1 keep the lock too, and some versions wrap a host function into one that
lasts for a single call, where a graph calls it again and again.
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
from fewstep.runtime.devices import Buffer, Device
from fewstep.runtime.devices.cpu import CpuBuffer
from fewstep.runtime.devices.cuda_driver import failure, load_driver, translated
from fewstep.runtime.engines import BoundEngine, Engine, require_all
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import DeviceError

_HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@dataclass(frozen=True)
class _Staged:
    """A buffer of the device, what stands for it on the host, and the pinned memory of that."""

    device: Buffer
    host: npt.NDArray[Any]
    pinned: Any


class HostEngine:
    """Enqueues a CPU engine on a stream of the device.

    Args:
        engine: the CPU engine.
        stream: handle of the stream.
    """

    capturable, warm_up = True, 1

    def __init__(self, engine: Engine, stream: int) -> None:
        self.engine, self._driver = engine, load_driver()
        self._cuda, self._stream = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(stream)
        self.name, self.inputs, self.outputs = engine.name, engine.inputs, engine.outputs

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        """Bind buffers, with pinned memory beside them."""
        require_all(self, bindings)
        staged: dict[str, _Staged] = {}
        with contextlib.ExitStack() as stack, translated(self._driver, "allocating pinned memory"):
            stack.callback(_free, staged, self._driver)
            for name, buffer in bindings.items():
                # A cache before its first entry has nothing, and nothing can be pinned.
                shape = tuple(max(1, size) for size in buffer.shape)
                pinned = self._driver.pagelocked_empty(shape, buffer.dtype)
                host = pinned[tuple(slice(size) for size in buffer.shape)]
                staged[name] = _Staged(buffer, host, pinned.base)
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
        self._call("cuLaunchHostFunc", self._stream, function, None)
        if not self._is_capturing():
            self._call("cuStreamSynchronize", self._stream)
        for name in self.outputs:
            each = staged[name]
            self._copy(each.device.pointer, each.host.ctypes.data, each.host.nbytes)

    def _copy(self, target: int, source: int, size: int) -> None:
        """Between addresses of either kind; the driver tells them apart."""
        ends = (ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size))
        if size:
            self._call("cuMemcpyAsync", *ends, self._stream)

    def _is_capturing(self) -> bool:
        status = ctypes.c_int()
        self._call("cuStreamIsCapturing", self._stream, ctypes.byref(status))
        return status.value != 0

    def _call(self, name: str, *arguments: Any) -> None:
        """Call the driver, without Python's lock."""
        code = int(getattr(self._cuda, name)(*arguments))
        if code:
            raise failure(code, f"{name} gave error {code}", f"running graph '{self.name}'")

    def _compute(self, bound: BoundEngine, staged: Mapping[str, _Staged]) -> None:
        """What the stream calls. No exception passes through the driver: NaN tells instead."""
        try:
            bound.run()
        except Exception:
            traceback.print_exc()
            for name in self.outputs:
                staged[name].host.reshape(-1).view(np.uint8).fill(0xFF)

    def _release(self, bound: BoundEngine, staged: dict[str, _Staged]) -> None:
        with contextlib.suppress(DeviceError):  # a lost GPU has nothing to wait for
            self._call("cuStreamSynchronize", self._stream)
        bound.close()
        _free(staged, self._driver)


def _free(staged: dict[str, _Staged], driver: Any) -> None:
    while staged:
        each = staged.popitem()[1]
        with contextlib.suppress(driver.Error):
            each.pinned.free()


def open_engine(bundle: Bundle, graph: str, device: Device, threads: int, precision: str) -> Engine:
    """Stands in for ``fewstep.runtime.engines.select.open_engine``."""
    path, info = bundle.graph_path(graph, precision), bundle.graph(graph, precision)
    engine = OnnxRuntimeEngine(graph, path, info, threads=threads)
    stream = device.cuda_stream
    return engine if stream is None else HostEngine(engine, stream.handle)
