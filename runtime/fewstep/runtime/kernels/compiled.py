"""Compilation of the CPU kernels: scalar loops, shaped like the CUDA kernels, through numba.

NumPy would do as well on large arrays, but a decode step on a CPU is a few thousand small
operations between two transformer passes that have just emptied the caches: one compiled loop costs
a tenth of fifty NumPy calls there. Compiled kernels are kept on disk (``cache.py``); what they call
is compiled into them and not kept for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from fewstep.runtime.errors import missing

try:
    import numba

    from fewstep.runtime.kernels.cache import KernelCache
except ImportError as error:
    raise missing("numba", "cpu") from error

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function of arrays and numbers on first use."""
    compiled: Any = numba.njit(nogil=True)(function)
    compiled._cache = KernelCache(function)  # what njit(cache=True) sets to numba's own
    return cast(Callable[P, R], compiled)


def helper(function: Callable[P, R]) -> Callable[P, R]:
    """What kernels call; compiled with each of them."""
    return cast(Callable[P, R], numba.njit(nogil=True)(function))


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """A helper that becomes part of every kernel that calls it."""
    return cast(Callable[P, R], numba.njit(inline="always")(function))
