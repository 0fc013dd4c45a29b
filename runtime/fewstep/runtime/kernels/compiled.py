"""Compilation of the CPU kernels: scalar loops, shaped like the CUDA kernels, through numba.

NumPy would do as well on large arrays, but a decode step on a CPU is a few thousand small
operations between two transformer passes that have just emptied the caches: one compiled loop costs
a tenth of fifty NumPy calls there. The compiled code is cached beside the source, or in the user's
cache folder where that is read-only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from fewstep.runtime.errors import missing

try:
    import numba
except ImportError as error:
    raise missing("numba", "cpu") from error

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function of arrays and numbers on first use."""
    try:
        compiled = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no writable place for the cache: compile in every process
        compiled = numba.njit(nogil=True)(function)
    return cast(Callable[P, R], compiled)


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """A helper that becomes part of every kernel that calls it."""
    return cast(Callable[P, R], numba.njit(inline="always")(function))
