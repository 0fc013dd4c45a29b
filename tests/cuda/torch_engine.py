"""PyTorch as an engine, for tests and benchmarks on a real GPU; never part of the runtime.

The modules that are exported as graphs run on the loop's own stream, read and write the bound
buffers in place, and are captured into the graph of a plan. The same engine runs on the CPU device.

The capture is begun by ``CudaGraph``, not by PyTorch. What PyTorch 2.11 needs for that, by its
documentation and sources (``CUDACachingAllocator``, ``CublasHandlePool``, ``MemPool``):

- **Memory that stays.** A graph keeps addresses. A private ``MemPool`` keeps whatever was allocated
  from it until the pool itself goes, so a block that a capture used is given to later runs and
  captures of the same engine only. The stream runs those one after the other, and nothing in a
  block outlives a run, as outputs are copied into bound buffers.
- **No forbidden call.** ``use_mem_pool`` also tells the allocator that a capture may be under way:
  it then asks about no events and frees nothing to find room. Should it have to grow in a capture
  after all, it sees that the current stream is captured, and calls ``cudaMalloc`` in relaxed mode.
- **Warm-up**, as PyTorch's own graphs have it: handles of cuBLAS and cuDNN, their plans and the
  lazily loaded kernels are all made in runs before the capture.
- **cuBLAS's workspace** of a stream is allocated at first use, so in the pool, and kept in a table
  of the process by the stream's handle. A closed engine clears the table before its pool goes:
  another stream may get the same handle. Other engines' graphs keep what their own pools hold.
- **One context.** pycuda retains the primary context, which is the one that PyTorch's runtime uses;
  making it current once more changes nothing.

``cudnn.benchmark`` is off, as it would time convolutions in a run, and TF32 too, so that fp32 means
fp32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tests.cuda.unexported import unexported
from torch import Tensor, nn

from fewstep.export.config import read_config
from fewstep.export.flow import COMMON
from fewstep.export.masked import Checkpoints, Models, describe, graphs, load_models
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Buffer, CudaStream, Device
from fewstep.runtime.devices.cpu import host_array
from fewstep.runtime.engines import BoundEngine, Engine, require_all
from fewstep.runtime.errors import EngineError, OutOfMemoryError
from fewstep.runtime.generator import Generator
from fewstep.runtime.records import GraphInfo

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class ModuleEngine:
    """Runs a module on the CPU device, or on a stream of a GPU.

    Args:
        name: of the graph.
        module: called with the graph's inputs in order. It is moved to the device in this dtype:
            engines of one device and dtype may share it.
        info: the graph's inputs and outputs.
        stream: where to run; ``None`` for the CPU.
        dtype: of weights and arithmetic. Bound buffers keep theirs: float inputs and outputs are
            cast.
    """

    capturable, warm_up = True, 3

    def __init__(
        self,
        name: str,
        module: nn.Module,
        info: GraphInfo,
        *,
        stream: CudaStream | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name, self.inputs, self.outputs, self._dtype = name, info.inputs, info.outputs, dtype
        self._gpu = None if stream is None else _Gpu(stream)
        place = torch.device("cpu") if self._gpu is None else self._gpu.device
        self._module: nn.Module | None = module.eval().to(place, dtype)
        if self._gpu is not None:
            torch.cuda.synchronize(place)  # the weights came on PyTorch's stream, not on the loop's

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        """Bind buffers by name, seen as tensors."""
        require_all(self, bindings)
        see = _on_host if self._gpu is None else self._gpu.see
        tensors = {name: see(buffer) for name, buffer in bindings.items()}
        return BoundEngine(self.name, run=lambda: self._run(tensors), close=tensors.clear)

    def close(self) -> None:
        """Give up module and memory; no graph may need them any more. Closing twice is fine."""
        self._module = None
        if self._gpu is not None:
            self._gpu.close()

    def _run(self, tensors: Mapping[str, Tensor]) -> None:
        if self._module is None:
            raise EngineError(f"graph '{self.name}' is closed; open the Generator again")
        with self._translated(), torch.inference_mode(), self._place():
            found = self._module(*(self._cast(tensors[name]) for name in self.inputs))
            results = found if isinstance(found, tuple) else (found,)
            for name, value in zip(self.outputs, results, strict=True):
                tensors[name].copy_(value)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def _place(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._gpu is None else self._gpu.current()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(f"graph '{self.name}' ran out of memory: {error}") from error
        except RuntimeError as error:
            raise EngineError(f"graph '{self.name}' failed to run: {error}") from error


class _Gpu:
    """The loop's stream as PyTorch's, and the memory of one engine."""

    def __init__(self, stream: CudaStream) -> None:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
        self.device = torch.device("cuda", stream.ordinal)
        external: Any = torch.cuda.ExternalStream  # untyped
        self._stream: torch.cuda.Stream = external(stream.handle, device=self.device)
        with torch.cuda.device(self.device):
            self._pool: torch.cuda.MemPool | None = torch.cuda.MemPool()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """What the block enqueues goes to the stream, what it allocates comes from the pool."""
        pool = self._pool
        assert pool is not None
        with torch.cuda.stream(self._stream), torch.cuda.use_mem_pool(pool, self.device):
            yield

    def see(self, buffer: Buffer) -> Tensor:
        """A buffer as a tensor of the same memory."""
        tensor = torch.as_tensor(_Memory(buffer), device=self.device)
        assert tensor.data_ptr() == buffer.pointer, "PyTorch made a copy of a bound buffer"
        return tensor

    def close(self) -> None:
        if self._pool is not None:
            torch._C._cuda_clearCublasWorkspaces()
            self._pool = None
            torch.cuda.empty_cache()


class _Memory:
    """A contiguous buffer by the CUDA Array Interface, version 3."""

    def __init__(self, buffer: Buffer) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "version": 3,
            "shape": buffer.shape,
            "typestr": buffer.dtype.str,
            "data": (buffer.pointer, False),  # not read-only
            "strides": None,
        }


def _on_host(buffer: Buffer) -> Tensor:
    return torch.from_numpy(host_array(buffer))


def load(files: Mapping[str, Any]) -> Models:
    """The models of what ``fewstep export`` is given, on the CPU in fp32."""
    given = {name: value for name, value in files.items() if value and name not in COMMON}
    return load_models(Checkpoints(**given), read_config(files.get("config")))


def described(models: Models, config: Path | None = None) -> Bundle:
    """A bundle of these class-conditional models that was not exported.

    Args:
        models: what is described.
        config: ``--config`` file, for class names and defaults.
    """
    return unexported(describe(models, read_config(config), at_least_one=False)[0])


def open_generator(
    models: Models,
    bundle: Bundle,
    device: Device,
    *,
    precision: str = "fp32",
    max_batch: int = 8,
) -> Generator:
    """A generator that PyTorch runs.

    Args:
        models: those of the bundle. They are moved to the device in this precision, and may be
            shared by generators there. Policies stay in fp32, which their step embedding is in.
        bundle: exported or :func:`described`.
        device: closed with the generator, and if this fails.
        precision: ``fp32`` or ``fp16``.
        max_batch: images decoded together.
    """
    engines: dict[str, Engine] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(device.close)
        info: Any = bundle.manifest.model
        for name, graph in graphs(models, info).items():
            own = "fp32" if name in info.policies else precision
            engines[name] = ModuleEngine(
                name, graph.module, bundle.graph(name), stream=device.cuda_stream, dtype=DTYPES[own]
            )
            stack.callback(engines[name].close)
        generator = Generator(
            bundle, device, engines, max_batch=max_batch, backend="pytorch", precision=precision
        )
        stack.pop_all()
    return generator
