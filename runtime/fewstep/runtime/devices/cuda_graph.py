"""One CUDA graph for a whole sequence of enqueues, captured from a stream and launched again."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

from fewstep.runtime.devices.cuda_driver import checked, failure, load_bindings
from fewstep.runtime.errors import DeviceError


class CudaGraph:
    """A captured sequence.

    Args:
        stream: handle of the stream that the sequence enqueues on.
        sequence: what to capture; it must not wait for anything.

    Raises:
        DeviceError: something in the sequence cannot be captured.
    """

    def __init__(self, stream: int, sequence: Callable[[], None]) -> None:
        self._cuda = load_bindings()
        self._stream = self._cuda.CUstream(stream)
        with contextlib.ExitStack() as stack:
            self._graph = self._capture(sequence)
            stack.callback(self._cuda.cuGraphDestroy, self._graph)
            made = self._cuda.cuGraphInstantiate(self._graph, 0)
            self._executable = checked(made, "instantiating the graph")
            stack.callback(self._cuda.cuGraphExecDestroy, self._executable)
            self._release = stack.pop_all()

    def launch(self) -> None:
        """Enqueue the whole sequence."""
        launched = self._cuda.cuGraphLaunch(self._executable, self._stream)
        checked(launched, "launching the graph")

    def __len__(self) -> int:
        """How many nodes it has."""
        return _count(self._cuda, self._graph)

    def nodes(self) -> list[str]:
        """What the graph does: kernel names, and the types of all other nodes."""
        count = len(self)
        nodes, _ = checked(self._cuda.cuGraphGetNodes(self._graph, count), "listing nodes")
        return [self._describe(node) for node in nodes]

    def close(self) -> None:
        """Destroy the graph; closing twice is fine."""
        self._release.close()

    def _capture(self, sequence: Callable[[], None]) -> Any:
        # Other threads may go on using CUDA: only this thread's unsafe calls end the capture.
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with _no_garbage_collection():
            checked(self._cuda.cuStreamBeginCapture(self._stream, mode), "starting a capture")
            with self._ended_on_failure():
                sequence()
        status, graph = self._cuda.cuStreamEndCapture(self._stream)
        code = int(status)
        if code and not _is_about_captures(code):
            raise failure(code, status.name, "capturing a graph")
        if code:
            raise DeviceError(
                f"the decode loop cannot be captured into a CUDA graph ({status.name}): an engine "
                "waits or allocates while it runs; build engines for this device again"
            )
        return graph

    @contextlib.contextmanager
    def _ended_on_failure(self) -> Iterator[None]:
        """Leave no stream in capture when the sequence raises."""
        try:
            yield
        except BaseException:
            _, graph = self._cuda.cuStreamEndCapture(self._stream)
            if graph is not None and int(graph) != 0:
                self._cuda.cuGraphDestroy(graph)
            raise

    def _describe(self, node: Any) -> str:
        kind = checked(self._cuda.cuGraphNodeGetType(node), "reading a node")
        if kind != self._cuda.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL:
            return str(kind.name.removeprefix("CU_GRAPH_NODE_TYPE_").lower())
        parameters = checked(self._cuda.cuGraphKernelNodeGetParams(node), "reading a kernel node")
        if int(parameters.func) == 0:  # launched as a CUkernel, by a library
            return "kernel"
        name = checked(self._cuda.cuFuncGetName(parameters.func), "reading a kernel's name")
        return str(name.decode() if isinstance(name, bytes) else name)


def _is_about_captures(code: int) -> bool:
    """``CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED`` and its like, 900 to 908."""
    return 900 <= code <= 908


def captured_nodes(stream: int) -> int:
    """Nodes of the graph that a stream is captured into, so far."""
    cuda = load_bindings()
    found = checked(cuda.cuStreamGetCaptureInfo(cuda.CUstream(stream)), "asking about a capture")
    return _count(cuda, found[2])  # after the capture's status and number


def _count(cuda: Any, graph: Any) -> int:
    return int(checked(cuda.cuGraphGetNodes(graph, 0), "counting nodes")[1])


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect now and not meanwhile: a destructor that frees GPU memory would end the capture."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
