"""OpenVINO engines on the CPU, reading and writing buffers in place.

OpenVINO computes the fp32 graphs in fp32, bf16 or fp16, by what the CPU has, and graphs with Q/DQ
nodes in int8. One compiled graph serves every batch size; what is compiled is kept beside the
bundle (``compiled_cache.py``).
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.runtime.devices import Buffer
from fewstep.runtime.engines import BoundEngine, require_all
from fewstep.runtime.engines.compiled_cache import CompiledCache
from fewstep.runtime.errors import DeviceError, EngineError, MissingDependencyError
from fewstep.runtime.machine import cores
from fewstep.runtime.records import GraphInfo

_CPU = "CPU"
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_CAPABILITIES = {"bf16": "BF16", "fp16": "FP16", "int8": "INT8"}
_LOADING = threading.Lock()


@dataclass(frozen=True)
class OpenVino:
    """The module and its CPU.

    ``core``: an ``openvino.Core``. ``precisions``: those that the CPU computes in, fp32 first.
    """

    module: Any
    core: Any
    version: str
    precisions: tuple[str, ...]

    @classmethod
    def load(cls) -> OpenVino:
        """Import the module.

        Raises:
            MissingDependencyError: it is not installed, or does not load.
        """
        with _LOADING:  # threads that open generators at once
            return _loaded()

    def graphs(self, precision: str) -> str:
        """The precision of the bundle's graphs that are compiled for this one.

        Raises:
            EngineError: the CPU does not compute in it.
        """
        if precision not in self.precisions:
            raise EngineError(
                f"OpenVINO does not compute in {precision} on this CPU; it has "
                f"{', '.join(self.precisions)}"
            ) from NotImplementedError(precision)
        return "int8" if precision == "int8" else "fp32"

    def hint(self, precision: str) -> str:
        """OpenVINO's name of the float type: of all operations, or of those around int8 products,
        which are in bf16 where the CPU has that."""
        around = "bf16" if "bf16" in self.precisions else "fp32"
        return _HINTS[around if precision == "int8" else precision]

    def config(self, precision: str) -> dict[str, Any]:
        """Options of whatever is compiled to compute in a precision."""
        # Its fused attention is wrong where a tensor grows from one run to the next: 2026.4
        # gives 20 times the largest number of a tiny VAR at its fourth scale.
        return {"INFERENCE_PRECISION_HINT": self.hint(precision), "SNIPPETS_MODE": "DISABLE"}


# Kept, so that a process has one Core, which ends with it. OpenVINO 2026.4 gives the thread that
# makes one a stack for signals; where two end in the order they came, that is unmapped, and the
# next signal kills.
@functools.cache
def _loaded() -> OpenVino:
    try:
        with _without_telemetry():
            import openvino
    except ImportError as error:
        raise MissingDependencyError(
            "openvino is not installed, or does not load; install it with: "
            f"pip install 'fewstep[openvino]' ({error})"
        ) from error
    core = openvino.Core()
    has = core.get_property(_CPU, "OPTIMIZATION_CAPABILITIES")
    more = (name for name, capability in _CAPABILITIES.items() if capability in has)
    return OpenVino(openvino, core, openvino.__version__.partition("-")[0], ("fp32", *more))


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keep what is imported from reporting to Google Analytics: without this module it does not."""
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # as Python has it for what is absent
    try:
        yield
    finally:
        sys.modules.pop(name, None)
        if before is not None:
            sys.modules[name] = before


class OpenVinoEngine:
    """A graph compiled by OpenVINO.

    Args:
        api: the module.
        name: the graph's name in the bundle, for messages.
        path: a checked ``.onnx`` file.
        info: its inputs and outputs as the manifest states them.
        precision: to compute in; one of ``api.precisions``.
        threads: 0 is as many as this process may use cores.
        cache: keeps what is compiled.

    Raises:
        EngineError: OpenVINO refuses the graph, or its inputs and outputs are not the manifest's.

    After a fork it works on in the process that opened it alone: its threads are in no other.
    """

    warm_up = 1
    capturable = True  # on the CPU there is nothing to capture

    def __init__(
        self,
        api: OpenVino,
        name: str,
        path: Path,
        info: GraphInfo,
        *,
        precision: str,
        threads: int = 0,
        cache: CompiledCache | None = None,
    ) -> None:
        self.name, self.inputs, self.outputs = name, info.inputs, info.outputs
        self._module, self._process = api.module, os.getpid()
        config = {
            **api.config(precision),
            "INFERENCE_NUM_THREADS": threads or cores(),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            # Pinned, they would stay on cores that other programs use, and keep the caller there.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            compiled, self._kept = _compiled(api, path, config, cache)
            self._check_against_manifest(compiled)
            self._request: Any = compiled.create_infer_request()
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO refuses graph '{name}' ({path}): {one_line(error)}; "
                "use backend onnxruntime"
            ) from error
        self._tensors: tuple[Any, ...] = ()

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        """Bind buffers by name; outputs are written in place.

        Raises:
            EngineError: a name, shape or dtype that the graph does not have; the engine is closed.
            DeviceError: it was opened in another process.
        """
        from fewstep.runtime.devices.cpu import host_array  # needs the kernels' packages

        self._open_request()
        require_all(self, bindings)
        tensors = tuple(
            (name, self._module.Tensor(host_array(buffer), shared_memory=True))
            for name, buffer in bindings.items()
        )
        # OpenVINO's tensors do not keep the arrays; what is bound does.
        kept = tuple(host_array(buffer) for buffer in bindings.values())
        return BoundEngine(self.name, functools.partial(self._run, tensors, kept))

    def close(self) -> None:
        """Drop the compiled graph; closing twice is fine."""
        self._request, self._tensors = None, ()
        self._kept = None

    def _run(self, tensors: tuple[Any, ...], kept: tuple[Any, ...]) -> None:
        request = self._open_request()
        try:
            if self._tensors is not tensors:
                for name, tensor in tensors:
                    request.set_tensor(name, tensor)
                self._tensors = tensors
            request.infer()
        except RuntimeError as error:
            raise EngineError(f"graph '{self.name}' failed to run: {one_line(error)}") from error

    def _open_request(self) -> Any:
        if os.getpid() != self._process:
            raise DeviceError(
                f"graph '{self.name}' was opened in another process, before a fork; open a "
                "Generator in this one, after the fork"
            )
        if self._request is None:
            raise EngineError(f"graph '{self.name}' is closed; open the Generator again")
        return self._request

    def _check_against_manifest(self, compiled: Any) -> None:
        actual = {name for each in (*compiled.inputs, *compiled.outputs) for name in each.names}
        if absent := sorted({*self.inputs, *self.outputs} - actual):
            raise EngineError(
                f"graph '{self.name}' has no {', '.join(absent)}, which the manifest names; "
                "export the bundle again"
            )


def _compiled(
    api: OpenVino, path: Path, config: dict[str, Any], cache: CompiledCache | None
) -> tuple[Any, Any]:
    """The graph compiled, from the cache if it is there; and the memory that it then reads."""
    if cache is not None and (content := cache.read()) is not None:
        try:
            tensor = api.module.Tensor(content, shared_memory=True)
            return api.core.import_model(tensor, _CPU, config), content
        except RuntimeError:
            pass  # of another build of OpenVINO: compiled again
    compiled = api.core.compile_model(api.core.read_model(path), _CPU, config)
    if cache is not None:
        cache.write(compiled.export_model())
    return compiled, None


def one_line(error: Exception) -> str:
    """What OpenVINO says, without the places in its sources."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(said or lines)[:600]
