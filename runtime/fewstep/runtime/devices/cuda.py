"""The CUDA device: one stream in the GPU's primary context, kernels from a cubin, one graph a plan.

The primary context is the one that PyTorch, ONNX Runtime and TensorRT use too, so that engines and
kernels see the same memory. It is made current in the thread that opens the device and stays so
until the device is closed; only that thread may use it. An error that takes the context along ends
the GPU for the whole process.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewstep.runtime.devices import (
    Array,
    Buffer,
    BufferSpec,
    CudaStream,
    Direct,
    Part,
    Workspace,
)
from fewstep.runtime.devices.cuda_context import enter, mark_lost, require_usable
from fewstep.runtime.devices.cuda_driver import (
    checked,
    device_of,
    load_bindings,
    load_driver,
    translated,
)
from fewstep.runtime.devices.cuda_graph import CudaGraph, captured_nodes
from fewstep.runtime.devices.cuda_memory import CudaWorkspace
from fewstep.runtime.devices.cuda_timing import Span, Timeline
from fewstep.runtime.engines import BoundEngine
from fewstep.runtime.errors import DeviceError, DeviceLostError
from fewstep.runtime.kernels.launch import ENTRIES, launch_of

MOST_NODES = 8_192
"""Of one graph, where parts of it are repeated: each takes memory on the GPU, and time to capture
(``docs/decisions/024-repeated-operations.md``)."""

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: never waits for, nor holds up, the default stream
_SAME = 0.5
"""Share of the values that a replay must give as the run before did. An engine that sums in any
order may flip a token on a tie, and that others; what is missing gives NaN, or something else
altogether."""
_NEAR = 0.01
"""How far values that are no ids may be apart to count as the same, as a share of the largest."""


@dataclass
class Captured:
    """A graph, how often it is launched before the next, and the events in it."""

    graph: CudaGraph
    times: int
    spans: list[Span]


class CudaReplay:
    """A captured sequence that one call launches: one graph, or several one after the other."""

    def __init__(self, device: CudaDevice, captured: Sequence[Captured]) -> None:
        self._device, self.captured = device, captured

    @property
    def nodes(self) -> int:
        """Nodes of all graphs together; one that is launched again and again counts once."""
        return sum(len(each.graph) for each in self.captured)

    def __call__(self) -> None:
        self._device.replay(self)

    def close(self) -> None:
        """Destroy graphs and events; closing twice is fine."""
        for each in self.captured:
            each.graph.close()
            self._device.forget(each.spans)
            each.spans = []


class CudaDevice:
    """Enqueues everything on one stream.

    Args:
        cubin: the kernels, compiled for this GPU (``kernels.load_cubin``).
        ordinal: number of the GPU.
        profile: time every stage with events inside the graph;
            otherwise only the graph as a whole.

    Raises:
        MissingDependencyError: pycuda or cuda-bindings is not installed.
        DeviceError: no driver, no such GPU, or a cubin that it cannot load.
    """

    name = "cuda"

    def __init__(self, cubin: bytes, *, ordinal: int = 0, profile: bool = False) -> None:
        self._driver, self._cuda = load_driver(), load_bindings()
        device = device_of(self._driver, ordinal)
        self.ordinal, self._profile, self._capturing = ordinal, profile, False
        attribute = self._driver.device_attribute
        self.integrated = bool(
            device.get_attribute(attribute.INTEGRATED)
            and device.get_attribute(attribute.CAN_MAP_HOST_MEMORY)
        )
        self._functions: dict[str, Any] = {}
        self._replayed: list[tuple[Span, int]] = []
        with contextlib.ExitStack() as stack, self._running("opening the GPU"):
            self._enter_context(device, stack)
            self._stream = self._driver.Stream(_NON_BLOCKING)
            self._handle = int(self._stream.handle)
            stack.callback(setattr, self, "_stream", None)
            self.timeline = Timeline(self._handle)
            stack.callback(self.timeline.drop)
            self._module = self._driver.module_from_buffer(cubin)
            stack.callback(self._drop_module)
            for entry in ENTRIES:  # now, as loading one may wait for all that runs on the GPU
                self._functions[entry] = self._module.get_function(entry)
            self._release: contextlib.ExitStack | None = stack.pop_all()

    @property
    def cuda_stream(self) -> CudaStream:
        """The stream that engines enqueue on."""
        return CudaStream(self.ordinal, self._handle)

    def require_thread(self) -> None:
        """Check that the device's context is current in this thread.

        Raises:
            DeviceError: it is not.
        """
        if self._release is None:
            return
        if threading.get_ident() == self._ident and self._current() != self._context_handle:
            raise DeviceError(
                "another CUDA context was made current in this thread after this Generator was "
                "opened; use one thread for each GPU"
            )
        if threading.get_ident() != self._ident:
            raise DeviceError(
                f"the CUDA context of this Generator is not current in thread "
                f"'{threading.current_thread().name}', it was opened in '{self._thread}': use and "
                "close it there, or open one Generator per thread"
            )

    def require(self) -> None:
        """Check that the device is open, and its context current in this thread.

        Raises:
            DeviceError: closed, lost, or another thread or context.
        """
        if self._release is None:
            raise DeviceError("the cuda device is closed; open the Generator again")
        require_usable(self.ordinal)
        self.require_thread()

    def workspace(self, specs: Mapping[str, BufferSpec]) -> CudaWorkspace:
        """Allocate device memory and its pinned host side."""
        self.require()
        with self._running("allocating memory"):
            return CudaWorkspace(self._driver, self._stream, specs, mapped=self.integrated)

    def upload(self, buffer: Buffer, values: Array) -> None:
        """Copy ``values`` (same shape) into ``buffer``, and wait."""
        self.require()
        if buffer.shape != values.shape:
            raise DeviceError(f"expected values of shape {buffer.shape}, got {values.shape}")
        source = np.ascontiguousarray(values, buffer.dtype)
        with self._running("copying to the GPU"):
            self._driver.memcpy_htod_async(buffer.pointer, source, self._stream)
            self._stream.synchronize()

    def download(self, buffer: Buffer) -> Array:
        """Copy ``buffer`` to the host, and wait."""
        self.require()
        values = np.empty(buffer.shape, buffer.dtype)
        with self._running("copying from the GPU"):
            self._driver.memcpy_dtoh_async(values, buffer.pointer, self._stream)
            self._stream.synchronize()
        return values

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Enqueue a copy on the GPU."""
        self.require()
        if (target.shape, target.dtype) != (source.shape, source.dtype):
            raise DeviceError(
                f"expected a {target.dtype} buffer of shape {target.shape}, got {source.dtype} "
                f"{source.shape}"
            )
        size = math.prod(target.shape) * target.dtype.itemsize
        with self._running("copying on the GPU"):  # or in the host's memory, if that is mapped
            copied = self._cuda.cuMemcpyAsync(target.pointer, source.pointer, size, self._handle)
            checked(copied, "copying on the GPU")

    def launch(self, kernel: str, **arguments: Buffer | int | float | None) -> None:
        """Enqueue a kernel."""
        self.require()
        launch = launch_of(kernel, arguments)
        with self._running(f"launching {launch.entry}"):
            function = self._functions[launch.entry]
            packed = struct.pack(launch.signature, *launch.arguments)
            # prepared_async_call would set the block's shape by a call that is deprecated, and not
            # known to be allowed in a capture.
            function._launch_kernel(launch.grid, launch.block, packed, 0, self._stream)

    def run(self, engine: BoundEngine) -> None:
        """Enqueue a graph; in a capture, make sure that its work is in it."""
        if not self._capturing:
            engine.run()
            return
        before = captured_nodes(self._handle)
        engine.run()
        if captured_nodes(self._handle) <= before:
            raise DeviceError(
                f"graph '{engine.name}' left no work in the CUDA graph that is captured: it runs "
                "on another stream; build its engine for this device again, or use backend "
                "onnxruntime"
            )

    @contextlib.contextmanager
    def span(self, stage: str) -> Iterator[None]:
        """Time what the block enqueues, if the device profiles stages."""
        with self.timeline.span(stage) if self._profile else contextlib.nullcontext():
            yield

    def timings(self) -> dict[str, float]:
        """Milliseconds per stage, or of whole graphs as ``device``, since the last call."""
        return self.timeline.take()

    def capture(
        self,
        parts: Sequence[Part],
        *,
        warm_up: int = 1,
        check_capturable: Callable[[], None] = lambda: None,
        workspace: Workspace | None = None,
    ) -> CudaReplay:
        """Run the sequence, so that engines settle, capture it, and try what was captured.

        It becomes one graph. Where parts are repeated so often that it would have more than
        :data:`MOST_NODES` nodes, each of these is a graph, and what is between them another.
        """
        self.require()
        for turn in range(warm_up):
            if workspace is not None and turn == warm_up - 1:
                # What the sequence does not write is then the same as in the trial of the replay.
                assert isinstance(workspace, CudaWorkspace)
                workspace.poison()
            for part in parts:
                part()
            self.synchronize()
        self.timeline.take()
        check_capturable()
        with contextlib.ExitStack() as stack:
            replay = CudaReplay(self, self._captured(parts, stack))
            stack.pop_all()
        if workspace is not None:
            assert isinstance(workspace, CudaWorkspace)
            try:
                self._compare_first_replay(replay, workspace)
            except BaseException:
                replay.close()
                raise
        return replay

    def replay(self, replay: CudaReplay) -> None:
        """Enqueue a captured sequence."""
        self.require()
        whole = contextlib.nullcontext() if self._profile else self.timeline.span("device")
        with self._running("launching a graph"), whole:
            for each in replay.captured:
                for _ in range(each.times):
                    each.graph.launch()
        self._replayed += [(span, each.times) for each in replay.captured for span in each.spans]

    def forget(self, spans: list[Span]) -> None:
        """Destroy the events of a graph, of which a launch may not have been waited for."""
        self._replayed = [each for each in self._replayed if each[0] not in spans]
        self.timeline.release(spans)

    def synchronize(self) -> None:
        """Wait for all that was enqueued, and read the events."""
        self.require()
        with self._running("waiting for the GPU"):
            self._stream.synchronize()
            replayed, self._replayed = self._replayed, []
            self.timeline.collect(replayed)

    def close(self) -> None:
        """Release module, stream and context; closing twice is fine."""
        if self._release is None:
            return
        self.require_thread()
        release, self._release = self._release, None
        release.close()

    def _captured(self, parts: Sequence[Part], stack: contextlib.ExitStack) -> list[Captured]:
        """The parts as graphs; ``stack`` destroys them."""

        def captured(enqueue: Callable[[], None], times: int = 1) -> Captured:
            with self._running("capturing a graph"), self.timeline.capturing() as spans:
                self._capturing = True
                try:
                    found = Captured(CudaGraph(self._handle, enqueue), times, spans)
                finally:
                    self._capturing = False
            stack.callback(CudaReplay(self, [found]).close)
            return found

        repeated = [captured(each.enqueue, each.times) for each in parts if each.times > 1]
        if sum(len(each.graph) * each.times for each in repeated) <= MOST_NODES:
            CudaReplay(self, repeated).close()
            return [captured(Direct(parts))]
        found, bodies = list[Captured](), iter(repeated)
        for again, alike in itertools.groupby(parts, lambda part: part.times > 1):
            if again:
                found += [next(bodies) for _ in alike]
            else:
                found.append(captured(Direct(list(alike))))
        return found

    def _compare_first_replay(self, replay: CudaReplay, workspace: CudaWorkspace) -> None:
        """Compare what the first replay writes with what the last run wrote.

        Work can be missing from a capture without an error, so what that run left is overwritten.
        """
        if workspace.flagged:
            return  # no numbers to compare; the first generation says so
        expected = workspace.written()
        with self._running("trying a graph"):
            workspace.poison()
            replay()
            self.synchronize()
        self.timeline.take()
        for name, values in workspace.written().items():
            if not _close(values, expected[name]):
                raise DeviceError(
                    f"a replay of the captured CUDA graph gives another '{name}' than the same "
                    "work enqueued step by step; build the engines for this device again, or use "
                    "backend onnxruntime, and please report it"
                )

    def _enter_context(self, device: Any, stack: contextlib.ExitStack) -> None:
        stack.callback(enter(device, self.ordinal))
        self._context_handle = self._current()
        self._ident, self._thread = threading.get_ident(), threading.current_thread().name

    def _drop_module(self) -> None:
        self._functions.clear()
        self._module = None

    def _current(self) -> int:
        return int(checked(self._cuda.cuCtxGetCurrent(), "reading the current context"))

    @contextlib.contextmanager
    def _running(self, doing: str) -> Iterator[None]:
        """Translate errors, and notice those that no later call survives."""
        try:
            with translated(self._driver, doing):
                yield
        except DeviceLostError as error:
            mark_lost(self.ordinal, error)
            raise


def _close(found: Array, expected: Array) -> bool:
    """Whether most values are the same: ids exactly, pixels and floats nearly."""
    if not found.size:
        return True
    if found.dtype.kind in "iu" and found.dtype != np.uint8:
        return bool((found == expected).mean() >= _SAME)
    wide, wanted = found.astype(np.float64), expected.astype(np.float64)
    most = float(np.abs(wanted).max(initial=0.0, where=np.isfinite(wanted)))
    near = np.isclose(wide, wanted, rtol=0.0, atol=_NEAR * most, equal_nan=True)
    return bool(near.mean() >= _SAME)
