"""ONNX Runtime engines, reading and writing device buffers in place.

On the CPU through its CPU provider; on a GPU through its CUDA provider, enqueued on the device's
stream. ONNX Runtime may allocate while it runs, so its work is not captured into a CUDA graph.
How its sessions are made is in ``sessions.py``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.runtime.devices import Buffer, CudaStream
from fewstep.runtime.engines import BoundEngine, require_all
from fewstep.runtime.engines.sessions import new_session
from fewstep.runtime.errors import DeviceError, EngineError, FewstepError, MissingDependencyError
from fewstep.runtime.records import GraphInfo

if TYPE_CHECKING:
    import onnxruntime

_CUDA = "CUDAExecutionProvider"


class OnnxRuntimeEngine:
    """A graph in an ONNX Runtime session.

    Args:
        name: the graph's name in the bundle, for messages.
        path: a checked ``.onnx`` file.
        info: its inputs and outputs as the manifest states them.
        threads: on the CPU; 0 is as many as this process may use cores.
        cuda: the GPU and stream to run on; ``None`` for the CPU.

    Raises:
        MissingDependencyError: onnxruntime, or for CUDA onnxruntime-gpu, is not installed.
        EngineError: ONNX Runtime refuses the graph, or its inputs and outputs are not the
            manifest's.

    After a fork it works on in the process that opened it alone: its threads are in no other.
    """

    warm_up = 1

    def __init__(
        self,
        name: str,
        path: Path,
        info: GraphInfo,
        *,
        threads: int = 0,
        cuda: CudaStream | None = None,
    ) -> None:
        self.name, self.inputs, self.outputs = name, info.inputs, info.outputs
        self._process = os.getpid()
        self.capturable = cuda is None  # on the CPU there is nothing to capture
        self._place = ("cpu", 0) if cuda is None else ("cuda", cuda.ordinal)
        self._session: onnxruntime.InferenceSession | None = _session(name, path, threads, cuda)
        self._options = _run_options(cuda)
        self._names = {*info.inputs, *info.outputs}
        self._check_against_manifest()

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        """Bind buffers by name; outputs are written in place.

        Raises:
            EngineError: a name, shape or dtype that the graph does not have; the engine is closed.
            DeviceError: it was opened in another process.
        """
        session = self._open_session()
        require_all(self, bindings)
        bound = session.io_binding()
        for name, buffer in bindings.items():
            bind = bound.bind_input if name in self.inputs else bound.bind_output
            bind(name, *self._place, buffer.dtype.type, buffer.shape, buffer.pointer)
        return BoundEngine(self.name, functools.partial(self._run, session, bound))

    def close(self) -> None:
        """Drop the session; closing twice is fine."""
        self._session = None

    def _run(self, session: onnxruntime.InferenceSession, bound: onnxruntime.IOBinding) -> None:
        self._open_session()
        try:
            session.run_with_iobinding(bound, self._options)
        except Exception as error:  # onnxruntime raises types of its own, without a common base
            raise EngineError(f"graph '{self.name}' failed to run: {error}") from error

    def _open_session(self) -> onnxruntime.InferenceSession:
        if os.getpid() != self._process:
            raise DeviceError(
                f"graph '{self.name}' was opened in another process, before a fork; open a "
                "Generator in this one, after the fork"
            )
        if self._session is None:
            raise EngineError(f"graph '{self.name}' is closed; open the Generator again")
        return self._session

    def _check_against_manifest(self) -> None:
        session = self._open_session()
        actual = {
            tensor.name: tensor.type for tensor in (*session.get_inputs(), *session.get_outputs())
        }
        if actual.keys() != self._names:
            raise EngineError(
                f"graph '{self.name}' has the inputs and outputs {sorted(actual)}, "
                f"the manifest says {sorted(self._names)}; export the bundle again"
            )


def _session(
    name: str, path: Path, threads: int, cuda: CudaStream | None
) -> onnxruntime.InferenceSession:
    if cuda is not None:
        require_cuda_provider()
    providers = None if cuda is None else [_cuda_provider(cuda)]
    try:
        session = new_session(path, threads=threads, providers=providers)
    except FewstepError:
        raise
    except Exception as error:  # onnxruntime raises types of its own, without a common base
        hint = ""
        if "NOT_IMPLEMENTED" in str(error):
            hint = "; on the CPU it runs fp32, fp16 and int8: try --backend openvino for bf16"
        raise EngineError(f"ONNX Runtime refuses graph '{name}' ({path}): {error}{hint}") from error
    if cuda is not None and session.get_providers()[0] != _CUDA:
        raise EngineError(
            f"ONNX Runtime cannot run graph '{name}' on the GPU, its CUDA libraries do not load; "
            "see which with: python -c 'import onnxruntime; onnxruntime.preload_dlls()'"
        )
    return session


def require_cuda_provider() -> None:
    """Raise ``MissingDependencyError`` unless ONNX Runtime has a CUDA provider."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "onnxruntime-gpu is not installed; install it with: pip install onnxruntime-gpu"
        ) from error
    if _CUDA not in onnxruntime.get_available_providers():
        raise MissingDependencyError(
            "the installed onnxruntime has no CUDA provider; replace it with: pip uninstall "
            "onnxruntime && pip install onnxruntime-gpu"
        )


def _cuda_provider(cuda: CudaStream) -> tuple[str, dict[str, str]]:
    # Without use_tf32 = 0, fp32 matrix products lose 13 bits on GPUs since Ampere.
    stream = {"device_id": str(cuda.ordinal), "user_compute_stream": str(cuda.handle)}
    return _CUDA, {**stream, "use_tf32": "0"}


def _run_options(cuda: CudaStream | None) -> onnxruntime.RunOptions:
    import onnxruntime

    options = onnxruntime.RunOptions()
    if cuda is not None:  # the stream keeps the order; waiting would only stall it
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options
