"""Engines of NumPy functions, and a small program on them that no family knows.

    images[0]  ← start
    images[t]  ← images[t − 1] / 2 + offset        graph ``halve`` on ``work`` and ``half``
    pixels     ← images[T]

``offset`` is an input, or a constant that the graph ``twice`` computes from ``seed``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.devices import Array, Buffer, BufferSpec
from fewstep.runtime.devices.cpu import host_array
from fewstep.runtime.engines import BoundEngine, require_all
from fewstep.runtime.program import Copy, Launch, Op, Program, Run, View
from fewstep.runtime.records import DType, TensorInfo

SHAPE = (3, 2, 2)
"""Of an image: channels, height, width."""

Tensors = dict[str, TensorInfo]
Bindings = Mapping[str, Buffer]


def tensors(dtype: DType = "float32", **shapes: tuple[int | str, ...]) -> Tensors:
    """Descriptions of tensors of one type, by name."""
    return {name: TensorInfo(dtype=dtype, shape=shape) for name, shape in shapes.items()}


class NumpyEngine:
    """An engine that applies a function to its inputs, and keeps account of its bindings.

    Args:
        name: of the graph.
        inputs: what the function takes, by keyword.
        outputs: what it returns, in this order.
        function: from arrays to an array, or a tuple of them.
    """

    capturable, warm_up = True, 1

    def __init__(
        self,
        name: str,
        inputs: Tensors,
        outputs: Tensors,
        function: Callable[..., Any],
    ) -> None:
        self.name, self.function = name, function
        self.inputs: Mapping[str, TensorInfo] = inputs
        self.outputs: Mapping[str, TensorInfo] = outputs
        self.bound: list[Bindings] = []  # of all bindings, in their order
        self.open, self.runs, self.closed = 0, 0, False
        self.failure: BaseException | None = None  # of the next run

    def bind(self, bindings: Bindings) -> BoundEngine:
        """Bind buffers; what they hold is read when the engine runs."""
        require_all(self, bindings)
        self.bound.append(bindings)
        self.open += 1
        return BoundEngine(self.name, lambda: self._run(bindings), close=self._unbind)

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True

    def _unbind(self) -> None:
        self.open -= 1

    def _run(self, bindings: Bindings) -> None:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        self.runs += 1
        found = self.function(**{name: host_array(bindings[name]) for name in self.inputs})
        results = found if isinstance(found, tuple) else (found,)
        for name, value in zip(self.outputs, results, strict=True):
            np.copyto(host_array(bindings[name]), value)


def halving_engines() -> dict[str, NumpyEngine]:
    """``halve`` and ``twice``."""
    image = ("batch", *SHAPE)
    return {
        "halve": NumpyEngine(
            "halve",
            tensors(image=image, offset=(1,)),
            tensors(half=image),
            lambda image, offset: image / 2 + offset,
        ),
        "twice": NumpyEngine(
            "twice", tensors(seed=(1,)), tensors(offset=(1,)), lambda seed: 2 * seed
        ),
    }


def halving(batch: int, steps: int, *, constant: bool = True) -> Program:
    """The program of this module's head, with ``offset`` 0.5, as a constant or as an input."""
    image, (_, *size) = (batch, *SHAPE), SHAPE
    buffers = {
        "start": BufferSpec(image, "float32", "input"),
        "error": BufferSpec((1,), "int32", "status"),
        "images": BufferSpec((steps + 1, *image), "float32", "output"),
        "pixels": BufferSpec((batch, *size, 3), "uint8", "output"),
        "work": BufferSpec(image, "float32"),
        "half": BufferSpec(image, "float32"),
    }
    initial: dict[str, npt.ArrayLike] = {"start": 0.25}
    if not constant:
        buffers["offset"] = BufferSpec((1,), "float32", "input")
        initial["offset"] = 0.5
    return Program(
        buffers,
        _operations(steps),
        decisions=("images",),
        initial=initial,
        constants={"offset": _offset()} if constant else {},
    )


def assert_halved(images: Array, start: Array, steps: int, offset: float = 0.5) -> None:
    """Assert what ``images`` holds: 2·offset stays, and the distance to it halves every step."""
    powers = 0.5 ** np.arange(steps + 1).reshape(-1, *[1] * start.ndim)
    expected = 2 * offset + (start.astype(np.float64) - 2 * offset) * powers
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-6)


def _operations(steps: int) -> tuple[Op, ...]:
    images, error = View("images"), View("error")
    ops: list[Op] = [Copy(images[0], View("start"))]
    bindings = {"image": View("work"), "offset": View("offset"), "half": View("half")}
    for step in range(steps):
        ops.append(Copy(View("work"), images[step], step, "halve"))
        ops.append(Run("halve", bindings, step))
        ops.append(Copy(images[step + 1], View("half"), step))
    arguments = {"image": images[steps], "pixels": View("pixels"), "error": error}
    return *ops, Launch("to_pixels", arguments, writes=("pixels", "error"), step=steps - 1)


def _offset() -> Program:
    buffers = {
        "seed": BufferSpec((1,), "float32", "input"),
        "offset": BufferSpec((1,), "float32"),
    }
    run = Run("twice", {"seed": View("seed"), "offset": View("offset")})
    return Program(buffers, (run,), initial={"seed": 0.25})
