"""Run with EMULATED_CUDA_FAIL_AFTER_LAUNCHES=2: the third kernel takes the context along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pycuda.driver as cuda
import pytest


def increments(module: Any, count: int) -> int:
    values = cuda.to_device(np.zeros(1, np.int32))
    increment = module.get_function("increment")
    for _ in range(count):
        increment(values, np.int32(1), block=(1, 1, 1))
    return int(cuda.from_device(values, 1, np.int32)[0])


def test_context_is_lost_once(context: Any, cubin: Callable[[str], bytes]) -> None:
    module = cuda.module_from_buffer(cubin("kernels"))
    assert increments(module, 2) == 2
    with pytest.raises(cuda.LaunchError, match="launch failed"):
        increments(module, 1)
    with pytest.raises(cuda.LaunchError, match="launch failed"):
        cuda.Context.synchronize()
    another = cuda.Device(0).make_context()
    assert increments(cuda.module_from_buffer(cubin("kernels")), 3) == 3
    another.pop()
    another.detach()
