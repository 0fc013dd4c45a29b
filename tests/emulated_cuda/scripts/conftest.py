"""What the checks share. They run under the emulated driver, each file in a process of its own.

No imports of CUDA up here: a collection of all tests, without the emulated driver, reads this too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def lazy() -> bool:
    return os.environ.get("EMULATED_CUDA_STREAMS", "lazy") == "lazy"


@pytest.fixture
def context() -> Iterator[Any]:
    """A context of this test's own, so that no error outlives it."""
    import pycuda.driver as cuda

    cuda.init()
    made = cuda.Device(0).make_context()
    yield made
    made.pop()
    made.detach()


@pytest.fixture
def cubin() -> Callable[[str], bytes]:
    return lambda name: (Path(os.environ["CHECK_CUBINS"]) / f"{name}.cubin").read_bytes()


@pytest.fixture
def module(context: Any, cubin: Callable[[str], bytes]) -> Any:
    import pycuda.driver as cuda

    return cuda.module_from_buffer(cubin("kernels"))


@pytest.fixture
def pinned(context: Any) -> Callable[..., Any]:
    """Makes arrays of pinned integers; `base` of such an array is pycuda's allocation."""
    import pycuda.driver as cuda

    def make(*values: int, flags: int = 0) -> Any:
        array = cuda.pagelocked_empty(len(values), np.int32, mem_flags=flags)
        array[:] = values
        return array

    return make


@pytest.fixture
def result() -> Callable[..., Any]:
    """The value of a cuda-bindings call that must succeed."""

    def value(returned: tuple[Any, ...]) -> Any:
        assert returned[0].name == "CUDA_SUCCESS"
        return returned[1] if len(returned) == 2 else returned[1:]

    return value
