"""Call kernels of a host library directly, without a driver, with NumPy arrays as their memory.

    library = KernelLibrary(build_kernels(Path("kernels.cu"), Path("kernels.so")))
    library.launch("scale", (rows,), (256,), array, 0.5)

Arguments are packed as the kernel declares them: arrays as pointers to their data, everything else
as a NumPy or ``ctypes`` scalar of the declared size, where Python's int and float mean C's int and
float.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Argument = Any  # array, NumPy scalar, bytes of a structure, int or float

_Extents = ctypes.c_uint * 3


class EmulatedKernel(ctypes.Structure):
    """The structure of ``emulated_kernel.h``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("argument_count", ctypes.c_uint),
        ("argument_bytes", ctypes.c_uint),
        ("offsets", ctypes.POINTER(ctypes.c_uint)),
        ("sizes", ctypes.POINTER(ctypes.c_uint)),
        ("static_shared_bytes", ctypes.c_uint),
        (
            "launch",
            ctypes.CFUNCTYPE(ctypes.c_int, _Extents, _Extents, ctypes.c_uint, ctypes.c_char_p),
        ),
    )


class LaunchError(RuntimeError):
    """The kernel did not run to its end; the reason is on standard error."""


class KernelLibrary:
    """Kernels of one shared library that ``build_kernels`` has made."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def kernel(self, name: str) -> EmulatedKernel:
        """The exported description of a kernel."""
        return EmulatedKernel.in_dll(self._library, f"emulated_kernel_{name}")

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        *arguments: Argument,
        dynamic_shared_bytes: int = 0,
    ) -> None:
        """Run every block of the grid; extents that are left out are 1.

        Raises:
            LaunchError: a block could not be run to its end.
            TypeError: number or sizes of the arguments are not those that the kernel declares.
        """
        kernel = self.kernel(name)
        packed = _pack(kernel, arguments)
        failed = kernel.launch(_extents(grid), _extents(block), dynamic_shared_bytes, packed)
        if failed:
            raise LaunchError(f"{name} failed; see standard error")


def _extents(given: Sequence[int]) -> ctypes.Array[ctypes.c_uint]:
    return _Extents(*given, *[1] * (3 - len(given)))


def _pack(kernel: EmulatedKernel, arguments: Sequence[Argument]) -> bytes:
    values = [_as_bytes(argument) for argument in arguments]
    sizes = list(kernel.sizes[: kernel.argument_count])
    if [len(value) for value in values] != sizes:
        raise TypeError(f"arguments of {[len(v) for v in values]} bytes; declared are {sizes}")
    packed = bytearray(kernel.argument_bytes)
    for offset, value in zip(kernel.offsets[: len(values)], values, strict=True):
        packed[offset : offset + len(value)] = value
    return bytes(packed)


def _as_bytes(argument: Argument) -> bytes:
    if isinstance(argument, np.ndarray):
        return bytes(ctypes.c_void_p(argument.ctypes.data))
    if isinstance(argument, bytes):
        return argument
    if isinstance(argument, float) and not isinstance(argument, np.generic):
        return bytes(np.float32(argument).tobytes())
    if isinstance(argument, int):
        return bytes(np.int32(argument).tobytes())
    return bytes(argument.tobytes())
