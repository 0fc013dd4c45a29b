"""The decode kernels by name, compiled for the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

from fewstep.runtime.kernels.add_half import add_half
from fewstep.runtime.kernels.advance import advance
from fewstep.runtime.kernels.choose_tokens import choose_tokens
from fewstep.runtime.kernels.copy_rows import copy_rows
from fewstep.runtime.kernels.diffusion_step import diffusion_step
from fewstep.runtime.kernels.gather_rows import gather_rows
from fewstep.runtime.kernels.gather_tokens import gather_tokens
from fewstep.runtime.kernels.initial_tokens import initial_tokens
from fewstep.runtime.kernels.policy_parameters import policy_parameters
from fewstep.runtime.kernels.random_order import random_order
from fewstep.runtime.kernels.remask import remask
from fewstep.runtime.kernels.sample_tokens import sample_tokens
from fewstep.runtime.kernels.sample_top_k_top_p import sample_top_k_top_p
from fewstep.runtime.kernels.sampling_parameters import sampling_parameters
from fewstep.runtime.kernels.scatter_rows import scatter_rows
from fewstep.runtime.kernels.scatter_tokens import scatter_tokens
from fewstep.runtime.kernels.select_rows import select_rows
from fewstep.runtime.kernels.similarity import similarity
from fewstep.runtime.kernels.smooth_actions import smooth_actions
from fewstep.runtime.kernels.start_diffusion import start_diffusion
from fewstep.runtime.kernels.subtract import subtract
from fewstep.runtime.kernels.to_pixels import to_pixels

KERNELS: dict[str, Callable[..., None]] = {
    "add_half": add_half,
    "advance": advance,
    "choose_tokens": choose_tokens,
    "copy_rows": copy_rows,
    "diffusion_step": diffusion_step,
    "gather_rows": gather_rows,
    "gather_tokens": gather_tokens,
    "initial_tokens": initial_tokens,
    "policy_parameters": policy_parameters,
    "random_order": random_order,
    "remask": remask,
    "sample_tokens": sample_tokens,
    "sample_top_k_top_p": sample_top_k_top_p,
    "sampling_parameters": sampling_parameters,
    "scatter_rows": scatter_rows,
    "scatter_tokens": scatter_tokens,
    "select_rows": select_rows,
    "similarity": similarity,
    "smooth_actions": smooth_actions,
    "start_diffusion": start_diffusion,
    "subtract": subtract,
    "to_pixels": to_pixels,
}

_TYPES = {
    "advance": "i4[::1], i4[::1], i4[::1]",
    "diffusion_step": (
        "f4[:,:,::1], f4[:,::1], i4[::1], i4[::1], "
        "u8[::1], i4[:,::1], f4[::1], f4[:,:,::1], i4[::1]"
    ),
    "gather_rows": "f4[:,::1], i4[:,::1], i8, f4[:,::1]",
    "gather_tokens": "f4[:,:,::1], i4[:,::1], f4[:,:,::1]",
    "initial_tokens": "i4[:,::1], u1[:,::1], i8, i8, i4[:,::1], i4[::1]",
    "policy_parameters": "f4[:,::1], f8, f8, f8, f8, f4[:,::1], i4[::1]",
    "random_order": "u8[::1], u1[:,::1], i4[:,::1]",
    "remask": "f4[:,::1], i4[:,::1], f4[:,::1], u1[:,::1], i8, i8, i4[:,::1], i8",
    "sample_tokens": (
        "f4[:,:,::1], f4[:,:,::1], i4[:,::1], f4[:,::1], u8[::1], "
        "i8, i8, i4[:,::1], f4[:,::1], i4[::1], i8, u1[:,::1], i8"
    ),
    "sample_top_k_top_p": (
        "f4[:,:,::1], f4[:,:,::1], f4[:,::1], u8[::1], i8, i4[:,::1], i4[:,::1], i4[::1], i8"
    ),
    "sampling_parameters": "f4[:,::1], f8, f8, f8, f8, f8, f4[:,::1], i4[::1]",
    "scatter_rows": "f4[:,::1], i4[:,::1], i8, f4[:,::1]",
    "scatter_tokens": "f4[:,:,::1], i4[:,::1], f4[:,:,::1]",
    "select_rows": "f4[:,:,::1], i8, i8, i8, i4[:,::1], i4[:,::1]",
    "similarity": "f4[:,:,::1], f4[:,:,::1], i8, f4[:,:,::1], i4[::1]",
    "start_diffusion": "u8[::1], i4[:,::1], i4[::1], i8, f4[:,:,::1], i4[::1], i4[::1]",
    "to_pixels": "f4[:,:,:,::1], u1[:,:,:,::1], i4[::1]",
}
"""Of the arguments that the decode loop gives, as numba writes them."""


def warm(wanted: Collection[str] = tuple(KERNELS)) -> float:
    """Compile the kernels that this process has not compiled, or load them where they are kept.

    Without this the first generation does it.

    Args:
        wanted: names of kernels.

    Returns:
        The seconds it took: a few where nothing was kept, next to none where everything was.
    """
    start = time.perf_counter()
    for name in _TYPES.keys() & set(wanted):
        kernel: Any = KERNELS[name]
        if hasattr(kernel, "compile"):  # not with NUMBA_DISABLE_JIT=1
            kernel.compile(f"void({_TYPES[name]})")
    return time.perf_counter() - start
