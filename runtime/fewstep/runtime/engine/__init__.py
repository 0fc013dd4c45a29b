"""Engines: compiled graphs with named inputs and outputs in device memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from fewstep.runtime.device import Array, Buffer, BufferSpec, Device
from fewstep.runtime.errors import EngineError
from fewstep.runtime.manifest import TensorInfo


class Engine(Protocol):
    """One compiled graph.

    ``inputs`` and ``outputs`` give dtype and shape of each tensor; a dimension that may vary
    carries its name.
    """

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> Mapping[str, TensorInfo]: ...

    @property
    def outputs(self) -> Mapping[str, TensorInfo]: ...

    @property
    def capturable(self) -> bool:
        """Whether its work may be captured into a graph of the device."""
        ...

    def enqueue(self, bindings: Mapping[str, Buffer]) -> None:
        """Run the graph on buffers bound by tensor name; outputs are written in place.

        Raises:
            EngineError: a binding is missing or has another dtype or shape, or the run failed.
        """
        ...

    def trim(self) -> None:
        """Release what can be made again; no captured sequence may need it any more."""
        ...

    def close(self) -> None:
        """Release what the engine holds."""
        ...


def check_binding(engine: Engine, name: str, buffer: Buffer) -> None:
    """Raise ``EngineError`` unless ``buffer`` has dtype and shape of the engine's tensor."""
    info = engine.inputs.get(name) or engine.outputs.get(name)
    if info is None:
        raise EngineError(f"graph '{engine.name}' has no input or output '{name}'")
    fits = len(info.shape) == len(buffer.shape) and all(
        isinstance(expected, str) or expected == actual
        for expected, actual in zip(info.shape, buffer.shape, strict=True)
    )
    if not fits or buffer.dtype != info.dtype:
        raise EngineError(
            f"graph '{engine.name}', tensor '{name}': expected {info.dtype} {list(info.shape)}, "
            f"got {buffer.dtype} {list(buffer.shape)}"
        )


def run_once(device: Device, engine: Engine, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run an engine on host arrays and return its outputs: for checks, not for loops."""
    batch = len(next(iter(inputs.values())))
    specs = {
        name: BufferSpec(value.shape, engine.inputs[name].dtype) for name, value in inputs.items()
    }
    for name, info in engine.outputs.items():
        shape = tuple(batch if isinstance(size, str) else size for size in info.shape)
        specs[name] = BufferSpec(shape, info.dtype)
    with device.workspace(specs) as buffers:
        for name, value in inputs.items():
            device.upload(buffers[name], value.astype(specs[name].dtype, casting="same_kind"))
        engine.enqueue({name: buffers[name] for name in specs})
        return {name: device.download(buffers[name]) for name in engine.outputs}
