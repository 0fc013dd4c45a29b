"""Engines: compiled graphs with named inputs and outputs in device memory.

An engine is bound to buffers once and then run on them any number of times: a captured sequence
keeps addresses, so what is bound never moves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fewstep.runtime.devices import Array, Buffer, BufferSpec, Device
from fewstep.runtime.errors import EngineError
from fewstep.runtime.records import TensorInfo


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


def require_all(engine: Engine, bindings: Mapping[str, Buffer]) -> dict[str, int]:
    """Check that every input and output is bound to a buffer that fits.

    Returns:
        The size of every dimension that may vary, by its name.

    Raises:
        EngineError: a tensor has no buffer, or one of another dtype or shape; or a dimension has
            one size in one tensor and another in the next.
    """
    if absent := sorted({*engine.inputs, *engine.outputs} - bindings.keys()):
        raise EngineError(f"graph '{engine.name}': no buffer bound to {', '.join(absent)}")
    sizes: dict[str, int] = {}
    for name, buffer in bindings.items():
        info = engine.inputs.get(name) or engine.outputs.get(name)
        if info is None:
            raise EngineError(f"graph '{engine.name}' has no input or output '{name}'")
        if not _fits(info, buffer.dtype, buffer.shape, sizes):
            known = ", ".join(f"{key} {size}" for key, size in sizes.items())
            raise EngineError(
                f"graph '{engine.name}', tensor '{name}': expected {info.dtype} "
                f"{_shown(info.shape)}{f' with {known}' if known else ''}, "
                f"got {buffer.dtype} {list(buffer.shape)}"
            )
    return sizes


def _fits(info: TensorInfo, dtype: Any, shape: tuple[int, ...], sizes: dict[str, int]) -> bool:
    """Whether a tensor takes this; the names that it has for dimensions get their sizes."""
    if dtype != info.dtype or len(shape) != len(info.shape):
        return False
    return all(
        size == (expected if isinstance(expected, int) else sizes.setdefault(expected, size))
        for expected, size in zip(info.shape, shape, strict=True)
    )


def _shown(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def run_once(device: Device, engine: Engine, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run an engine on host arrays and return its outputs: for checks, not for loops.

    Raises:
        EngineError: inputs that do not fit, or an output with a dimension that no input has.
    """
    sizes: dict[str, int] = {}
    specs = {}
    for name, value in inputs.items():
        if name not in engine.inputs or len(engine.inputs[name].shape) != value.ndim:
            raise EngineError(
                f"graph '{engine.name}' has no input '{name}' of shape {list(value.shape)}"
            )
        info = engine.inputs[name]
        sizes |= {
            key: size
            for key, size in zip(info.shape, value.shape, strict=True)
            if isinstance(key, str)
        }
        specs[name] = BufferSpec(value.shape, info.dtype)
    for name, info in engine.outputs.items():
        if unknown := [each for each in info.shape if isinstance(each, str) and each not in sizes]:
            raise EngineError(
                f"graph '{engine.name}', output '{name}': no input has the dimension {unknown[0]}"
            )
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in info.shape)
        specs[name] = BufferSpec(shape, info.dtype)
    with device.workspace(specs) as buffers:
        for name, value in inputs.items():
            device.upload(buffers[name], value.astype(specs[name].dtype, casting="same_kind"))
        bindings = {name: buffers[name] for name in specs}
        with contextlib.closing(engine.bind(bindings)) as bound:
            device.run(bound)
            return {name: device.download(buffers[name]) for name in engine.outputs}
