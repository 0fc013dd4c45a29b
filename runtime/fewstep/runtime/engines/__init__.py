"""Engines: compiled graphs with named inputs and outputs in device memory.

An engine is bound to buffers once and then run on them any number of times: a captured sequence
keeps addresses, so what is bound never moves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from fewstep.runtime.devices import Array, Buffer, BufferSpec, Device
from fewstep.runtime.errors import EngineError
from fewstep.runtime.manifest import TensorInfo


def _nothing() -> None:
    """Nothing to check, or to release."""


@dataclass(frozen=True)
class BoundEngine:
    """A graph on fixed buffers.

    ``run`` enqueues it once; outputs are written in place. ``require_capturable`` raises
    ``EngineError`` unless its work can be captured now, after it has run with these buffers.
    ``close`` releases what belongs to this binding; no captured sequence may need it any more.
    """

    name: str
    run: Callable[[], None]
    require_capturable: Callable[[], None] = _nothing
    close: Callable[[], None] = _nothing


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

    @property
    def warm_up(self) -> int:
        """Runs that a binding needs before its work may be captured."""
        ...

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        """Bind buffers by tensor name; whoever binds closes what is returned.

        Raises:
            EngineError: a buffer is missing or has another dtype or shape; ``run`` raises it if the
                graph fails.
            OutOfMemoryError: there is not enough memory to run with these shapes.
        """
        ...

    def close(self) -> None:
        """Release what the engine holds, bindings included."""
        ...


def require_all(engine: Engine, bindings: Mapping[str, Buffer]) -> None:
    """Raise ``EngineError`` unless every input and output is bound to a buffer that fits."""
    if absent := sorted({*engine.inputs, *engine.outputs} - bindings.keys()):
        raise EngineError(f"graph '{engine.name}': no buffer bound to {', '.join(absent)}")
    for name, buffer in bindings.items():
        check_binding(engine, name, buffer)


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
        bindings = {name: buffers[name] for name in specs}
        with contextlib.closing(engine.bind(bindings)) as bound:
            device.run(bound)
            return {name: device.download(buffers[name]) for name in engine.outputs}
