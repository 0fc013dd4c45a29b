"""Tensors inside a graph as TensorRT computes them, for ``fewstep verify --layers``.

The whole graph is built again with the wanted tensors as outputs, for the GPU at hand, and runs
once. TensorRT fuses nothing across a marked tensor, so a fault of such a fusion does not show.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import helper

from fewstep.build.layers import Walks
from fewstep.build.subgraph import SubgraphExtractor, run_onnxruntime
from fewstep.build.tensorrt_builder import EngineRequest, build_here
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array, CudaStream, Device
from fewstep.runtime.devices.cuda_driver import compute_capability
from fewstep.runtime.engines import run_once
from fewstep.runtime.engines.select import open_device
from fewstep.runtime.engines.tensorrt import EngineFile, TensorRtEngine, share_scratch
from fewstep.runtime.engines.tensorrt_api import TensorRt, load
from fewstep.runtime.progress import no_progress
from fewstep.runtime.records import BuildOptions, EngineBackend, GraphInfo, TensorInfo

_NAME = "subgraph"


@contextlib.contextmanager
def opened_walk(bundle: Bundle, backend: EngineBackend, ordinal: int = 0) -> Iterator[Walks]:
    """What :func:`fewstep.build.layers.first_divergence` takes to look at TensorRT's tensors.

    Args:
        bundle: whose kernels the device opens with.
        backend: which module builds and runs.
        ordinal: number of the GPU.

    Raises:
        FewstepError: no module, no GPU, or no kernels for it.
    """
    api, capability = load(backend), compute_capability(ordinal)
    device = open_device(bundle, "cuda", ordinal, profile=False)
    try:
        yield lambda graph, inputs, wanted: TensorRtWalk(api, device, capability, graph, inputs)
    finally:
        device.close()


class TensorRtWalk:
    """Builds and runs a graph for every set of tensors that is asked for.

    Args:
        api: the module to build and run with.
        device: a CUDA device.
        capability: its compute capability.
        graph: the graph.
        inputs: its inputs.
    """

    def __init__(
        self,
        api: TensorRt,
        device: Device,
        capability: str,
        graph: SubgraphExtractor,
        inputs: Mapping[str, Array],
    ) -> None:
        self._api, self._device, self._capability = api, device, capability
        self._graph, self._inputs = graph, inputs

    def values(self, tensors: Sequence[str]) -> dict[str, Array]:
        """Those of the tensors that hold float32 or float16 numbers.

        Raises:
            EngineError: TensorRT or ONNX Runtime refuses the graph.
        """
        wanted = [name for name in tensors if self._graph.is_float(name)]
        if not wanted:
            return {}
        model = self._graph.with_outputs(wanted)
        # Only running it tells every shape, and what type a tensor really has.
        made = run_onnxruntime(model, self._inputs)
        for value in (*model.graph.input, *model.graph.output):
            known = {**self._inputs, **made}[value.name]
            kind = helper.np_dtype_to_tensor_dtype(known.dtype)
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, known.shape))
        info = GraphInfo(
            file=f"{_NAME}.onnx", inputs=_tensors(self._inputs), outputs=_tensors(made)
        )
        return self._run(self._build(model), info)

    def _build(self, model: onnx.ModelProto) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{_NAME}.onnx"
            onnx.save(model, path)
            request = EngineRequest(
                graph=_NAME,
                path=path,
                profiles=(),  # nothing varies
                options=BuildOptions(),
                capabilities=(self._capability,) if self._api.backend == "tensorrt-rtx" else (),
            )
            return bytes(build_here(self._api, request, no_progress).content)

    def _run(self, content: bytes, info: GraphInfo) -> dict[str, Array]:
        stream = self._device.cuda_stream
        assert isinstance(stream, CudaStream)
        engine = TensorRtEngine(self._api, _NAME, EngineFile(content), info, stream)
        try:
            with share_scratch(self._device, [engine]):
                return run_once(self._device, engine, self._inputs)
        finally:
            engine.close()


def _tensors(arrays: Mapping[str, Array]) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo.model_validate({"dtype": str(value.dtype), "shape": value.shape})
        for name, value in arrays.items()
    }
