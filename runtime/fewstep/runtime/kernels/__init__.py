"""The decode kernels by name, compiled for the CPU.

Every kernel is one file with its formula and shapes; it reads its inputs, writes its outputs in
place and returns nothing, so that a CUDA kernel of the same name can take its place.
"""

from __future__ import annotations

from collections.abc import Callable

from fewstep.runtime.kernels.policy_parameters import policy_parameters
from fewstep.runtime.kernels.remask import remask
from fewstep.runtime.kernels.sample_tokens import sample_tokens
from fewstep.runtime.kernels.to_pixels import to_pixels

KERNELS: dict[str, Callable[..., None]] = {
    "policy_parameters": policy_parameters,
    "remask": remask,
    "sample_tokens": sample_tokens,
    "to_pixels": to_pixels,
}
