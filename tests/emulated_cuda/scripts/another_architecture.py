"""Run with EMULATED_CUDA_ARCHITECTURE: what the cubin for that architecture says is understood."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pycuda.driver as cuda


def test_kernel(context: Any, cubin: Callable[[str], bytes]) -> None:
    architecture = os.environ["EMULATED_CUDA_ARCHITECTURE"]
    total = cuda.module_from_buffer(cubin(f"sm_{architecture}")).get_function("sum")
    values = cuda.to_device(np.arange(64, dtype=np.int32))
    total(values, block=(64, 1, 1))
    assert cuda.from_device(values, 1, np.int32)[0] == 2016
    assert total.shared_size_bytes == 256
    assert total.max_threads_per_block == 64
    assert 0 < total.num_regs < 64
    assert total.binary_version == int(architecture)
