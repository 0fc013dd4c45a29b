"""Run with EMULATED_CUDA_INTEGRATED=1 and 64 MiB of memory, as an sm_89 device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycuda.driver as cuda
import pytest


def test_attributes(context: Any) -> None:
    device = cuda.Device(0)
    assert device.get_attribute(cuda.device_attribute.INTEGRATED) == 1
    assert device.get_attribute(cuda.device_attribute.CAN_MAP_HOST_MEMORY) == 1
    assert device.compute_capability() == (8, 9)
    assert device.total_memory() == 64 << 20


def test_pinned_memory_comes_out_of_the_same_pool(context: Any) -> None:
    pinned = cuda.pagelocked_empty(40 << 20, np.uint8)
    with pytest.raises(cuda.MemoryError):
        cuda.mem_alloc(40 << 20)
    pinned.base.free()
    cuda.mem_alloc(40 << 20).free()
