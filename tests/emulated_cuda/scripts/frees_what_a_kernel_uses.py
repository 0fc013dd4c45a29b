"""A kernel writes to memory that was freed: the process ends, after a word about why."""

import os
from pathlib import Path

import numpy as np
import pycuda.driver as cuda

cuda.init()
context = cuda.Device(0).make_context()
module = cuda.module_from_buffer((Path(os.environ["CHECK_CUBINS"]) / "kernels.cubin").read_bytes())
allocation = cuda.mem_alloc(4)
address = np.intp(int(allocation))
allocation.free()
module.get_function("increment")(address, np.int32(1), block=(1, 1, 1))
cuda.Context.synchronize()
